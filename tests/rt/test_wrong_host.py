"""A wrong host: nobody has the name, or nothing listens there. Sources wait visibly."""

import pytest

from neds_rt.curve import Access
from neds_rt.errors import BadInput
from neds_rt.sources import NATIVE, SOURCES, open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import UnitMap
from tests.rt.foreign import free_port
from tests.rt.serving import Serving, small_bundle, wait_for

# What is served, and what is said while nobody is there.
SERVED = {
    "oe": ("oe://{}", "waiting for tcp://{}: nobody listens there"),
    "raw": ("oe://{}?mode=threshold", "waiting for tcp://{}: nobody listens there"),
    "events": ("oe-events://{}", "waiting for tcp://{}: nobody listens there"),
    "glx": ("spikeglx://{}", "{}: "),
    "trodes": ("trodes://{}", "no Trodes network at tcp://{}"),
}
NO_SUCH_NAME = "no-such-host.invalid"  # RFC 6761: nobody ever has it


def wrong(kind):
    return f"{NO_SUCH_NAME if kind == 'name' else '127.0.0.1'}:{free_port()}"


def test_every_foreign_scheme_is_served_here():
    schemes = {uri.partition("://")[0] for uri, _ in SERVED.values()}
    played = {"replay", "synthetic"}  # have no host
    assert schemes == set(SOURCES) - set(NATIVE) - played


@pytest.mark.parametrize("kind", ["name", "port"])
def test_a_server_says_for_whom_it_waits_and_lives_on(tmp_path, kind):
    bundle = small_bundle(tmp_path / "m.neds", n_units=5, probes=tuple(SERVED))
    hosts = {name: wrong(kind) for name in SERVED}
    probes = {name: uri.format(hosts[name]) for name, (uri, _) in SERVED.items()}
    with Serving(bundle, probes, "--insecure") as server:
        for name, (_, said) in SERVED.items():
            text = f"{name}: {said.format(hosts[name])}"
            wait_for(lambda text=text: any(text in line for line in server.lines))
        assert {server.next().reason for _ in range(3)} == {"stale"}
        assert not any("Traceback" in line for line in server.lines)
        counted = {name: {kind for kind, n in source["counters"].items() if n}
                   for name, source in server.end()["sources"].items()}
    # SpikeGLX alone is dialled by the source itself, which can tell that nobody answered.
    assert counted == {name: {"unreachable"} if name == "glx" else set() for name in SERVED}


@pytest.mark.parametrize("host", ["a..b", "-", "a b", "*", "µ", f"{'a' * 64}.org"])
@pytest.mark.parametrize("uri", [uri for uri, _ in SERVED.values()])
def test_what_can_be_no_host_is_one_line(uri, host):
    with pytest.raises(BadInput, match=r"^--probe a: (host|URI)") as error:
        open_source("a", uri.format(host), units=UnitMap([])).close()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", [uri for uri, _ in SERVED.values()])
@pytest.mark.parametrize("kind", ["name", "port"])
def test_a_source_is_closed_without_ever_having_been_connected(uri, kind):
    source = open_source("a", uri.format(wrong(kind)), units=UnitMap([]),
                         access=Access(insecure=True))
    assert source.tend()
    assert not source.receive(Frame())
    source.close()
