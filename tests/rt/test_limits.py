"""What is read has a size that is known before: everything beyond is refused in one line."""

import os
import threading

import msgspec
import numpy as np
import pytest

from neds_rt.bundle import ModalityOut, Shape, make_bundle, random_bundle
from neds_rt.cli import main
from neds_rt.config import MAX_PROBES, MAX_TEXT, ServeConfig, load_config
from neds_rt.errors import BadInput
from neds_rt.recording.header import open_recording
from neds_rt.small_files import MAX_TEXT_BYTES, read_small
from neds_rt.sources import units
from neds_rt.templates import decode_templates, make_templates, read_templates
from tests.rt.raw_band import CHANNELS, templates

HEADER = "probe\tchannel\tcluster\tstream\telectrode\tsorted_id\n"
LINE = "p\t{0}\t1\t\tE {0}\t1\n"
TIMES = ("stale_after", "close_after", "clock_jump", "deadline_ms", "idle_exit", "hang_after",
         "budget_ms")


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert ": found " in text
    assert ", expected " in text
    return text


class TestFiles:
    def test_as_many_bytes_as_the_limit_and_no_more(self, tmp_path):
        path = tmp_path / "f"
        path.write_bytes(b"x" * 10)
        assert read_small(path, "file", "text", 10) == b"x" * 10
        path.write_bytes(b"x" * 11)
        with pytest.raises(BadInput) as error:
            read_small(path, "file", "text", 10)
        assert one_line(error) == (
            f"{path}: size: found more than 10 bytes, expected at most 10: text")

    def test_a_pipe_without_end_is_left_after_the_limit(self, tmp_path):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        sent = []

        def feed():
            with path.open("wb", buffering=0) as pipe:
                while True:
                    try:
                        sent.append(pipe.write(b"x" * 1000))
                    except BrokenPipeError:
                        return

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        with pytest.raises(BadInput, match="size: found more than 5000 bytes"):
            read_small(path, "file", "text", 5000)
        thread.join(30)
        assert not thread.is_alive()
        assert sum(sent) < 1 << 20

    @pytest.mark.parametrize("name", ["none", "a\0b", "."])
    def test_what_cannot_be_read_is_said(self, tmp_path, name):
        with pytest.raises(BadInput, match=r": file: found .*, expected text"):
            read_small(f"{tmp_path}/{name}", "file", "text")


class TestConfiguration:
    def test_a_file_without_end_is_refused(self, capsys, tmp_path):
        path = tmp_path / "serve.toml"
        path.write_bytes(b"#" * (MAX_TEXT_BYTES + 1))
        assert main(["serve", "--config", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{path}: size: found more than {MAX_TEXT_BYTES} bytes" in error

    @pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "overruns = " + "9" * 5000])
    def test_what_the_parser_cannot_take_is_refused(self, tmp_path, text):
        path = tmp_path / "serve.toml"
        path.write_text(text)
        with pytest.raises(BadInput) as error:
            load_config(str(path), {})
        assert one_line(error).startswith(f"{path}: TOML: found ")

    @pytest.mark.parametrize("name", TIMES)
    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e300])
    def test_times_that_nobody_waits_for_are_refused(self, name, value):
        config = ServeConfig(probe={"a": "replay:x"}, model="m", **{name: value})
        with pytest.raises(BadInput) as error:
            config.check()
        assert f"--{name.replace('_', '-')}: found {value}" in one_line(error)

    def test_texts_and_probes_have_limits(self):
        good = ServeConfig(probe={"a": "x" * MAX_TEXT}, model="m" * MAX_TEXT)
        good.check()
        many = {str(k): "replay:x" for k in range(MAX_PROBES + 1)}
        for change, option in ((dict(model="m" * (MAX_TEXT + 1)), "--model"),
                               (dict(probe={"a": "x" * (MAX_TEXT + 1)}), "--probe"),
                               (dict(probe={"x" * (MAX_TEXT + 1): "a"}), "--probe"),
                               (dict(curve_server={"a": "x" * (MAX_TEXT + 1)}), "--curve-server"),
                               (dict(probe=many), "--probe")):
            with pytest.raises(BadInput) as error:
                msgspec.structs.replace(good, **change).check()
            assert f"serve: {option}: found " in one_line(error)


class TestUnitFiles:
    @pytest.mark.parametrize(("text", "found"), [
        (LINE.format("9" * 30), "line 2, channel: found " + "9" * 30),
        (LINE.format("9" * 5000), "line 2, channel: found 5000 characters"),
        (f"p\t1\t1\t\t{'E' * 1001}\t1\n", "line 2, electrode: found 1001 characters"),
        (f"p\t1\t1\t\t{'E' * 200_000}\t1\n", "file: found field larger"),
    ])
    def test_cells_have_limits(self, tmp_path, text, found):
        path = tmp_path / "units.tsv"
        path.write_text(HEADER + text)
        with pytest.raises(BadInput) as error:
            units.read_unit_file(str(path))
        assert one_line(error).startswith(f"{path}: {found}")

    def test_lines_and_bytes_have_limits(self, tmp_path, monkeypatch):
        path = tmp_path / "units.tsv"
        path.write_text(HEADER + "".join(LINE.format(k) for k in range(6)))
        monkeypatch.setattr(units, "MAX_LINES", 6)
        assert len(units.read_unit_file(str(path))) == 6
        monkeypatch.setattr(units, "MAX_LINES", 5)
        with pytest.raises(BadInput, match="lines: found more than 5, expected a line a unit"):
            units.read_unit_file(str(path))
        monkeypatch.setattr(units, "MAX_FILE_BYTES", path.stat().st_size - 1)
        with pytest.raises(BadInput, match="size: found more than"):
            units.read_unit_file(str(path))


