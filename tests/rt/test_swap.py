"""Swaps on a live server: every decode is what its model says, none is missed, bad ones refused."""

import itertools
import subprocess

import numpy as np
import pytest

from neds_rt.bundle import Shape, random_bundle, read_bundle, write_bundle
from neds_rt.control import Request, ask
from neds_rt.errors import NedsError
from tests.rt.serving import (
    COMMAND,
    MODALITIES,
    ROOT,
    SHAPE,
    Publisher,
    Serving,
    reference,
    small_bundle,
    wait_for,
)
from tests.rt.spike_frames import Sender

BIN = 600
UNITS = 4
BIGGER = Shape(hidden=32, layers=3, heads=4, mlp=32, window=9, conv=2, recurrent=True)


def other_bundle(path, *, shape=BIGGER, modalities=MODALITIES[::-1], n_units=UNITS, seed=7,
                 **kwargs):
    """A bundle for the same units with other weights, sizes and behaviours."""
    bundle = random_bundle(shape, n_units, modalities, seed, probe="a", **kwargs)
    m = bundle.manifest
    write_bundle(path, session="s", subject="m", bin_size_s=m.bin_size_s, shape=m.shape,
                 units=m.units, modalities=m.modalities, weights=bundle.weights)
    return path


class Rig:
    """A server with a control socket, and a probe whose bins go on while the test asks."""

    def __init__(self, folder, model, *options):
        folder.chmod(0o700)
        uri = f"zmq+ipc://{folder}/probe"
        self.control = str(folder / "ctl")
        self.probe = Publisher(uri)
        self.server = Serving(model, {"a": uri}, f"--control={self.control}", *options)
        self.probe.wait()
        self.send = Sender()
        self.rng = np.random.default_rng(3)
        self.counts = []
        self.seen = []

    def bins(self, n=1):
        """Send bins and take their decodes."""
        for _ in range(n):
            k = len(self.counts)
            units = self.rng.integers(0, UNITS, self.rng.integers(0, 9))
            samples = self.rng.integers(k * BIN, (k + 1) * BIN, len(units))
            self.probe.send(self.send.frame(k * BIN, (k + 1) * BIN, samples, units))
            self.counts.append(np.bincount(units, minlength=UNITS).astype(np.uint16))
        self.seen += self.server.decodes(n)

    def ask(self, command, path="", **options):
        """What the server answers, while bins come."""
        words = [*COMMAND, "model", command, *([str(path)] if path else []), "--json",
                 f"--control={self.control}", *(f"--{k}={v}" for k, v in options.items())]
        process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        while process.poll() is None:
            self.bins()
        out, err = process.communicate()
        return process.returncode, out, err

    def change(self, command, path="", shadow_bins=3):
        """Load or roll back over the socket, while bins come; returns the report."""
        from concurrent.futures import ThreadPoolExecutor

        request = Request(command, str(path), shadow_bins)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, self.control, request, 60)
            while not answer.done():
                self.bins()
            return answer.result()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.__exit__()
        self.probe.close()


def said(decode):
    """The engine outputs behind a decode's values, in the order of its model."""
    found = []
    for value in decode.values.values():
        if value.angle is not None:
            found += [value.r * np.cos(value.angle), value.r * np.sin(value.angle)]
        else:
            found += value.mean if value.mean is not None else value.p
    return found


def check(rig, *paths):
    """Every bin has one decode, and its values are those of the model that it names.

    Returns the hashes in the order in which they served.
    """
    bundles = [read_bundle(path) for path in paths]
    truth = {b.manifest.model_hash: reference(b, rig.counts) for b in bundles}
    assert [d.bin for d in rig.seen] == list(range(len(rig.counts)))
    for decode in rig.seen:
        np.testing.assert_allclose(said(decode), truth[decode.model][decode.bin], atol=2e-6)
    order = [d.model for d in rig.seen]
    return [order[0], *(b for a, b in itertools.pairwise(order) if a != b)]


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


def test_a_swap_to_the_same_model_changes_no_bit(model, tmp_path):
    with Rig(tmp_path, model) as rig:
        rig.bins(40)
        report = rig.change("load", model)
        rig.bins(20)
        summary = rig.server.end()
    bundle = read_bundle(model)
    truth = reference(bundle, rig.counts)
    assert [d.bin for d in rig.seen] == list(range(len(rig.counts)))
    for decode in rig.seen:
        given = [*decode.values["velocity"].mean, *decode.values["choice"].p]
        np.testing.assert_array_equal(np.float32(given), truth[decode.bin][[0, 1, 4, 5]])
    assert report["model"] == report["previous"] == bundle.manifest.model_hash
    assert report["replayed_bins"] >= 40
    assert report["shadow_bins"] == 3
    assert (summary["swaps"], summary["failovers"]) == (1, [])
    assert [d.reason for d in rig.seen[SHAPE.window - 1:]] == ["ok"] * (len(rig.seen) - 5)


@pytest.mark.parametrize("engine", ["native:int8", "onnx", "tests.rt.failing_engine:Patient"])
def test_models_of_other_sizes_and_behaviours_come_and_go(model, tmp_path, engine):
    other = other_bundle(tmp_path / "y.neds")
    x, y = (read_bundle(path).manifest.model_hash for path in (model, other))
    exact = engine != "native:int8"
    with Rig(tmp_path, model, f"--engine={engine}") as rig:
        rig.bins(20)
        assert rig.change("load", other)["model"] == y
        rig.bins(5)
        assert rig.change("rollback")["model"] == x
        rig.bins(5)
        assert rig.change("rollback")["model"] == y
        rig.bins(5)
        told = ask(rig.control, Request("info"), 30)
        assert (told["model"], told["previous"], told["swaps"]) == (y, x, 3)
        summary = rig.server.end()
    assert (summary["model"], summary["swaps"], summary["decodes"]) == (y, 3, len(rig.counts))
    assert {d.reason for d in rig.seen[BIGGER.window:]} == {"ok"}
    if exact:
        assert check(rig, model, other) == [x, y, x, y]
    else:
        assert [d.bin for d in rig.seen] == list(range(len(rig.counts)))


