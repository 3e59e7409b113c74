"""From a sorting analyzer to templates in a bundle, and recordings through the live path."""

import json

import numpy as np
import pytest

from neds.bundle_templates import probe_templates
from neds.cli import main
from neds.data.store import read_session
from neds.detect import find_spikes, read_bin
from neds.templates import Sorted, measure_templates
from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.templates import read_templates
from tests.rt.raw_band import CHANNELS, FS, NAMES, POSITION, ROWS, plant, raw, recording, templates

UNITS = [Unit("a", int(c), int(k)) for c, k in NAMES]


class TestMeasure:
    def test_waveforms_are_the_planted_ones_behind_the_front_end(self):
        t = templates()
        before = t.settings.before
        for u in range(len(NAMES)):
            site = t.tensors["site"][u].astype(int)
            wave = np.zeros((ROWS, CHANNELS))
            wave[:, site] = t.tensors["waveform"][u]
            rows = np.empty((3000, CHANNELS), np.float32)
            alone = plant(np.array([1500]), np.array([u]), len(rows), noise=0)
            front = _core.FrontEnd(CHANNELS, FS, t.settings.highpass_hz, t.settings.reference)
            front.process(alone.data, rows)
            expected = rows[1500 - before : 1500 - before + len(wave)]
            shown = np.flatnonzero(np.abs(wave).max(0))
            assert int(np.abs(expected).max(0).argmax()) in shown
            # Other units' spikes lie in the mean, and the median differs where there is noise.
            difference = np.abs(wave[:, shown] - expected[:, shown]).max()
            assert difference < 0.12 * np.abs(expected).max()

    def test_noise_and_amplitudes(self):
        t = templates().tensors
        assert np.all((t["noise"] > 5.5) & (t["noise"] < 11))
        np.testing.assert_allclose(np.diag(t["correlation"]), 1, atol=1e-3)
        assert np.abs(t["correlation"] - np.eye(CHANNELS)).max() < 0.4
        np.testing.assert_allclose(t["amplitude"][:, 0], 1, atol=0.05)
        assert t["amplitude"][:, 1].max() < 0.12

    def test_units_with_few_spikes_are_named_and_have_none(self):
        data, samples, units = recording(seed=1)
        keep = (units != 2) | (np.cumsum(units == 2) <= 5)
        found, missing = measure_templates(
            raw(data), Sorted(samples[keep], units[keep], NAMES))
        assert missing == [2]
        assert found.names == [tuple(n) for n in np.delete(NAMES, 2, 0).tolist()]
        with pytest.raises(BadInput, match="no unit with 20"):
            measure_templates(raw(data), Sorted(samples[:5], units[:5], NAMES))


class TestBundleTemplates:
    def file(self, tmp_path):
        path = tmp_path / "a.templates"
        path.write_bytes(templates().encode())
        return path

    def test_units_are_matched_by_name_and_missing_ones_are_told(self, tmp_path):
        units = [UNITS[3], Unit("a", 50, 1), UNITS[0]]
        ((entry, data),), silent = probe_templates([str(self.file(tmp_path))], units)
        assert (entry.probe, entry.missing) == ("a", [1])
        assert silent == [("a", 50, 1)]
        assert data == templates().encode()

    @pytest.mark.parametrize(("values", "match"), [
        (["{}", "{}"], "a twice"), (["b={}"], r"PROBE=PATH of a"), (["/none"], "No such file"),
    ])
    def test_what_does_not_fit_is_refused(self, tmp_path, values, match):
        values = [v.format(self.file(tmp_path)) for v in values]
        with pytest.raises(BadInput, match=match):
            probe_templates(values, UNITS)

    def test_templates_of_other_units_are_refused(self, tmp_path):
        with pytest.raises(BadInput, match="none of the model's"):
            probe_templates([str(self.file(tmp_path))], [Unit("a", 4, 70)])
        with pytest.raises(BadInput, match="PROBE=PATH"):
            probe_templates([str(self.file(tmp_path))], [*UNITS, Unit("b", 1, 1)])


def write_bin(folder):
    """A SpikeGLX file of the recording with a sync channel, and its .meta."""
    data = recording(seed=2)[0]
    path = folder / "run_g0_t0.imec0.ap.bin"
    np.c_[data, np.zeros(len(data), np.int16)].tofile(path)
    path.with_suffix(".meta").write_text(
        f"imSampRate={FS:g}\nnSavedChans={CHANNELS + 1}\nsnsApLfSy={CHANNELS},0,1\n~x=(0)\n")
    return path