class TestBins:
    MODALITIES = (ModalityOut("v", "continuous", 1),)
    SHAPE = Shape(hidden=8, layers=1, heads=1, mlp=8, window=3)

    @pytest.mark.parametrize("size", [5e-324, 1e-12, 0.0004, 10.1, 1e300, -1.0])
    def test_a_bundle_of_bins_that_no_server_can_keep_up_with_is_refused(self, size):
        with pytest.raises(BadInput) as error:
            random_bundle(self.SHAPE, 2, self.MODALITIES, bin_size_s=size)
        assert f"bin_size_s: found {size}, expected 0.0005 to 10 s" in one_line(error)

    @pytest.mark.parametrize("size", [0.0005, 0.001, 10])
    def test_others_are_taken(self, size):
        made = random_bundle(self.SHAPE, 2, self.MODALITIES, bin_size_s=size)
        m = made.manifest
        again = make_bundle(session="s", subject="m", bin_size_s=m.bin_size_s, shape=m.shape,
                            units=m.units, modalities=m.modalities, weights=made.weights)
        assert again.manifest.bin_size_s == size


class TestTemplates:
    def changed(self, **tensors):
        return make_templates(templates().settings, templates().tensors | tensors, "f")

    def test_a_file_that_is_too_large_is_refused(self, tmp_path, monkeypatch):
        path = tmp_path / "t"
        path.write_bytes(templates().encode())
        assert read_templates(path).n_channels == CHANNELS
        monkeypatch.setattr("neds_rt.templates.MAX_FILE_BYTES", path.stat().st_size - 1)
        with pytest.raises(BadInput, match="size: found more than"):
            read_templates(path)

    def test_a_small_file_that_stands_for_a_large_model_is_refused(self, monkeypatch):
        t = templates().tensors
        dense = 4 * t["waveform"].shape[0] * t["waveform"].shape[1] * CHANNELS
        monkeypatch.setattr("neds_rt.templates.MAX_DENSE_BYTES", dense)
        data = templates().encode()
        decode_templates(data, "f")
        monkeypatch.setattr("neds_rt.templates.MAX_DENSE_BYTES", dense - 1)
        with pytest.raises(BadInput) as error:
            decode_templates(data, "f")
        assert f"f: waveforms: found {dense} bytes over all channels" in one_line(error)

    @pytest.mark.parametrize(("name", "value"), [
        ("waveform", 1e30), ("noise", 1e30), ("noise", 1e-30), ("amplitude", 1e30),
        ("position", 1e30), ("correlation", 2.0), ("unit", 0.5),
    ])
    def test_numbers_that_leave_the_floats_are_refused(self, name, value):
        tensor = templates().tensors[name].copy()
        tensor[-1] = value
        with pytest.raises(BadInput) as error:
            self.changed(**{name: tensor})
        assert name in one_line(error)

    @pytest.mark.parametrize("kind", ["indefinite", "lopsided"])
    def test_noise_that_is_no_covariance_is_refused(self, kind):
        correlation = templates().tensors["correlation"].copy()
        if kind == "indefinite":  # three channels cannot all be each other's opposite
            correlation[:3, :3] = np.where(np.eye(3), 1, -1)
        else:
            correlation[5, 3] += 0.5
        with pytest.raises(BadInput, match="tensor 'correlation': found no covariance"):
            self.changed(correlation=correlation)


class TestSockets:
    def test_a_block_that_would_take_a_gigabyte_is_refused(self):
        """One small message tells of channel 4095, the next one of 65536 samples."""
        from neds_rt.sources import oe_raw
        from tools import fuzz_seeds
        from tools.fuzz_targets import _collectors, cut

        _collectors.cache_clear()
        collector = _collectors()[1]
        channel = oe_raw.MAX_CHANNELS - 1
        n = oe_raw.MAX_VALUES // oe_raw.MAX_CHANNELS
        for sample, size in ((0, 1), (1, n + 1), (1, n)):
            message = fuzz_seeds.raw_message(channel, sample, [0.0], num_samples=size)
            envelope, header, _ = cut(message, 3)
            collector._take([envelope, header, bytes(4 * size)], None)
        assert collector._counters["bad_range"] == 1
        assert collector._microvolts.shape == (oe_raw.MAX_CHANNELS, n)
        _collectors.cache_clear()


class TestRecordings:
    @pytest.mark.parametrize("change", [{"open_bins": 1 << 40}, {"probe": {}}, {"overruns": 0},
                                        {"clock_jump": 1e300}])
    def test_options_that_no_server_took_are_refused(self, tmp_path, change):
        from tools.fuzz_seeds import recordings

        data = msgspec.json.decode(recordings()[0])
        (tmp_path / "recording.json").write_bytes(msgspec.json.encode(data))
        assert open_recording(tmp_path).header.config.open_bins == 512
        data["config"] |= change
        (tmp_path / "recording.json").write_bytes(msgspec.json.encode(data))
        with pytest.raises(BadInput) as error:
            open_recording(tmp_path)
        assert one_line(error).startswith(f"{tmp_path}/recording.json: config: found serve: --")
