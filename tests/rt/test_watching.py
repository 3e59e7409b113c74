"""What viewers get of a real server: its status, `top`, and metrics as Prometheus scrapes them."""

import json
import signal
import subprocess
import urllib.request

import pytest
from rich.console import Console

from neds_rt.endpoints import parse_listen
from neds_rt.errors import BadInput
from neds_rt.status import ProbeStatus
from neds_rt.terminal import render
from neds_rt.watching import StatusReader
from neds_rt.words import microseconds, seconds, trouble
from tests.rt.foreign import free_port
from tests.rt.serving import ROOT, Serving, small_bundle, wait_for
from tests.rt.test_health import watched as known
from tests.rt.test_status import status_of
from tests.rt.watched import Watched, command, spikes_in
from tools.twins.feed import random_feed
from tools.twins.oebroadcast import EventBroadcaster


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    with Watched(tmp_path_factory.mktemp("watched")) as rig:
        yield rig


def run(*words):
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=60)


def wait_for_status(reader, condition):
    found = []

    def holds():
        status = reader.recv(1.0)
        if status is not None and condition(status):
            found.append(status)
        return bool(found)

    wait_for(holds)
    return found[0]


def test_status_tells_what_the_server_does(watched):
    with StatusReader(watched.status) as reader:
        first = wait_for_status(reader, lambda s: s.valid and s.decodes > 10)
        later = wait_for_status(reader, lambda s: s.decodes > first.decodes)
    assert later.mono_ns > first.mono_ns
    assert later.run == first.run
    assert first.reasons["ok"] > 0
    assert first.counters["frames"] >= 2 * first.bins
    assert first.stages["service_us"].recent.max <= first.stages["service_us"].all.max
    assert sum(first.service.all) == first.stages["service_us"].count == first.decodes
    assert first.device.startswith("CPU, ")
    assert (first.failover.failed, first.failover.swaps) == (False, 0)
    assert [p.name for p in first.probes] == ["a", "b"]
    assert {p.state for p in first.probes} == {"live"}
    assert 0 <= first.sample_age_s < 5
    raster = first.raster
    assert (raster.rows, raster.units) == (4, 4)
    assert raster.bins == list(range(raster.bins[0], raster.bins[0] + len(raster.bins)))
    # Both probes send so many spikes, all of one of their two units, in each bin.
    for i, bin_ in enumerate(raster.bins):
        assert sum(raster.cells[4 * i : 4 * i + 4]) == 2 * spikes_in(bin_)


def test_status_tells_of_drift_and_of_the_recording(tmp_path):
    def bundle(path, probes):
        known(path)
        return path

    with Watched(tmp_path, ("a",), bundle, f"--record={tmp_path}/r") as rig, \
            StatusReader(rig.status) as reader:
        status = wait_for_status(reader, lambda s: s.drift is not None and s.recorder.bytes > 0)
    assert status.drift.score == pytest.approx(status.drift.detail["drift"])
    assert (status.recorder.state, status.recorder.lost) == ("recording", 0)


def test_status_tells_which_counters_of_a_source_mean_trouble(tmp_path):
    feed = random_feed(n_units=4, rate_hz=30.0, seconds=1.0, seed=2)
    model = small_bundle(tmp_path / "x.neds")
    with EventBroadcaster(feed, port=free_port(), hwm=0) as twin, \
            Serving(model, {"a": f"oe-events://127.0.0.1:{twin.port}"}) as server:
        twin.wait()
        for _ in range(3):
            twin.send_raw(b"\7\7", b"{}")
        twin.play(0, 30_000)
        ready = next(line for line in server.lines if line.startswith("ready ")).split()
        endpoint = next(w for w in ready if w.startswith("status=")).removeprefix("status=")
        with StatusReader(endpoint) as reader:
            status = wait_for_status(
                reader, lambda s: s.probes[0].counters.get("spikes") == twin.spikes)
        done = run("top", "--status", endpoint, "--once")
    assert status.probes[0].counters["messages"] == twin.messages
    assert status.probes[0].trouble == ["bad_kind"]
    assert trouble(status)["a: bad_kind"] == 3
    assert not any("spikes" in kind for kind in trouble(status) if kind.startswith("a: "))
    assert "a: bad_kind 3" in done.stdout


