"""`neds-rt doctor` against every twin as it should be; what it says of a rig, and of bad options.

The mistakes that it should find are those of `tests/rt/mistakes`.
"""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from neds_rt.cli import main
from neds_rt.doctor.ports import who_listens
from tests.rt.foreign import free_port
from tests.rt.mistakes import repeating
from tests.rt.mistakes.openephys import FEED, playing
from tests.rt.mistakes.others import bundle_of
from tests.rt.raw_band import CHANNELS, templates
from tests.rt.serving import small_bundle
from tools.twins.native import NativePublisher
from tools.twins.network_events import NetworkEventsTwin
from tools.twins.oebroadcast import EventBroadcaster
from tools.twins.openephys import ZmqInterface
from tools.twins.spikeglx import SpikeGlxTwin
from tools.twins.trodes import TrodesTwin

ROOT = Path(__file__).parents[2]


def doctor(capsys, ports, *options, seconds=0.4):
    code = main(["doctor", f"--ports={','.join(map(str, ports))}", "--no-machine", "--json",
                 f"--seconds={seconds}", *map(str, options)])
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    for check in checks:
        assert check.keys() == {"name", "status", "found", "advice"}
        assert (check["advice"] == "") == (check["status"] == "ok")
    return code, {c["name"]: c for c in checks}


def statuses(checks):
    return {name: c["status"] for name, c in checks.items() if c["status"] != "ok"}


@contextmanager
def open_ephys(version):
    with ZmqInterface(FEED, port=free_port(), hwm=0, version=version) as twin, playing(twin):
        yield [twin.port, twin.port + 1], ()


@contextmanager
def broadcaster(*, raw):
    with EventBroadcaster(FEED, port=free_port(), hwm=0, raw=raw) as twin, playing(twin):
        yield [twin.port], (f"--probe=p=oe-events://127.0.0.1:{twin.port}?rate=30000",)


@contextmanager
def native():
    port = free_port()
    with NativePublisher(FEED, port=port) as twin, repeating(
            lambda k: twin.play(3000 * k, 3000 * k + 3000)):
        yield [port], (f"--probe=p=zmq+tcp://127.0.0.1:{port}",)


@contextmanager
def trodes():
    with TrodesTwin(FEED) as twin, repeating(lambda k: twin.play(300 * k, 300 * k + 300)):
        yield [twin.port], ()


@contextmanager
def spikeglx():
    with SpikeGlxTwin(np.zeros((3000, 4), np.int16)) as twin:
        yield [twin.port], (f"--probe=p=spikeglx://127.0.0.1:{twin.port}",)


@contextmanager
def network_events():
    with NetworkEventsTwin() as twin:
        yield [int(twin.endpoint.rpartition(":")[2])], ()