def test_a_wider_window_is_valid_once_it_is_full_of_bins_that_are_kept(model, tmp_path):
    wide = other_bundle(tmp_path / "y.neds", shape=Shape(16, 1, 2, 16, 60))
    with Rig(tmp_path, model) as rig:
        rig.bins(15)
        rig.change("load", wide)
        rig.bins(60)
        rig.server.end()
    _, y = check(rig, model, wide)
    for decode in rig.seen:
        window = 60 if decode.model == y else SHAPE.window
        assert decode.reason == ("ok" if decode.bin >= window - 1 else "warming up")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(n_units=UNITS + 1), "units: found 5, expected the 4 being served"),
        (dict(bin_size_s=0.01), "bin_size_s: found 0.01, expected 0.02, as served"),
        (dict(shape=Shape(16, 40, 2, 16, 60)), "reach: found 2361 bins"),
    ],
)
def test_a_bundle_that_does_not_fit_is_one_line_and_nothing_changes(model, tmp_path, change, text):
    wrong = other_bundle(tmp_path / "y.neds", **change)
    with Rig(tmp_path, model) as rig:
        rig.bins(3)
        code, out, err = rig.ask("load", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert text in err
        rig.bins(3)
        assert rig.server.end()["swaps"] == 0
    check(rig, model)


def test_other_units_and_damaged_files_are_refused(model, tmp_path):
    renamed = small_bundle(tmp_path / "y.neds", probes=("b",))
    damaged = tmp_path / "z.neds"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    with Rig(tmp_path, model) as rig:
        rig.bins(3)
        for command, path, text in (
            ("load", renamed, "found ('b', 0, 0), expected ('a', 0, 0)"),
            ("load", damaged, str(damaged)), ("load", tmp_path / "none.neds", "no such file"),
            ("rollback", "", "none before this one"),
        ):
            with pytest.raises(NedsError, match=r"expected") as found:
                rig.change(command, path)
            assert text in str(found.value)
            assert (found.value.exit_code, "\n" in str(found.value)) == (2, False)
        rig.bins(3)
        assert rig.server.end()["swaps"] == 0
    check(rig, model)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("LoadedRaising", "the device"), ("LoadedNaN", "not finite"),
     ("LoadedSlow", "expected at most 5.0"), ("LoadedUnbuildable", "cannot be built")],
)
def test_an_engine_that_fails_beside_the_served_one_is_refused(model, tmp_path, kind, text):
    engine = f"--engine=tests.rt.failing_engine:{kind}"
    with Rig(tmp_path, model, engine, "--budget-ms=5") as rig:
        rig.bins(10)
        with pytest.raises(NedsError, match=text):
            rig.change("load", model)
        rig.bins(3)
        summary = rig.server.end()
    assert (summary["swaps"], summary["failovers"]) == (0, [])
    check(rig, model)


def test_gaps_and_restarts_are_part_of_what_a_new_model_has_seen(model, tmp_path):
    """The bins of the first session, and lost ones, are not in what it computes from, or are."""
    other = other_bundle(tmp_path / "y.neds", modalities=MODALITIES)
    with Rig(tmp_path, model) as rig:
        rig.bins(10)
        rig.send, rig.counts, rig.seen = Sender("a", "again"), [], []
        rig.bins(8)
        at = len(rig.counts)
        rig.counts += [None, None]  # two bins that are never sent, hence lost
        rig.bins(1)
        rig.seen += rig.server.decodes(2)
        rig.change("load", other)
        rig.bins(6)
        rig.server.end()
    assert [d.bin for d in rig.seen] == list(range(len(rig.counts)))
    assert len(check(rig, model, other)) == 2
    assert {d.reason for d in rig.seen if at <= d.bin < at + 2} == {"gap"}


def test_without_live_bins_nothing_is_swapped(model, tmp_path):
    with Rig(tmp_path, model) as rig:
        rig.bins(3)
        done = subprocess.run(
            [*COMMAND, "model", "load", str(model), f"--control={rig.control}"], cwd=ROOT,
            capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (3, "")
        assert "no live bin for 3 s" in done.stderr
        rig.bins(3)
        rig.server.end()
    check(rig, model)


def test_a_server_that_ends_gives_up_the_load(model, tmp_path):
    with Rig(tmp_path, model) as rig:
        rig.bins(3)
        process = subprocess.Popen(
            [*COMMAND, "model", "load", str(model), f"--control={rig.control}"], cwd=ROOT,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda: ask(rig.control, Request("info"), 30)["stage"] == "shadow")
        rig.server.end()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3
        assert err.count("\n") == 1


def test_the_command_swaps_and_tells(model, tmp_path):
    other = other_bundle(tmp_path / "y.neds", modalities=MODALITIES[:1])
    y = read_bundle(other).manifest.model_hash
    with Rig(tmp_path, model) as rig:
        rig.bins(3)
        code, out, err = rig.ask("load", other, **{"shadow-bins": 2})
        assert (code, err) == (0, "")
        assert f'"model": "{y}"' in out
        code, out, _ = rig.ask("info")
        assert code == 0
        assert '"stage": "idle"' in out
        rig.server.end()
    x, last = check(rig, model, other)
    assert last == y
    at = next(d.seq for d in rig.seen if d.model == y)
    took_over = f"neds-rt serve: model {y[:12]} took over from {x[:12]} at decode {at}"
    assert took_over in rig.server.lines
