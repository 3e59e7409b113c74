"""The server as a user runs it: its own process, frames in and decodes out over real sockets."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from neds_rt.binning import bin_spikes
from neds_rt.bundle import read_bundle
from tests.rt.serving import (
    ROOT,
    WINDOW,
    Publisher,
    Serving,
    fail,
    outputs,
    reference,
    small_bundle,
    wait_for,
)
from tests.rt.spike_frames import Sender

BIN = 600


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


@pytest.fixture
def uri(tmp_path):
    return f"zmq+ipc://{tmp_path}/probe"


def recording(n_bins, n_units=4, seed=0, first=0):
    """Random spikes of `n_bins` bins from bin `first` on, as (samples, units, counts)."""
    rng = np.random.default_rng(seed)
    samples = np.sort(rng.integers(first * BIN, (first + n_bins) * BIN, 5 * n_bins))
    units = rng.integers(0, n_units, len(samples))
    return samples, units, bin_spikes(samples, units, n_units, 30_000.0, 0.02, first, n_bins)


def frames(sender, samples, units, start, end, length=250):
    for t0 in range(start, end, length):
        t1 = min(t0 + length, end)
        inside = (samples >= t0) & (samples < t1)
        yield sender.frame(t0, t1, samples[inside], units[inside])


def same(decodes, expected):
    np.testing.assert_allclose([outputs(d) for d in decodes], expected, rtol=1e-5, atol=1e-5)


def test_decodes_are_what_the_engine_says_of_the_offline_bins(model, uri):
    samples, units, counts = recording(40)
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        probe.send(*frames(Sender(), samples, units, 0, 40 * BIN))
        decodes = server.decodes(40)
        summary = server.end(signal.SIGTERM)
    bundle = read_bundle(model)
    same(decodes, reference(bundle, list(counts)))
    assert [d.bin for d in decodes] == list(range(40))
    assert [d.t_s for d in decodes] == pytest.approx([0.02 * (k + 1) for k in range(40)])
    assert [d.reason for d in decodes] == ["warming up"] * (WINDOW - 1) + ["ok"] * (41 - WINDOW)
    assert all(d.valid == (d.reason == "ok") for d in decodes)
    assert {(d.session, d.model, d.v) for d in decodes} == {("s1", bundle.manifest.model_hash, 1)}
    for d in decodes:
        assert d.pub_ns - d.recv_ns == pytest.approx(d.service_us * 1e3, abs=2)
        assert d.spike_age_us >= d.service_us
    assert summary["bins"] == summary["decodes"] == 40
    assert summary["reasons"]["ok"] == 41 - WINDOW
    assert summary["counters"]["spikes"] == 200
    assert (summary["engine"], summary["precision"]) == ("native", "float32")
    assert summary["latency"]["service_us"].keys() == {"p50", "p99", "p999", "max"}
    assert summary["machine"]["versions"]["pyzmq"]
    assert not any(line.startswith("neds-rt serve") for line in server.lines)


def test_max_bins_ends_the_server(model, uri):
    with Publisher(uri) as probe, Serving(model, {"a": uri}, "--max-bins=3") as server:
        probe.wait()
        probe.send(Sender().frame(0, 10 * BIN))
        assert [d.bin for d in server.decodes(3)] == [0, 1, 2]
        assert server.end(None)["decodes"] == 3


def test_idle_exit_counts_from_the_first_frame(model, uri):
    with Publisher(uri) as probe, Serving(model, {"a": uri}, "--idle-exit=0.2") as server:
        server.next()  # stale for longer than that, and still there
        assert server.process.poll() is None
        probe.wait()
        probe.send(Sender().frame(0, BIN))
        assert server.end(None)["decodes"] == 1


def test_malformed_messages_are_counted_logged_once_and_change_nothing(model, uri):
    samples, units, counts = recording(10)
    good = list(frames(Sender(), samples, units, 0, 10 * BIN, BIN))
    header, payload = good[3]
    junk = [(header,), (header, payload, b""), (b"junk", b""), (b"x" * 5000, b"y" * 50_000),
            (header, payload[:-1]), good[0], (b"", b""),
            Sender("other").frame(0, BIN), (header, b"z" * 12_000_013)]
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        for i, frame in enumerate(good):
            probe.send(*(junk if i else ()), frame)
        decodes = server.decodes(10)
        summary = server.end()
    same(decodes, reference(read_bundle(model), list(counts)))
    found = summary["counters"]
    expected = {"bad_parts": 18, "bad_header": 27, "bad_payload": 9, "duplicate": 9,
                "bad_stream": 9, "oversize": 9, "frames": 10, "bins": 10}
    assert {name: found[name] for name in expected} == expected
    logged = [line.split(": ")[1] for line in server.lines if line.startswith("neds-rt serve")]
    assert sorted(logged) == sorted(set(expected) - {"frames", "bins"})


def test_lost_frames_are_published_as_a_gap(model, uri):
    samples, units, counts = recording(24)
    sent = list(frames(Sender(), samples, units, 0, 24 * BIN, BIN))
    del sent[10:12]
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        probe.send(*sent)
        decodes = server.decodes(24)
        assert server.end()["counters"]["lost_bins"] == 2
    held = [None if k in (10, 11) else c for k, c in enumerate(counts)]
    same(decodes, reference(read_bundle(model), held))
    assert [d.bin for d in decodes] == list(range(24))
    reasons = ["warming up"] * 5 + ["ok"] * 5 + ["gap"] * 7 + ["ok"] * 7
    assert [d.reason for d in decodes] == reasons


def test_a_long_gap_is_stepped_over(model, uri):
    samples, units, counts = recording(12)
    later, gap = 30_000, 29_994  # bins 6 to 29999 are missing: ten minutes
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        send = Sender()
        probe.send(*frames(send, samples, units, 0, 6 * BIN, BIN))
        shift = (later - 6) * BIN
        probe.send(*frames(send, samples + shift, units, later * BIN, (later + 6) * BIN, BIN))
        decodes = server.decodes(6 + WINDOW + 6)
        summary = server.end()
    lost = list(range(6, 6 + WINDOW))
    assert [d.bin for d in decodes] == [*range(6), *lost, *range(later, later + 6)]
    assert [d.reason for d in decodes[6:]] == ["gap"] * (WINDOW + 5) + ["ok"]
    assert summary["counters"]["lost_bins"] == gap
    expected = reference(read_bundle(model), [*counts[:6], *[None] * gap, *counts[6:]])
    same(decodes, expected[: 6 + WINDOW] + expected[-6:])


def test_a_restarted_source_starts_the_model_anew(model, uri):
    samples, units, counts = recording(10)
    with Serving(model, {"a": uri}) as server:
        for session in ("first", "second"):
            with Publisher(uri) as probe:
                probe.wait()
                probe.send(*frames(Sender(session=session), samples, units, 0, 10 * BIN))
                decodes = server.decodes(10)
            same(decodes, reference(read_bundle(model), list(counts)))
            assert {d.session for d in decodes} == {session}
            assert [d.bin for d in decodes] == list(range(10))
            assert decodes[0].reason == "warming up"
        assert server.end()["counters"]["restarts"] == 1


def test_silence_is_published_as_stale_and_ends_with_the_next_frame(model, uri):
    samples, units, counts = recording(10)
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        send = Sender()
        probe.send(*frames(send, samples, units, 0, 5 * BIN))
        before = server.decodes(5)
        stale = [server.next() for _ in range(5)]
        probe.send(*frames(send, samples, units, 5 * BIN, 10 * BIN))
        after = server.decodes(5)
        summary = server.end()
    assert {(d.reason, d.valid, d.bin, d.session) for d in stale} == {("stale", False, -1, "s1")}
    assert all(np.isnan(outputs(d)).all() and np.isnan(d.t_s) for d in stale)
    assert all(d.values["choice"].label == "" for d in stale)
    ages = [d.spike_age_us for d in stale]
    assert ages == sorted(ages)
    assert ages[0] > 0.3e6
    assert [d.bin for d in before + after] == list(range(10))
    same(before + after, reference(read_bundle(model), list(counts)))  # the model did not move on
    assert summary["stale_decodes"] == summary["reasons"]["stale"] >= 6


def test_frames_that_close_no_bin_do_not_hide_that_the_input_is_stale(model, uri):
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        for _ in range(100):  # each answered, so that frames never stop arriving
            probe.send((b"junk", b""), (b"junk", b""))
            assert server.next().reason == "stale"
        assert server.end()["counters"]["bad_header"] == 200


@pytest.mark.parametrize("shared", [True, False])
def test_two_probes_over_one_uri_or_two(tmp_path, uri, shared):
    model = small_bundle(tmp_path / "two.neds", ("a", "b"))
    uris = {"a": uri, "b": uri if shared else uri + "2"}
    samples, units, counts = recording(12)
    with Publisher(uris["a"]) as first, Publisher(uris["b"] + "-unused" * shared) as second, \
            Serving(model, uris) as server:
        first.wait()
        if not shared:
            second.wait()
        ways = {"a": first, "b": first if shared else second}
        for probe, even in (("a", 0), ("b", 1)):  # units are dealt to the probes in turn
            mine = units % 2 == even
            ways[probe].send(
                *frames(Sender(probe), samples[mine], units[mine] // 2, 0, 12 * BIN))
        decodes = server.decodes(12)
        assert server.end()["counters"]["spikes"] == 60
    same(decodes, reference(read_bundle(model), list(counts)))


def test_memory_stays_where_it_is(model, uri):
    """A few thousand bins as fast as they go; a leak of 400 bytes a bin would be seen."""
    n, rng = 200, np.random.default_rng(0)
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        send, levels = Sender(), []
        for block in range(25):
            for k in range(block * n, (block + 1) * n):
                count = int(rng.integers(0, 200))
                samples = k * BIN + rng.integers(0, BIN, count)
                probe.send(send.frame(k * BIN, (k + 1) * BIN, samples, rng.integers(0, 4, count)))
            server.decodes(n)
            levels.append(server.memory_mb())
        assert server.end()["decodes"] == 25 * n
    assert levels[-1] - levels[4] < 1.0, levels


def test_a_second_interrupt_ends_a_server_that_hangs(model, uri):
    engine = "--engine=tests.rt.hanging_engine:HangingEngine"
    with Publisher(uri) as probe, Serving(model, {"a": uri}, engine) as server:
        probe.wait()
        probe.send(Sender().frame(0, BIN))
        wait_for(lambda: "hanging" in server.lines)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "interrupted" in server.lines)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 130


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--probe=a=udp://127.0.0.1:1"], "URI scheme: found 'udp://127.0.0.1:1', expected one of "
                                          "zmq+tcp://, zmq+ipc://"),
        (["--probe=a=zmq+tcp://127.0.0.1"], "expected tcp://HOST:PORT"),
        (["--probe=a=zmq+tcp://10.0.0.7:5570"], "--insecure"),
        (["--probe=a=zmq+tcp://rig.example:5570"], "--insecure"),
        (["--probe=a=zmq+tcp://127.0.0.1:99999"], "tcp://HOST:PORT"),
        (["--probe=a"], "expected NAME=URI"),
        (["--probe=a=zmq+ipc://x", "--probe=a=zmq+ipc://y"], "a twice"),
        (["--probe=a=zmq+ipc://x", "--probe=b=zmq+ipc://y"], "--probe: names: found a, b"),
        ([], "--probe: found none"),
        (["--out=tcp://0.0.0.0:5580"], "--insecure"),
        (["--out=tcp://*:5580"], "--insecure"),
        (["--out=udp://127.0.0.1:1"], "tcp://HOST:PORT or ipc://PATH"),
        (["--out=ipc:///nowhere/at/all"], "ipc:///nowhere/at/all"),
        (["--model=missing.neds"], "missing.neds"),
        (["--engine=abacus"], "native"),
        (["--max-bins=0"], "--max-bins: found 0, expected at least 1"),
        (["--stale-after=nan"], "--stale-after"),
        (["--open-bins=1"], "--open-bins"),
        (["--config=missing.toml"], "missing.toml: file"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(model, uri, options, text):
    given = {"--probe": f"--probe=a={uri}", "--model": f"--model={model}",
             "--out": "--out=tcp://127.0.0.1:*"}
    for option in options:
        given.pop(option.partition("=")[0], None)
    if not options:
        given.pop("--probe")
    code, err = fail(*given.values(), *options)
    assert code == 2
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_an_endpoint_in_use_is_one_line_and_exit_2(model, uri, tmp_path, transport):
    address = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/out"
    with Serving(model, {"a": uri}, f"--out={address}") as server:
        code, err = fail(f"--probe=a={uri}", f"--model={model}", f"--out={server.client.endpoint}")
        assert code == 2
        assert err == (f"neds-rt serve: --out: endpoint: found {server.client.endpoint} in use, "
                       "expected a free endpoint\n")
        assert server.next().reason == "stale"  # the first one goes on undisturbed


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ('enigne = "native"', "unknown field `enigne`"),
        ("max_bins = 'ten'", "Expected `int | null`, got `str`"),
        ('keep_warm = "maybe"', "Invalid enum value 'maybe'"),
        ("probe = ", "TOML"),
    ],
)
def test_bad_configuration_files_are_one_line_and_exit_2(tmp_path, toml, text):
    path = tmp_path / "serve.toml"
    path.write_text(toml)
    code, err = fail(f"--config={path}")
    assert (code, err.count("\n")) == (2, 1)
    assert text in err
    assert str(path) in err


def test_a_configuration_file_gives_what_the_command_line_does_not(model, uri, tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text(f'model = "missing.neds"\nmax_bins = 2\nout = "tcp://0.0.0.0:1"\n'
                    f'[probe]\na = "{uri}"\n')
    with Publisher(uri) as probe, Serving(model, {}, f"--config={path}") as server:
        probe.wait()
        probe.send(Sender().frame(0, 10 * BIN))
        assert server.end(None)["decodes"] == 2


def test_importing_neds_rt_is_light():
    code = ("import sys, neds_rt; heavy = {'numpy', 'zmq', 'msgspec', 'torch'};"
            "assert not heavy & set(sys.modules); neds_rt.Client;"
            "assert 'zmq' in sys.modules and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
