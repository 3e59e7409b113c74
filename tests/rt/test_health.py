"""The watch over spikes: its scores against their definition, its reasons in real messages."""

import numpy as np
import pytest
from msgspec.structs import replace

from neds_rt import _core
from neds_rt.assemble import REASONS, make_assembler, make_encoder, make_stepper
from neds_rt.bundle import Health, make_bundle, random_bundle, read_bundle, write_bundle
from neds_rt.engines import load_engine
from neds_rt.engines.native import NativeEngine
from neds_rt.errors import BadInput
from neds_rt.health import GAUGES, array_shapes, make_health, numbers
from neds_rt.safetensors_io import encode_tensors
from neds_rt.wire import decode_message
from tests.rt.serving import MODALITIES, SHAPE, WINDOW, Publisher, Serving, small_bundle
from tests.rt.spike_frames import Sender
from tests.rt.test_swap import Rig

UNITS = 4
BIN = 600
SAID = Health(file="health.safetensors", smooth_s=0.2, burst_s=0.06, firing_limit=4.0,
              likelihood_limit=6.0, silent_limit=0.5, saturated_limit=0.5,
              false_alarms_per_hour=1.0, fitted_s=60.0, held_back_s=60.0, bits_per_spike=0.1)


def arrays(**changes):
    """Units that fire twice a bin, give or take; a forecast that follows the state a little."""
    rng = np.random.default_rng(3)
    shapes = array_shapes(UNITS, SHAPE.hidden)
    made = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    made["rate"][:] = [1.0, 2.0, 2.0, 3.0]
    made["rate.sd"][:] = 0.4
    made["gain.sd"][:] = 0.05
    made["quiet"][:] = [0, 8, 8, 8]  # the first may be silent for as long as it likes
    made["ceiling"][:] = 6.0
    made["forecast.weight"][:] = 0.05 * rng.standard_normal((SHAPE.hidden, UNITS))
    made["forecast.bias"][:] = np.log(made["rate"])
    for name, values in changes.items():
        made[name.replace("_", ".")][:] = values
    return made


def watched(path=None, said=SAID, **changes):
    """A bundle of random weights with statistics, written to `path` if there is one."""
    bundle = random_bundle(SHAPE, UNITS, MODALITIES)
    m = bundle.manifest
    data = encode_tensors(arrays(**changes))
    kept = dict(session="s", subject="m", bin_size_s=0.02, shape=m.shape, modalities=m.modalities,
                units=[type(u)("a", u.channel, u.cluster) for u in m.units],
                weights=bundle.weights, health=said, files={said.file: data})
    if path is None:
        return make_bundle(**kept)
    write_bundle(path, **kept)
    return read_bundle(path)


def counts_of(n, seed=0):
    return np.random.default_rng(seed).poisson([1.0, 2.0, 2.0, 3.0], (n, UNITS)).astype(np.uint16)


def by_definition(counts, states, made, said=SAID):
    """The gauges after the last bin, in float64, from the definition in README.md."""
    told = numbers(said, 0.02)
    slow, fast = 1 / told["smooth_bins"], 1 / told["burst_bins"]
    rate = made["rate"].astype(float)
    smooth, gained, burst = rate.copy(), made["gain"].astype(float), np.zeros(UNITS)
    silent = np.zeros(UNITS)
    for t, k in enumerate(counts):
        smooth += slow * (k - smooth)
        burst += fast * (k - burst)
        silent = np.where(k > 0, 0, silent + 1)
        if t > 0:
            eta = states[t - 1].astype(float) @ made["forecast.weight"] + made["forecast.bias"]
            gained += slow * (k * (eta - np.log(rate)) - (np.exp(eta) - rate) - gained)
    firing = np.minimum(((smooth - rate) / made["rate.sd"]) ** 2, 25).mean() / said.firing_limit
    fall = np.minimum((gained - made["gain"]) / made["gain.sd"], 0)
    likelihood = np.minimum(fall**2, 25).mean() / said.likelihood_limit
    judged = made["quiet"] > 0
    return {
        "drift": max(firing, likelihood), "firing": firing, "likelihood": likelihood,
        "bits_per_spike": gained.sum() / smooth.sum() / np.log(2),
        "silent": (silent > made["quiet"])[judged].mean() / said.silent_limit,
        "saturated": (burst > made["ceiling"]).mean() / said.saturated_limit,
    }