class TestDetect:
    def test_a_spikeglx_file_becomes_a_session(self, tmp_path, capsys):
        path, known = write_bin(tmp_path), tmp_path / "a.templates"
        known.write_bytes(templates().encode())
        out = tmp_path / "spikes.npz"
        assert main(["detect", str(path), "--templates", str(known), "--out", str(out),
                     "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        words = ["prepare", "--reader", "arrays", str(out), "--out", str(tmp_path / "s"), "--map"]
        assert main([*words, *report["map"]]) == 0
        (file,) = (tmp_path / "s").glob("*.h5")
        session = read_session(file)
        arrays = find_spikes(raw(recording(seed=2)[0]), templates())
        np.testing.assert_array_equal(session.spikes.sample,
                                      np.rint(arrays["spike_times"] * FS).astype(np.int64))
        found = np.c_[session.units.channel, session.units.cluster]
        assert sorted(found.tolist()) == sorted(NAMES.tolist())
        assert session.session == "run_g0_t0.imec0.ap"
        np.testing.assert_allclose(session.domain, np.c_[arrays["domain_start"],
                                                         arrays["domain_end"]])

    def test_wrong_files_are_refused_in_one_line(self, tmp_path, capsys):
        path, known = write_bin(tmp_path), tmp_path / "a.templates"
        known.write_bytes(templates().encode())
        meta = path.with_suffix(".meta")
        for text in ("imSampRate=30000\n", "imSampRate=x\nnSavedChans=1\nsnsApLfSy=1,0,0",
                     f"imSampRate={FS}\nnSavedChans=7\nsnsApLfSy=6,0,1"):
            meta.write_text(text)
            out = str(tmp_path / "x.npz")
            assert main(["detect", str(path), "--templates", str(known), "--out", out]) == 2
            assert capsys.readouterr().err.count("\n") == 1
        with pytest.raises(BadInput, match=r"none\.meta: file"):
            read_bin(path.with_name("none.bin"), POSITION)


class TestAnalyzer:
    """Needs SpikeInterface, which is an extra."""

    def made(self, folder, *, filtered=False):
        core = pytest.importorskip("spikeinterface.core")
        data, samples, units = recording(seed=1)
        recorded = core.NumpyRecording(data, FS)
        probe = pytest.importorskip("probeinterface").Probe(ndim=2)
        probe.set_contacts(POSITION[:, :2], shapes="circle", shape_params={"radius": 5})
        probe.set_device_channel_indices(np.arange(CHANNELS))
        recorded.set_probe(probe)
        recorded = recorded.save(folder=folder / "raw", verbose=False)
        if filtered:
            recorded = pytest.importorskip("spikeinterface.preprocessing").common_reference(
                recorded, dtype="float32")
        sorting = core.NumpySorting.from_samples_and_labels(
            [samples], [NAMES[units, 1]], FS, unit_ids=NAMES[:, 1])
        sorting.set_property("channel", NAMES[:, 0])
        analyzer = core.create_sorting_analyzer(
            sorting, recorded, format="binary_folder", folder=folder / "analyzer", sparse=False)
        analyzer.compute(["random_spikes", "templates", "noise_levels"])
        return folder / "analyzer"

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("filtered", [False, True])
    def test_templates_come_from_the_raw_samples_behind_it(self, tmp_path, capsys, filtered):
        path = self.made(tmp_path, filtered=filtered)
        out = tmp_path / "a.templates"
        assert main(["templates", str(path), "--probe", "a", "--out", str(out), "--json"]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (report["units"], report["missing"]) == (len(NAMES), [])
        found = read_templates(out)
        assert sorted(found.names) == sorted(templates().names)
        for name, row in zip(found.names, range(len(NAMES)), strict=True):
            there = templates().names.index(name)
            np.testing.assert_allclose(found.tensors["waveform"][row],
                                       templates().tensors["waveform"][there], atol=1e-3)
        np.testing.assert_array_equal(found.tensors["noise"], templates().tensors["noise"])

    @pytest.mark.filterwarnings("ignore")
    def test_without_raw_samples_it_says_what_to_give(self, tmp_path, capsys):
        path = self.made(tmp_path)
        import shutil

        shutil.rmtree(tmp_path / "raw")
        assert main(["templates", str(path), "--out", str(tmp_path / "t")]) == 2
        assert "--recording FOLDER" in capsys.readouterr().err
