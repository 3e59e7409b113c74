"""`neds-rt doctor` against the twins, with every mistake planted that it should find."""

import json
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import zmq

from neds_rt.bundle import write_bundle
from neds_rt.cli import main
from neds_rt.doctor import machine
from neds_rt.doctor.ports import who_listens
from tests.rt.foreign import free_port, units_of
from tests.rt.raw_band import CHANNELS, templates
from tests.rt.serving import MODALITIES, SHAPE
from tools.twins.feed import gui_blocks, random_feed
from tools.twins.oebroadcast import EventBroadcaster
from tools.twins.openephys import ZmqInterface
from tools.twins.spikeglx import SpikeGlxTwin
from tools.twins.trodes import TrodesTwin

FEED = random_feed(n_units=6, rate_hz=20.0, seconds=20.0, seed=6)


@contextmanager
def playing(twin, sizes=None, also=None):
    """The twin sends blocks for as long as it takes, and a header of another stream with each."""
    stop = threading.Event()

    def play():
        for block in gui_blocks(twin.feed, 0, 600_000, sizes or (697, 696)):
            if stop.wait(0.005):
                return
            twin.send_block(block)
            if also is not None:
                twin.send_raw(b"EVENT\0", also, counted=False)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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


def test_a_good_plugin_has_nothing_to_change(capsys):
    with ZmqInterface(FEED, port=free_port(), hwm=0) as twin, playing(twin):
        code, checks = doctor(capsys, [twin.port, twin.port + 1])
    where = f"port {twin.port}"
    assert (code, statuses(checks)) == (0, {})
    assert checks[where]["found"].startswith("ZMQ Interface 0.4 or 1.x, ")
    assert "heartbeat of the ZMQ Interface" in checks[f"port {twin.port + 1}"]["found"]
    assert checks[f"{where} block"]["found"].endswith("samples a block (696 to 697)")
    assert checks[f"{where} sample age"]["found"].startswith("expected 3 to 52 ms")
    assert "6 electrodes, 6 units" in checks[f"{where} spikes"]["found"]


@pytest.mark.parametrize(("options", "sizes", "wrong", "advice"), [
    ({"channels": 0}, None, {"channels": "fail"}, "select exactly one"),
    ({"channels": 2}, None, {"channels": "warn"}, "deselect all but one"),
    ({"channels": 384}, None, {"channels": "fail"}, "2.6 blocks fill the plugin's queue"),
    ({}, (192,), {"block": "fail"}, "200 samples or more"),
    ({"heartbeat": False}, None, {"heartbeat": "warn"}, "two apart"),
    ({"stream": "µ-AP"}, None, {"names": "warn"}, "ASCII"),
    ({"loss": 0.1}, None, {"losses": "fail"}, "deselect channels"),
])
def test_a_planted_mistake_is_found(capsys, options, sizes, wrong, advice):
    with ZmqInterface(FEED, port=free_port(), hwm=0, **options) as twin, playing(twin, sizes):
        code, checks = doctor(capsys, [twin.port, twin.port + 1])
    where = f"port {twin.port}"
    assert statuses(checks) == {f"{where} {name}": status for name, status in wrong.items()}
    assert all(advice in checks[f"{where} {name}"]["advice"] for name in wrong)
    assert code == (4 if "fail" in wrong.values() else 0)


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
            playing(twin, also=header):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    assert checks[f"port {twin.port} messages"]["found"].startswith("bad_field ")


def test_no_detector_no_sorter_and_a_second_stream_are_found(capsys):
    feed = random_feed(n_units=3, rate_hz=20.0, seconds=20.0, seed=7)
    feed.cluster[:] = 0
    with ZmqInterface(feed, port=free_port(), hwm=0) as twin, playing(twin):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    assert "Spike Sorter" in checks[f"port {twin.port} spikes"]["advice"]
    with ZmqInterface(feed.until(0), port=free_port(), hwm=0) as twin, playing(twin):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    assert "Spike Detector" in checks[f"port {twin.port} spikes"]["advice"]
    other = json.dumps({"type": "event",
                        "content": {"stream": "ProbeB-AP", "sample_num": 1}}).encode()
    with ZmqInterface(FEED, port=free_port(), hwm=0) as twin, playing(twin, also=other):
        _, checks = doctor(capsys, [twin.port, twin.port + 1])
    assert "plugin of its own" in checks[f"port {twin.port} streams"]["advice"]


def test_two_plugins_that_collide_are_found(capsys):
    port = free_port(4)
    with (ZmqInterface(FEED, port=port, hwm=0, heartbeat=False) as twin,
          EventBroadcaster(FEED, port=port + 1, hwm=0) as other, playing(twin), playing(other)):
        code, checks = doctor(capsys, [port, port + 1])
    assert "PUB on port" in checks[f"port {port} heartbeat"]["found"]
    assert checks[f"port {port + 1}"]["found"].startswith("Event Broadcaster 0.2 or 0.3, JSON, ")
    assert "ZMQ Interface" in checks[f"port {port + 1} losses"]["advice"]
    assert code == 0