@pytest.mark.parametrize("n", [1, 2, 37])
def test_gauges_are_what_their_definition_says(n):
    bundle, counts = watched(), counts_of(n)
    counts[5:, 1] = 0
    engine, health = NativeEngine(bundle), make_health(bundle)
    states = []
    for row in counts:
        engine.step(row)
        states.append(engine.core.state.copy())
        health.observe(row, states[-1])
    expected = by_definition(counts, states, arrays())
    found = dict(zip(GAUGES, health.gauges.tolist(), strict=True))
    if n == 1:
        assert np.isnan(found.pop("likelihood"))
        assert np.isnan(found.pop("bits_per_spike"))
        expected["drift"] = expected["firing"]
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-3, abs=1e-5)


def pipeline_of(bundle, engine="native", drift="invalid"):
    assembler, encoder = make_assembler(bundle.manifest, ["a"]), make_encoder(bundle.manifest)
    health = make_health(bundle, drift)
    stepper = make_stepper(load_engine(engine, bundle), assembler.counts)
    return _core.Pipeline(assembler, encoder, stepper, _core.LatencyRing(8), WINDOW,
                          health), encoder, health


def frames(counts, sender=None):
    sender = sender or Sender()
    for k, row in enumerate(counts):
        units = np.repeat(np.arange(UNITS), row)
        yield sender.frame(k * BIN, (k + 1) * BIN, k * BIN + np.arange(len(units)), units)


def decodes(bundle, counts, **options):
    pipeline, encoder, health = pipeline_of(bundle, **options)
    found = []
    for frame in frames(counts):
        size = pipeline.feed(*frame, _core.monotonic_ns())
        while size:
            found.append(decode_message(encoder.buffer[:size].tobytes()))
            size = pipeline.next()
    return found, health


def test_units_that_fall_silent_or_fire_wildly_say_so_until_they_do_not():
    counts = counts_of(120)
    counts[:, 1:] += counts[:, 1:] == 0  # no silence by chance
    counts[40:60, 1:3] = 0
    counts[80:84] = 40
    found, _ = decodes(watched(rate_sd=10.0, gain_sd=1e3), counts)
    reasons = [d.reason for d in found]
    # Looked at once a message is out: what a bin shows is said from the next one on.
    assert reasons[WINDOW:49] == ["ok"] * (49 - WINDOW)
    assert reasons[49:61] == ["units silent"] * 12
    assert reasons[61:81] == ["ok"] * 20
    assert reasons[81:85] == ["units saturated"] * 4
    assert reasons[100:] == ["ok"] * 20


@pytest.mark.parametrize(("drift", "reasons"), [
    ("invalid", {"ok", "drift"}), ("warn", {"ok"}), ("off", {"ok"})])
def test_rates_that_drift_are_told_and_make_decodes_invalid_where_asked(drift, reasons):
    counts = counts_of(200)
    counts[100:] = counts_of(100, 1)[:, [3, 0, 1, 2]] * 2
    found, health = decodes(watched(quiet=0, ceiling=1e3), counts, drift=drift)
    assert {d.reason for d in found[WINDOW - 1 :]} == reasons
    assert found[99].reason == "ok"
    if drift == "off":
        assert health is None
        assert all(np.isnan(d.drift) for d in found)
        return
    assert found[99].drift < 1 <= found[-1].drift
    assert all(d.reason == ("drift" if d.drift >= 1 else "ok") for d in found[WINDOW - 1 :]
               ) == (drift == "invalid")


def test_a_bundle_without_statistics_is_served_and_says_so():
    bundle = random_bundle(SHAPE, UNITS, MODALITIES)
    assert bundle.manifest.health is None
    assert make_health(bundle) is None
    found, _ = decodes(bundle, counts_of(20))
    assert found[-1].valid
    assert np.isnan(found[-1].drift)


