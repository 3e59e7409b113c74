"""SpikeGLX by templates: through real sockets to bins that equal the same path offline."""

import numpy as np
import pytest

from neds.detect import find_spikes
from neds_rt import _core
from neds_rt.bundle import ProbeTemplates, Unit, read_bundle, write_bundle
from neds_rt.errors import BadInput
from neds_rt.sources import open_source
from neds_rt.sources.units import UnitMap
from tests.rt import test_spikeglx as spikeglx
from tests.rt.raw_band import FS, NAMES, raw, recording, templates
from tests.rt.serving import (
    MODALITIES,
    SHAPE,
    WINDOW,
    Serving,
    fail,
    outputs,
    reference,
    wait_for,
)
from tests.rt.spike_frames import counters_of
from tools.twins.spikeglx import SpikeGlxTwin

DATA = recording(seed=2)[0]
UNITS = [Unit("a", int(c), int(k)) for c, k in NAMES]
MODE = "&mode=templates"


class Rig(spikeglx.Rig):
    """The source by templates on one assembler; `units` in the model's order."""

    def __init__(self, twin, units, path):
        self.twin = twin
        uri = f"spikeglx://127.0.0.1:{twin.port}?block_ms=1&mode=templates&templates={path}"
        self.source = open_source("a", uri, units=UnitMap(units))
        self.assembler = _core.Assembler(0.02, [("a", list(range(len(units))))], len(units), 512)
        self.bins, self.frame = {}, spikeglx.Frame()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.templates"
    path.write_bytes(templates().encode())
    return path


def start(twin, units, path):
    twin.advance(100)
    made = Rig(twin, units, path)
    wait_for(lambda: made.source.tend().startswith("fetching"))
    return made


def offline(data, first, order):
    """(first bin, counts): the whole recording at once; `order`, the template of each unit."""
    found = find_spikes(raw(data), templates())
    sample = np.rint(found["spike_times"] * FS).astype(np.int64) + first
    begin, end = (round(found[f"domain_{end}"][0] * FS) + first for end in ("start", "end"))
    low, high = -(-begin // 600), end // 600
    counts = _core.bin_spikes(sample, found["spike_units"], len(NAMES), FS, 0.02, low, high - low)
    return low, np.ascontiguousarray(counts[:, order])


def test_bins_equal_the_offline_path_bit_for_bit_in_the_models_order(path):
    order = [3, 0, 5, 1]
    units = [UNITS[i] for i in order] + [Unit("a", 99, 99)]
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin, units, path) as live:
        for n in (7, 2500, 11_111, 31_000, 20_382):
            twin.advance(n)
        live.fetched(65_000)
        begin, counts = offline(DATA[100:65_100], 100, order)
        assert list(live.bins) == list(range(begin, begin + len(counts)))
        for index, row in live.bins.items():
            np.testing.assert_array_equal(row[:4], counts[index - begin])
        assert counts.sum() > 60
        report, trouble = live.source.report(), live.trouble
    assert set(trouble) == {"unknown_spikes"}  # of the two units that the model lacks
    assert report["units"]["missing"] == [["a", 99, 99]]
    assert report["mode"] == "templates"
    assert report["held_back_samples"] == templates().matcher().hold


def test_lost_samples_are_a_gap_and_matching_goes_on(path):
    with SpikeGlxTwin(DATA, paced=False, queue_s=0.3) as twin, start(twin, UNITS, path) as live:
        twin.advance(8000)
        live.fetched(8000)
        twin.advance(20_000)
        live.until(lambda: live.source.counters["too_late"] == 1)
        twin.advance(8000)
        live.fetched(16_000)
        assert counters_of(live.assembler)["gaps"] == 1
        assert any(counts is None for counts in live.bins.values())
        assert list(live.bins.values())[-1] is not None


@pytest.mark.parametrize("change", ["channels", "rate"])
def test_another_stream_than_the_templates_is_said_in_one_line_and_waited_on(path, change):
    data, fs = (DATA[:, :8], FS) if change == "channels" else (DATA, 25_000.0)
    with SpikeGlxTwin(np.ascontiguousarray(data), fs=fs, paced=False) as twin:
        twin.advance(100)
        live = Rig(twin, UNITS, path)
        with live:
            wait_for(lambda: live.source.counters["wrong_stream"] >= 1)
            state = live.source.tend()
            wanted = "8 channels" if change == "channels" else "25000 Hz"
            assert wanted in state
            assert "as the templates have" in state
            assert "\n" not in state


@pytest.mark.parametrize("options", [
    "?mode=templates", "?mode=templates&templates=/none", "?templates=/none", "?mode=other",
    "?mode=templates&highpass=300", "?mode=templates&threshold=0",
])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(BadInput):
        open_source("a", f"spikeglx://127.0.0.1:1{options}", units=UnitMap(UNITS))


def bundle_with_templates(path, units=UNITS):
    from neds_rt.bundle import random_bundle

    made = random_bundle(SHAPE, len(units), MODALITIES)
    file = "templates/0.safetensors"
    write_bundle(path, session="s", subject="m", bin_size_s=0.02, shape=SHAPE, units=units,
                 modalities=MODALITIES, weights=made.weights, files={file: templates().encode()},
                 templates=[ProbeTemplates("a", file)])
    return path


class TestServed:
    def test_decodes_are_those_of_the_offline_bins(self, tmp_path):
        path = bundle_with_templates(tmp_path / "m.neds")
        with SpikeGlxTwin(DATA, paced=False) as twin:
            uri = f"spikeglx://127.0.0.1:{twin.port}?mode=templates"
            with Serving(path, {"a": uri}) as server:
                twin.advance(100)
                wait_for(lambda: twin.fetches > 0)
                twin.advance(40_000)
                begin, counts = offline(DATA[100:40_100], 100, list(range(len(UNITS))))
                decodes = server.decodes(len(counts))
                summary = server.end()
        assert [d.bin for d in decodes] == list(range(begin, begin + len(counts)))
        expected = reference(read_bundle(path), list(counts))
        for decode, row in list(zip(decodes, expected, strict=True))[WINDOW:]:
            assert decode.reason == "ok"
            np.testing.assert_allclose(outputs(decode), row, atol=1e-5)
        source = summary["sources"]["a"]
        assert source["templates"] == len(UNITS)
        assert source["units"]["missing"] == []
        assert source["counters"]["spikes"] > 40

    def test_a_bundle_without_templates_is_refused(self, tmp_path):
        from tests.rt.serving import small_bundle

        code, text = fail("--model", small_bundle(tmp_path / "m.neds"),
                          "--probe", "a=spikeglx://127.0.0.1:1?mode=templates")
        assert code == 2
        assert text.count("\n") == 1
        assert "none in the bundle for this probe" in text

    def test_bundles_keep_them_and_tell_what_does_not_fit(self, tmp_path):
        from neds_rt.templates import bundle_templates

        bundle = read_bundle(bundle_with_templates(tmp_path / "m.neds"))
        assert bundle_templates(bundle)["a"].names == templates().names
        with pytest.raises(BadInput, match="templates: found probe 'a'"):
            bundle_with_templates(tmp_path / "n.neds", [Unit("b", 1, 1)])