@contextmanager
def spiking(twin):
    """The Trodes twin plays for as long as it takes."""
    stop = threading.Event()

    def play():
        for k in range(2000):
            if stop.wait(0.005):
                return
            twin.play(300 * k, 300 * k + 300)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_trodes_network_is_followed_to_its_spikes(capsys):
    with TrodesTwin(FEED) as twin, spiking(twin):
        code, checks = doctor(capsys, [twin.port])
    where = f"port {twin.port}"
    assert checks[where]["found"].startswith("directory of a Trodes network, ")
    assert "spikes of 6 units at tcp://127.0.0.1:" in checks[f"{where} spikes"]["found"]
    assert (code, statuses(checks)) == (0, {f"{where} losses": "warn"})


@pytest.mark.parametrize(("mistake", "status", "advice"), [
    ("no spikes offered", "fail", "open a workspace"),
    ("not streaming", "fail", "start streaming"),
    ("unsorted", "warn", "draw clusters"),
    ("another program's directory", "fail", "open a workspace"),
])
def test_a_mistake_with_trodes_is_found(capsys, mistake, status, advice):
    feed = random_feed(n_units=3, rate_hz=20.0, seconds=20.0, seed=7)
    if mistake == "unsorted":
        feed.cluster[:] = 0
    with TrodesTwin(feed, offer=mistake != "no spikes offered") as twin:
        if mistake == "another program's directory":
            twin.names["source.spikes"] = "tcp://10.0.0.1:5000"
        with spiking(twin) if mistake == "unsorted" else nullcontext():
            code, checks = doctor(capsys, [twin.port])
    found = checks[f"port {twin.port} spikes"]
    assert found["status"] == status
    assert advice in found["advice"]
    assert code == (4 if status == "fail" else 0)


def test_spikeglx_is_asked_about_its_probe(capsys):
    data = np.zeros((3000, 4), np.int16)
    with SpikeGlxTwin(data) as twin:
        code, checks = doctor(capsys, [twin.port])
    where = f"port {twin.port}"
    assert checks[where]["found"].startswith("SpikeGLX 2025")
    assert checks[f"{where} probe 0"]["found"].startswith("4 AP channels at 30000 Hz")
    assert code == 0


@pytest.mark.parametrize(("mistake", "name", "advice"), [
    ("no run", "run", "start a run"),
    ("count stands still", "probe 0", "cable"),
    ("low memory", "probe 0", "console"),
])
def test_a_mistake_with_spikeglx_is_found(capsys, mistake, name, advice):
    with SpikeGlxTwin(np.zeros((3000, 4), np.int16), paced=mistake == "no run") as twin:
        if mistake == "no run":
            twin.stop_run()
        twin.advance(3000)
        if mistake == "low memory":
            twin.fault = "error"
        code, checks = doctor(capsys, [twin.port], seconds=0.3)
    found = checks[f"port {twin.port} {name}"]
    assert found["status"] == "fail"
    assert advice in found["advice"]
    assert code == 4


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


@pytest.mark.parametrize(("named", "status"), [(False, "ok"), (True, "warn")])
def test_units_heard_are_compared_with_a_bundle(capsys, tmp_path, named, status):
    units = units_of(FEED)
    model = tmp_path / "x.neds"
    from neds_rt.bundle import random_bundle

    made = random_bundle(SHAPE, len(units), MODALITIES, bin_size_s=0.02)
    write_bundle(model, session="s", subject="m", bin_size_s=0.02, shape=SHAPE, units=units,
                 modalities=made.manifest.modalities, weights=made.weights)
    options = [f"--model={model}"]
    if named:
        table = tmp_path / "units.tsv"
        table.write_text("probe\tchannel\tcluster\tstream\telectrode\tsorted_id\n"
                         "p\t0\t1\t\tElectrode 0\t1\n")
        options.append(f"--units={table}")
    with ZmqInterface(FEED, port=free_port(), hwm=0) as twin, playing(twin):
        _, checks = doctor(capsys, [twin.port, twin.port + 1], *options)
    assert checks["units"]["status"] == status
    assert checks["units"]["found"].startswith(f"{1 if named else 6} of 6 units heard")


def test_the_machine_is_examined(capsys):
    assert main(["doctor", "--ports=1", "--seconds=0.1", "--json"]) == 4
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    names = [c["name"] for c in checks]
    assert names[:-1] == ["governor", "affinity", "load", "sleep", "timer slack", "clock source",
                          "real-time permission", "locked memory", "swap"]


def test_planted_machine_states_are_found(tmp_path):
    cpu = tmp_path / "cpu0" / "cpufreq"
    cpu.mkdir(parents=True)
    (cpu / "scaling_governor").write_text("powersave\n")
    assert "performance" in machine.governor(tmp_path).advice
    (cpu / "scaling_governor").write_text("performance\n")
    assert machine.governor(tmp_path).status == "ok"
    clock = tmp_path / "clock"
    clock.write_text("hpet\n")
    assert machine.clock_source(clock).status == "warn"
    memory = tmp_path / "meminfo"
    memory.write_text("SwapTotal: 4194304 kB\nSwapFree: 1048576 kB\n")
    assert machine.swap(memory).found == "3072 MiB used"


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