UNNUMBERED = {"losses": "warn"}  # as no program without numbers can change
TWINS = {
    "ZMQ Interface 1.0": (lambda: open_ephys("1.0"), "ZMQ Interface 0.4 or 1.x, ", {}),
    # 0.2 has no sorted ids: none of a bundle's units can be meant.
    "ZMQ Interface 0.2": (lambda: open_ephys("0.2"), "ZMQ Interface 0.2, ", {"spikes": "warn"}),
    "Event Broadcaster, JSON": (lambda: broadcaster(raw=False),
                                "Event Broadcaster 0.2 or 0.3, JSON, ", UNNUMBERED),
    "Event Broadcaster, binary": (lambda: broadcaster(raw=True),
                                  "Event Broadcaster 0.2 or 0.3, raw binary, ", UNNUMBERED),
    "native": (native, "neds-rt frames, wire version 1: ", {}),
    "Trodes": (trodes, "directory of a Trodes network, which tells no version", UNNUMBERED),
    "SpikeGLX": (spikeglx, "SpikeGLX 2025", {}),
    "Network Events": (network_events, "Network Events, acquisition runs", {}),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_that_is_as_it_should_be_has_nothing_to_change(capsys, tmp_path, name):
    make, found, wrong = TWINS[name]
    model = [] if name == "ZMQ Interface 0.2" else [bundle_of(tmp_path)]
    with make() as (ports, options):
        code, checks = doctor(capsys, ports, *options, *model)
    where = f"port {ports[0]}"
    assert checks[where]["found"].startswith(found)
    assert (code, statuses(checks)) == (0, {f"{where} {k}": v for k, v in wrong.items()})
    if name in ("ZMQ Interface 1.0", "Trodes") or name.startswith("Event Broadcaster"):
        units = checks[f"{where} units" if options else "units"]
        assert units["found"].startswith("6 of 6 units heard")
    if name == "SpikeGLX":
        assert checks[f"{where} probe 0"]["found"].startswith("4 AP channels at 30000 Hz")
    if name == "Trodes":
        assert "spikes of 6 units at tcp://127.0.0.1:" in checks[f"{where} spikes"]["found"]


def test_every_twin_is_examined():
    """A twin that is new has to be examined here."""
    others = {"__init__", "feed", "generated"}
    files = {path.stem for path in (ROOT / "tools" / "twins").glob("*.py")} - others
    assert files == {"openephys", "oebroadcast", "native", "trodes", "spikeglx", "network_events"}


def test_a_good_plugin_is_described(capsys):
    with ZmqInterface(FEED, port=free_port(), hwm=0) as twin, playing(twin):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    where = f"port {twin.port}"
    assert "heartbeat of the ZMQ Interface" in checks[f"port {twin.port + 1}"]["found"]
    assert checks[f"{where} block"]["found"].endswith("samples a block (696 to 697)")
    assert checks[f"{where} sample age"]["found"].startswith("expected 3 to 52 ms")
    assert "6 electrodes, 6 units" in checks[f"{where} spikes"]["found"]


@pytest.mark.parametrize(("channels", "asked", "status", "advice"), [
    (384, "mode=threshold", "ok", ""),
    (384, "mode=threshold&channels=384", "ok", ""),
    (383, "mode=threshold&channels=384", "fail", "select all"),
    (385, "mode=threshold&channels=384", "fail", "select the 384"),
    (0, "mode=threshold", "fail", "select all"),
    (0, "watermark=spikes", "ok", ""),
])
def test_channels_are_judged_by_the_uri(capsys, channels, asked, status, advice):
    with ZmqInterface(FEED, port=free_port(), hwm=0, channels=channels) as twin, playing(twin):
        _, checks = doctor(capsys, [twin.port + 1],
                           f"--probe=a=oe://127.0.0.1:{twin.port}?{asked}")
    found = checks[f"port {twin.port} channels"]
    assert found["status"] == status
    assert advice in found["advice"]
    if asked.startswith("mode"):  # the source finds spikes itself
        assert f"port {twin.port} spikes" not in checks


def test_a_raw_plugin_with_all_that_it_needs_has_nothing_to_change(capsys, tmp_path):
    path = tmp_path / "a.templates"
    path.write_bytes(templates().encode())
    with ZmqInterface(FEED, port=free_port(), hwm=0, channels=CHANNELS) as twin, playing(twin):
        code, checks = doctor(
            capsys, [twin.port, twin.port + 1],
            f"--probe=a=oe://127.0.0.1:{twin.port}?mode=templates&templates={path}")
    assert (code, statuses(checks)) == (0, {})
    assert checks[f"port {twin.port} channels"]["found"] == f"all {CHANNELS} channels selected"


def test_a_block_without_a_rate_is_counted_and_survived(capsys):
    content = {"stream": "ProbeA-AP", "channel_num": 0, "num_samples": 690, "sample_num": 1,
               "sample_rate": 0.0}
    header = json.dumps({"message_num": 1, "type": "data", "content": content}).encode()
    with ZmqInterface(FEED.until(0), port=free_port(), hwm=0, channels=0) as twin, \
            playing(
            twin, also=lambda: twin.send_raw(b"EVENT\0", header, counted=False)):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    assert checks[f"port {twin.port} messages"]["found"].startswith("bad_field ")


def test_two_plugins_that_collide_are_found(capsys):
    port = free_port(4)
    with (ZmqInterface(FEED, port=port, hwm=0, heartbeat=False) as twin,
          EventBroadcaster(FEED, port=port + 1, hwm=0) as other, playing(twin), playing(other)):
        code, checks = doctor(capsys, [port, port + 1])
    assert "PUB on port" in checks[f"port {port} heartbeat"]["found"]
    assert checks[f"port {port + 1}"]["found"].startswith("Event Broadcaster 0.2 or 0.3, JSON, ")
    assert "ZMQ Interface" in checks[f"port {port + 1} losses"]["advice"]
    assert code == 0


def test_each_probe_is_compared_with_its_own_units(capsys, tmp_path):
    model = small_bundle(tmp_path / "x.neds", probes=("a", "b"))
    with (ZmqInterface(FEED, port=free_port(), hwm=0) as one, playing(one),
          EventBroadcaster(FEED, port=free_port(), hwm=0) as other, playing(other)):
        _, checks = doctor(capsys, [one.port + 1], f"--model={model}",
                           f"--probe=a=oe://127.0.0.1:{one.port}",
                           f"--probe=b=oe-events://127.0.0.1:{other.port}")
    assert " of 2 units heard" in checks[f"port {one.port} units"]["found"]
    assert " of 2 units heard" in checks[f"port {other.port} units"]["found"]
    assert "units" not in checks


def test_silence_nobody_and_strangers_are_told_apart(capsys):
    port = free_port(4)
    with ZmqInterface(FEED, port=port, hwm=0):
        _, checks = doctor(capsys, [port, port + 1], seconds=0.2)
        assert checks[f"port {port}"]["found"] == "ZMQ Interface that sends nothing"
        assert checks[f"port {port}"]["advice"] == "start acquisition"
    code, checks = doctor(capsys, [port], seconds=0.2)
    assert (code, checks["ports"]["advice"]) == (4, "start the acquisition program")
    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.bind(f"tcp://127.0.0.1:{port}")
    _, checks = doctor(capsys, [port], seconds=0.2)
    assert "a ZeroMQ PULL socket" in checks[f"port {port}"]["found"]
    assert who_listens("127.0.0.1", port).socket_type == "PULL"
    context.destroy(linger=0)


def test_the_machine_is_examined(capsys):
    assert main(["doctor", "--ports=1", "--seconds=0.1", "--json"]) == 4
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    names = [c["name"] for c in checks]
    assert names[:-1] == ["governor", "affinity", "load", "sleep", "timer slack", "clock source",
                          "real-time permission", "locked memory", "swap"]


@pytest.mark.parametrize("options", [
    ["--ports=x"], ["--ports=9-1"], ["--seconds=0"], ["--host=10.0.0.1"], ["--units=x"],
    ["--host=a..b", "--insecure"], ["--host=a b", "--insecure"], ["--probe=a"],
    ["--probe=a=oe://127.0.0.2"], ["--probe=a=oo://127.0.0.1"], ["--probe=a=zmq+ipc:///tmp/x"],
    ["--probe=a=oe://127.0.0.1?mode=other"], ["--probe=a=oe://127.0.0.1", "--probe=b"],
    ["--probe=a=oe://127.0.0.1", "--probe=b=oe://127.0.0.1"],
    ["--probe=a=oe://127.0.0.1?mode=threshold&templates=x"]])
def test_bad_options_are_refused(options, capsys):
    assert main(["doctor", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
