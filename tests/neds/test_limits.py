"""Files that are read whole are read up to a limit, and refused beyond it in one line."""

from pathlib import Path

import pytest

from neds import checkpoint, detect, report_output
from neds.config import load_recipe
from neds.data import ibl, phy
from neds.data.alf import Alf
from neds.data.build import Builder
from neds.data.mapping import load_mapping
from neds.data.reader import EventOptions, parse_options
from neds.sweep_space import load_space
from neds_rt.errors import BadInput
from neds_rt.small_files import MAX_TEXT_BYTES


def options(path):
    return parse_options([str(path)], EventOptions, "reader")


def rate(path):
    return phy._sample_rate(path.parent, Builder("s", "", EventOptions()))


TEXTS = [
    ("r.toml", lambda path: load_recipe(str(path))), ("m.toml", load_mapping),
    ("o.toml", options), ("s.toml", lambda path: load_space(str(path))), ("params.py", rate),
]


@pytest.mark.parametrize(("name", "read"), TEXTS)
def test_texts_of_more_than_a_mebibyte_are_refused(tmp_path, name, read):
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(BadInput) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: size: found more than {MAX_TEXT_BYTES} bytes, expected at mos")
    assert "\n" not in text


@pytest.mark.parametrize(("name", "read"), TEXTS[:4])
@pytest.mark.parametrize("text", ["a = " + "[" * 50_000, "a = " + "9" * 5000, "a = \udcff"])
def test_what_no_parser_takes_is_one_line(tmp_path, name, read, text):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("module", "limit", "name", "read"), [
    (checkpoint, "MAX_INFO_BYTES", "checkpoint.json", lambda p: checkpoint.read_info(p.parent)),
    (report_output, "MAX_REPORT_BYTES", "report.json", report_output.read_report),
    (detect, "MAX_META_BYTES", "x.meta", detect._read_meta),
    (ibl, "MAX_OWN_BYTES", "alf/_neds_session.neds.json", lambda p: ibl._own(Alf(p.parents[1]))),
])
def test_larger_files_have_limits_of_their_own(tmp_path, monkeypatch, module, limit, name, read):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{" + b" " * 100)
    monkeypatch.setattr(module, limit, 100)
    with pytest.raises(BadInput, match=r": size: found more than 100 bytes, expected at most 100"):
        read(path)


def test_a_table_of_clusters_that_is_too_large_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(phy, "MAX_TABLE_BYTES", 30)
    (tmp_path / "cluster_group.tsv").write_text("cluster_id\tgroup\n1\tgood\n")
    (tmp_path / "cluster_more.tsv").write_text("cluster_id\tmore\n" + "1\tx\n" * 20)
    build = Builder("s", "", EventOptions())
    assert phy._tables(Path(tmp_path), build) == {1: {"group": "good"}}
