"""The documentation's words are true: blocks run, links lead somewhere, the site builds strictly.

Every block of `bash` and `python` runs, in order and in one folder a page, unless it says why not
(see `tools/docs_blocks.py`); pages of `ELSEWHERE` are run by test_readme.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import neds_rt.commands.top
from tools.check_docs import (
    COMMANDS,
    examples,
    main,
    pages,
    problems,
    wrong_commands,
    wrong_examples,
)
from tools.docs_blocks import ROOT, blocks, free_ports, missing_packages, run_block

ELSEWHERE = ("README.md", "bench/README.md", "bench/RESULTS.md", "CHANGELOG.md",
             "tools/twins/README.md")
RUN = [page for page in pages() if str(page.relative_to(ROOT)) not in ELSEWHERE
       and any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_only_what_exists(page):
    assert list(problems(page)) == []


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_a_page_run(page, tmp_path):
    missing = missing_packages(page)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    ports = free_ports()
    for block in blocks(page):
        if not block.runs:
            continue
        done = run_block(block, tmp_path, ports)
        assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr


def test_what_runs_is_most_of_what_could():
    """A block that no longer runs is noticed here."""
    all_blocks = [b for page in pages() if page.is_relative_to(ROOT / "docs") for b in blocks(page)]
    run = [b for b in all_blocks if b.runs]
    marked = [b for b in all_blocks if b.reason]
    assert len(run) >= 15
    assert len(marked) <= 25, "a block was added or no longer runs: say why, and count it here"


@pytest.fixture
def page():
    """A page beside the others, taken away again."""
    path = ROOT / "docs" / "page-of-a-test.md"
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("```\nneds info x\n```\n", "language"),
        ("```bash\nneds frobnicate x\n```\n", "neds frobnicate: no such command"),
        ("```bash\nneds info x --frob 1\n```\n", "--frob: no such option"),
        ("<!-- skip: no -->\n```bash\nls\n```\n", "says nothing"),
        ("See [there](absent.md).\n", "absent.md"),
        ("See [there](index.md#absent).\n", "index.md#absent"),
        ("So:\n\n    neds info x\n", "indented"),
    ],
)
def test_what_is_wrong_is_found(page, text, named, capsys):
    page.write_text(f"# A page\n\n{text}", encoding="utf-8")
    found = list(problems(page))
    assert len(found) == 1
    assert named in found[0]
    assert main([]) == 4
    assert named in capsys.readouterr().err


def test_commands_are_found_wherever_they_stand():
    code = "cd x && neds info a \\\n    --frob 2 | tee y\nneds-rt serve --probe a=b &\nneds -h"
    assert list(wrong_commands(code)) == ["neds info --frob: no such option"]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_examples_of_help_are_taken_by_the_parser(program, command):
    shown = list(examples(program, command))
    assert any(f"{program} {command}" in line for line in shown), "--help shows no example"
    assert list(wrong_examples(program, command)) == []


@pytest.mark.parametrize(("line", "named"), [
    ("neds-rt top --frob 1", "--frob: no such option"),
    ("neds-rt frobnicate", "frobnicate: no such command"),
    ("neds-rt dashboard --port x", "--port: invalid int value: 'x'"),
    ("neds-rt dashboard \\\n        --por 5", "--por: no such option"),
    ("neds-rt completion basic > f", "invalid choice: 'basic'"),
    ("neds-rt completion > f", "required"),
])
def test_an_example_that_is_wrong_is_found(line, named, monkeypatch, capsys):
    monkeypatch.setattr(neds_rt.commands.top, "__doc__", f"Words.\n\n    {line}\n")
    found = list(wrong_examples("neds-rt", "top"))
    assert any(named in text for text in found), found
    assert all("\n" not in text for text in found)
    assert main([]) == 4
    assert f"neds-rt top --help: {found[0]}" in capsys.readouterr().err


def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir",
         str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("index.html", "reference/wire/index.html", "api/runtime/index.html"):
        assert (tmp_path / "site" / name).stat().st_size > 5000
    for name, word in (("runtime", "Client"), ("adapters", "FalconDecoder"),
                       ("adapters", "NedsUnit")):
        assert word in Path(tmp_path / f"site/api/{name}/index.html").read_text()


def test_symptoms_are_words_of_the_programs():
    """What the troubleshooting page says that a program says is in the program's source."""
    sources = [p for folder in ("rt/neds_rt", "neds") for p in (ROOT / folder).rglob("*.py")]
    text = re.sub(r'"\s+f?"', "", " ".join(p.read_text(encoding="utf-8") for p in sources))
    text += (ROOT / "rt/src/reasons.hpp").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    assert len(said) > 25
    assert [words for words in said if words not in text] == []