def test_top_once(watched):
    done = run("top", "--status", watched.status, "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert status["engine"] == "native"
    assert status["endpoint"] == watched.decodes
    assert {p["name"] for p in status["probes"]} == {"a", "b"}
    text = run("top", "--status", watched.status, "--once").stdout
    assert "DECODES" in text
    assert "p99.9" in text


def test_top_goes_on_until_interrupted(watched):
    process = subprocess.Popen(command("top", "--status", watched.status, "--json"), cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()
    assert lines[0]["mono_ns"] < lines[1]["mono_ns"] < lines[2]["mono_ns"]


def test_top_without_a_server_is_one_line(tmp_path):
    done = run("top", "--status", f"ipc://{tmp_path}/none", "--once", "--timeout", "0.2")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no status" in done.stderr


def test_metrics_are_scraped_and_parse(watched):
    parser = pytest.importorskip("prometheus_client.parser")
    process = subprocess.Popen(
        command("metrics", "--status", watched.status, "--listen", "127.0.0.1:0"), cwd=ROOT,
        stderr=subprocess.PIPE, text=True)
    try:
        word, address = process.stderr.readline().split()
        assert word == "ready"

        def scrape():
            with urllib.request.urlopen(address, timeout=10) as answer:
                families = parser.text_string_to_metric_families(answer.read().decode())
            return {family.name: family for family in families}

        wait_for(lambda: scrape()["neds_up"].samples[0].value == 1.0)
        found = scrape()
        bins = found["neds_bins"].samples[0]
        assert bins.name == "neds_bins_total"
        wait_for(lambda: scrape()["neds_bins"].samples[0].value > bins.value)
        reasons = {s.labels["reason"]: s.value for s in found["neds_decodes"].samples}
        assert reasons["ok"] > 0
        assert {s.labels["probe"]: s.value for s in found["neds_probe_up"].samples} == {
            "a": 1.0, "b": 1.0}
        quantiles = {s.labels["quantile"] for s in found["neds_stage_seconds"].samples
                     if s.labels["stage"] == "service"}
        assert quantiles == {"0.5", "0.99", "0.999", "1"}
        histogram = found["neds_service_seconds"]
        buckets = [s.value for s in histogram.samples if s.name.endswith("_bucket")]
        count = next(s.value for s in histogram.samples if s.name.endswith("_count"))
        assert buckets == sorted(buckets)
        assert buckets[-1] == count > 0
        assert found["neds_model_info"].samples[0].labels["engine"] == "native"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def text_of(status, silent_s=0.0):
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(render(status, silent_s))
    return console.export_text()


def test_the_picture_says_what_is_wrong():
    assert "DECODES VALID" in text_of(status_of())
    text = text_of(status_of(valid=False, reason="gap", counters={"gaps": 3, "frames": 9}))
    assert "DECODES NOT VALID: gap" in text
    assert "gaps 3" in text
    assert "frames 9" not in text  # part of normal work
    assert "SERVER SILENT for 3.0 s" in text_of(status_of(), 3.0)
    probe = ProbeStatus("b", "u", 4, "live", counters={"messages": 7, "bad_parts": 2},
                        trouble=["bad_parts"])
    assert "b: bad_parts 2" in text_of(status_of(probes=[probe]))
    assert "messages" not in text_of(status_of(probes=[probe]))


def test_markup_in_a_name_is_only_text():
    probe = status_of().probes[0]
    odd = type(probe)("[red]x[/red]", probe.uri, 4, "silent", "[bold]", 9, 2.0)
    assert "[red]x[/red]" in text_of(status_of(probes=[odd]))


def test_lengths_of_time_are_short_words():
    assert [seconds(t) for t in (None, 0.02, 3.21, 250.0, 7500.0)] == [
        "–", "20 ms", "3.2 s", "4 min 10 s", "2 h 05 min"]
    assert [microseconds(t) for t in (84.4, 1250.0, 2.1e6)] == ["84 µs", "1.25 ms", "2.1 s"]


@pytest.mark.parametrize("text", ["9464", "127.0.0.1:", "127.0.0.1:70000", ":1", "0.0.0.0:9464"])
def test_pages_stay_on_this_machine(text):
    with pytest.raises(BadInput):
        parse_listen("--listen", text)


def test_other_addresses_need_to_be_asked_for():
    assert parse_listen("--listen", "0.0.0.0:9464", insecure=True) == ("0.0.0.0", 9464)
    assert parse_listen("--listen", "[::1]:0") == ("::1", 0)
