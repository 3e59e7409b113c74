"""The programs that check wheel and tutorial say in one line what is wrong."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neds_rt.errors import CheckFailed
from tools import check_wheel, tutorial1
from tools.docs_blocks import ROOT, CodeBlock, blocks, run_block


def test_a_wheel_that_is_not_there(tmp_path, capsys):
    found = check_wheel.main(["--wheel", str(tmp_path / "x.whl"), "--wheels", str(tmp_path)])
    error = capsys.readouterr().err
    assert found == 2
    assert error.count("\n") == 1
    assert "x.whl" in error


def test_what_is_known_of_a_wheel_is_kept(monkeypatch, tmp_path, capsys):
    facts = {"wheel": "neds-1.whl", "bytes": 5, "decodes": 250}
    monkeypatch.setattr(check_wheel, "check", lambda *_: facts)
    out = tmp_path / "wheel.json"
    assert check_wheel.main(["--out", str(out)]) == 0
    assert "decodes: 250" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert kept["command"].startswith("python tools/check_wheel.py")
    assert facts.items() <= kept.items()
    assert kept["machine"]["cores"] >= 1
    (tmp_path / "file").write_text("")
    assert check_wheel.main(["--out", str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_new_environment_sees_no_compiler(monkeypatch, tmp_path):
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert shutil.which("gcc")
    python = tmp_path / "venv" / "bin" / "python"
    environment = check_wheel.bare(python)
    assert "PYTHONPATH" not in environment
    assert not [n for n in check_wheel.COMPILERS if shutil.which(n, path=environment["PATH"])]


def test_a_program_that_fails_is_named_with_its_last_words():
    words = [sys.executable, "-c", "import sys; sys.exit('broken thing')"]
    with pytest.raises(CheckFailed, match="ended with 1: broken thing"):
        check_wheel.call(words, os.environ)


def test_the_tutorial_shows_the_pictures_that_it_makes(tmp_path):
    page = tutorial1.PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^\]]*\]\(\.\./images/([\w.-]+)\)", page))
    shown.remove("dashboard.png")  # of the demo, by tools/make_screenshot.py
    assert shown == set(tutorial1.PICTURES.values())
    assert all((ROOT / "docs" / "images" / name).stat().st_size > 10_000 for name in shown)
    with pytest.raises(CheckFailed, match=r"live\.png"):
        tutorial1.keep(tmp_path, None)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 4), np.uint8))
    for made in tutorial1.PICTURES:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / made)
    tutorial1.keep(tmp_path, tmp_path / "kept")
    kept = list((tmp_path / "kept").iterdir())
    assert {p.name for p in kept} == shown
    for path in kept:
        with Image.open(path) as small:
            assert small.size == (80, 60)
        assert path.stat().st_size < (tmp_path / "live.png").stat().st_size / 2


def test_the_tutorial_installs_what_its_page_says():
    page = tutorial1.PAGE.read_text(encoding="utf-8")
    assert f"'PATH_OF_THE_CHECKOUT{tutorial1.EXTRAS}' {' '.join(tutorial1.PACKAGES)}\n" in page
    words = "".join(block.code for block in blocks(tutorial1.PAGE) if block.runs)
    assert "neds-rt dashboard" in words
    assert "dashboard" in tutorial1.EXTRAS


def test_blocks_are_found_with_their_reasons(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# x\n\n<!-- skip: needs a rig -->\n```bash\nfalse\n```\n\n1. y\n\n"
                    "    ```python\n    print(5570)\n    ```\n\n```text\nz\n```\n")
    monkeypatch.setattr("tools.docs_blocks.ROOT", tmp_path)
    found = blocks(page)
    assert [(b.language, b.runs, b.reason) for b in found] == [
        ("bash", False, "needs a rig"), ("python", True, ""), ("text", False, "")]
    assert [b.line for b in found] == [4, 10, 14]
    assert run_block(found[1], tmp_path, {"5570": "1"}).stdout == "1\n"
    failing = CodeBlock("page.md", 1, "bash", "false | true\n", "")
    assert run_block(failing, Path(tmp_path), {}).returncode == 1
