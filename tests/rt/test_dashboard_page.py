"""The dashboard in a real browser: what it plots, what it says of a silent probe, what is inert."""

import shutil
import subprocess
import time

import numpy as np
import pytest

from neds_rt.bundle import ModalityOut, random_bundle, write_bundle
from neds_rt.client import Client
from tests.rt.serving import ROOT, SHAPE, wait_for
from tests.rt.watched import Watched, command

pytest.importorskip("bokeh")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)

RUN = 20  # plotted values that are compared
HTML = "<img src=x onerror='window.hacked=1'>"
# Everything on the page that is text, Bokeh's shadow roots included, and what must not be there.
ALL_TEXT = """() => {
  const texts = [], images = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.data);
    if (node.nodeName === 'IMG') images.push(node.outerHTML);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return {text: texts.join(' '), images, hacked: window.hacked === 1};
}"""
DATA = """(name) => {
  const model = Bokeh.documents[0] && Bokeh.documents[0].get_model_by_name(name);
  if (!model) return null;
  return Object.fromEntries(
    Object.entries(model.data).map(([key, values]) => [key, Array.from(values)]));
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def odd_bundle(path, probes):
    """A bundle whose names are HTML."""
    modalities = [
        ModalityOut(HTML + "v", "continuous", 2, HTML, sd=[0.5, 0.25]),
        ModalityOut("$$\\href{javascript:alert(1)}{x}$$", "circular", 2),
        ModalityOut(HTML + "c", "categorical", 2, classes=[HTML + "1", "<script>window.hacked=1"]),
    ]
    bundle = random_bundle(SHAPE, 4, modalities)
    m = bundle.manifest
    units = [type(u)(probes[i % 2], u.channel, u.cluster, HTML) for i, u in enumerate(m.units)]
    write_bundle(path, session=HTML, subject=HTML, bin_size_s=m.bin_size_s, shape=m.shape,
                 units=units, modalities=modalities, weights=bundle.weights)
    return path


class Page:
    """The dashboard of a rig, in its own process, and a browser that shows it."""

    def __init__(self, rig, browser):
        self.process = subprocess.Popen(
            command("dashboard", "--decodes", rig.decodes, "--status", rig.status, "--port", "0",
                    "--no-open"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        word, self.address = self.process.stderr.readline().split()
        assert word == "ready"
        self.tab = browser.new_page(viewport={"width": 1300, "height": 900})
        self.foreign = []  # requests that leave for elsewhere
        self.tab.on("request", self._check)
        self.tab.goto(self.address)

    def _check(self, request):
        if not request.url.startswith(self.address) and request.url.startswith("http"):
            self.foreign.append(request.url)

    def data(self, name):
        return self.tab.evaluate(DATA, name)

    def read(self):
        return self.tab.evaluate(ALL_TEXT)

    def wait_for(self, condition):
        wait_for(lambda: self.tab.wait_for_timeout(20) or condition())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tab.close()
        self.process.terminate()
        assert self.process.wait(20) == 0
        self.process.stderr.close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with Watched(tmp_path_factory.mktemp("page")) as rig:
        yield rig


@pytest.fixture(scope="module")
def page(rig, browser):
    with Page(rig, browser) as page:
        yield page


def test_no_other_page_may_talk_to_it(page, browser):
    opened = """(url) => new Promise((done) => {
      const socket = new WebSocket(url, ['bokeh', 'x']);
      socket.onopen = () => done('open'); socket.onerror = () => done('refused');
    })"""
    other = browser.new_page()
    other.route("http://elsewhere.test/", lambda route: route.fulfill(body="<p>hello"))
    other.goto("http://elsewhere.test/")
    url = page.address.replace("http", "ws") + "ws"
    assert other.evaluate(opened, url) == "refused"
    other.close()


def test_page_plots_what_is_decoded(rig, page):
    with Client(rig.decodes) as client:
        seen, plotted = {}, {}
        page.wait_for(lambda: "DECODES VALID" in page.read()["text"])
        while len(seen) < 2 * RUN:
            found = client.recv(5)
            seen[found.bin] = found

        def newest_are_a_run_of_those_decoded():  # a page that draws slowly shows what was before
            plotted.update({name: page.data(f"trace:{name}")
                            for name in ("velocity", "heading", "choice")})
            while client._socket.poll(0):
                found = client.recv(5)
                seen[found.bin] = found
            decoded = np.float32([d.values["velocity"].mean for k, d in seen.items() if k >= 0])
            both = np.float32([plotted["velocity"]["y0"], plotted["velocity"]["y1"]]).T
            both = both[np.isfinite(both).all(axis=1)][-RUN:]  # stale ones have no values
            return len(both) == RUN and any(
                np.array_equal(decoded[k : k + RUN], both) for k in range(len(decoded)))

        page.wait_for(newest_are_a_run_of_those_decoded)
        assert all(-10.5 <= x <= 0.0 for x in plotted["velocity"]["x"])
        angles = np.array(plotted["heading"]["y0"], float)
        assert np.nanmax(np.abs(angles)) <= 180
        sums = np.array(plotted["choice"]["y0"], float) + np.array(plotted["choice"]["y1"], float)
        np.testing.assert_allclose(sums[np.isfinite(sums)], 1, atol=1e-5)
        assert sum(page.data("latency")["all"]) == pytest.approx(100, abs=0.1)
        assert len(page.data("raster")["image"]) == 1
        assert page.foreign == []


def test_page_tells_what_decodes_and_on_what(rig, page):
    page.wait_for(lambda: "swaps so far" in page.read()["text"])
    text = page.read()["text"]
    for words in ("native, float32", "CPU, ", "no standby"):
        assert words in text


def test_a_silent_probe_is_red(rig, page):
    silent = page.tab.locator(".probe.silent")
    assert silent.count() == 0
    rig.probes["b"].pause()
    paused = time.monotonic()
    silent.wait_for(timeout=20_000)
    took = time.monotonic() - paused
    print(f"a silent probe is red after {took:.2f} s")
    assert silent.count() == 1
    assert silent.locator(".name").inner_text() == "b"
    colour = "e => getComputedStyle(e).backgroundColor"  # none while its text is being replaced
    page.wait_for(lambda: silent.evaluate(colour) == "rgb(198, 40, 40)")
    page.wait_for(lambda: "DECODES NOT VALID: st" in page.read()["text"])  # stream missing, stale
    page.wait_for(lambda: {"stream missing", "stale"} & set(
        page.data("shading:velocity")["reason"]))


def test_names_that_are_html_are_inert(tmp_path, browser):
    with Watched(tmp_path, ("<b>a</b>", "<i>b</i>"), odd_bundle) as rig, \
            Page(rig, browser) as page:
        page.wait_for(lambda: len((page.data(f"trace:{HTML}v") or {"x": []})["x"]) > 5)
        page.wait_for(lambda: "<b>a</b>" in page.read()["text"])
        found = page.read()
        assert found["images"] == []
        assert not found["hacked"]
        assert page.foreign == []