def test_an_engine_that_shows_no_state_is_watched_by_its_rates_alone():
    found, health = decodes(watched(quiet=0), counts_of(60), engine="onnx")
    gauges = dict(zip(GAUGES, health.gauges.tolist(), strict=True))
    assert np.isnan(gauges["likelihood"])
    assert gauges["drift"] == gauges["firing"] > 0
    assert found[-1].drift > 0


def test_what_is_not_whole_is_not_judged():
    bundle = watched(quiet=0)
    counts = counts_of(60)
    expected, _ = decodes(bundle, counts[:30])
    pipeline, encoder, _ = pipeline_of(bundle)
    sent = list(frames(counts))
    found = []
    for frame in [*sent[:30], *sent[40:41]]:
        size = pipeline.feed(*frame, 0)
        while size:
            found.append(decode_message(encoder.buffer[:size].tobytes()))
            size = pipeline.next()
    assert [d.drift for d in found[:30]] == [d.drift for d in expected]
    lost = [d for d in found if 30 <= d.bin < 30 + WINDOW]
    assert len({d.drift for d in lost}) == 1  # as of bin 29


@pytest.mark.parametrize(("change", "word"), [
    ({"rate": 0.0}, "rate"), ({"gain": np.nan}, "gain"), ({"rate_sd": -1.0}, "rate.sd")])
def test_statistics_that_cannot_be_are_refused(change, word):
    with pytest.raises(BadInput, match=word):
        watched(**change)


def test_statistics_of_another_model_are_refused():
    bundle = watched()
    m = bundle.manifest
    short = encode_tensors({k: v[:2] for k, v in arrays().items()})
    kept = dict(session="s", subject="m", bin_size_s=0.02, shape=m.shape, units=m.units,
                modalities=m.modalities, weights=bundle.weights)
    with pytest.raises(BadInput, match="expected"):
        make_bundle(**kept, health=SAID, files={SAID.file: short})
    with pytest.raises(BadInput, match=r"health\.file"):
        make_bundle(**kept, health=SAID)
    with pytest.raises(BadInput, match=r"health\.firing_limit"):
        make_bundle(**kept, health=replace(SAID, firing_limit=0.0),
                    files={SAID.file: encode_tensors(arrays())})


def test_a_server_says_that_units_are_silent_over_real_sockets(tmp_path):
    model = tmp_path / "x.neds"
    watched(model, rate_sd=10.0, gain_sd=1e3)
    uri = f"zmq+ipc://{tmp_path}/probe"
    counts = counts_of(60)
    counts[:, 1:] += counts[:, 1:] == 0
    counts[20:40, 1:] = 0
    with Publisher(uri) as probe, Serving(model, {"a": uri}) as server:
        probe.wait()
        probe.send(*frames(counts))
        found = server.decodes(60)
        summary = server.end()
    assert [d.reason for d in found[WINDOW - 1 :]] == (
        ["ok"] * (29 - WINDOW + 1) + ["units silent"] * 12 + ["ok"] * 19)
    assert summary["reasons"]["units silent"] == 12
    assert summary["health"].keys() == set(GAUGES)


def test_a_model_that_is_swapped_in_brings_its_own_watch(tmp_path):
    first = small_bundle(tmp_path / "first.neds")
    watched(tmp_path / "second.neds")
    second = read_bundle(tmp_path / "second.neds").manifest.model_hash
    with Rig(tmp_path, first) as rig:
        rig.bins(10)
        rig.change("load", tmp_path / "second.neds")
        rig.bins(10)
        rig.change("rollback")
        rig.bins(10)
        assert rig.server.end()["health"] is None
    assert {d.model == second for d in rig.seen} == {True, False}
    assert all(np.isnan(d.drift) == (d.model != second) for d in rig.seen)
    begun = next(d for d in rig.seen if d.model == second)
    assert begun.drift == 0.0


def test_every_reason_that_health_gives_is_one():
    health = make_health(watched())
    assert REASONS[health.reason] == "ok"
