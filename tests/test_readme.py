"""The README's words are true: its blocks run, and what it names exists.

Every ```bash block runs, in order and in one folder, as a reader would. A block that needs
recordings, a network or minutes has `<!-- skip: reason -->` on the line above (see
`tools/docs_blocks.py`). Links and options are looked at by `tools/check_docs.py`.
"""

import re
from pathlib import Path

import pytest

import neds.cli
import neds_rt.cli
from tools.docs_blocks import blocks, free_ports, run_block

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", ROOT / "bench" / "RESULTS.md",
         ROOT / "CHANGELOG.md", ROOT / "tools" / "twins" / "README.md"]
ALL = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
RUN = [block for block in ALL if block.runs]
SKIPPED = [block for block in ALL if not block.runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def ports():
    """Free ports in place of the default ones."""
    return free_ports()


def test_blocks_are_counted():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(RUN) + len(SKIPPED) == len(re.findall(r"^```bash$", text, re.M))
    marked = [b for page in PAGES for b in blocks(page) if b.reason]
    assert text.count("<!-- skip:") == len(marked), "a skip comment that is not above a block"
    assert len(RUN) >= 2
    assert len(SKIPPED) == 31, "a block was added or no longer runs: say why, and count it here"
    assert all(len(block.reason) > 10 for block in SKIPPED)


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}:{block.line}")
def test_block_runs(block, folder, ports):
    done = run_block(block, folder, ports)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if "neds-rt replay" in block.code:
        decoded = re.search(r"(\d+) decodes of (\d+) bins", done.stdout)
        assert decoded, "the server's summary is missing"
        assert int(decoded[1]) == int(decoded[2]) == 1500  # the last 30 s of 150, in 20 ms bins


def test_the_opening_is_five_sentences_and_a_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening, picture = text.removeprefix("# neds\n\n").split("\n\n")[:2]
    assert len(re.findall(r"\.(?=\s|$)", opening)) == 5
    assert opening.endswith(".")
    assert picture.startswith("![")


def test_two_commands_of_the_front_page_run_in_the_check():
    """`.ci/run` takes both lines from the README by these words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for words in ("&& .venv/bin/neds-rt demo", "&& .venv/bin/pytest"):
        assert len(re.findall(f"^.*{re.escape(words)}$", text, re.M)) == 1
        assert f"'{words}'" in script


def test_commands_named_exist():
    programs = {"neds": neds.cli.COMMANDS, "neds-rt": neds_rt.cli.COMMANDS}
    naming = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used = re.findall(r"(?:^|[\s`/])(neds|neds-rt) ([a-z][a-z-]+)(?=[\s`])", text, re.M)
        shell = {(program, name) for program, name in used if name in _words_in_code(text)}
        unknown = [(program, name) for program, name in shell if name not in programs[program]]
        assert unknown == [], page
        naming += bool(shell)
    assert naming >= 3  # results and twins name scripts alone


def _words_in_code(text):
    """Words that follow a program's name inside backticks or code blocks."""
    code = "\n".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", text, re.S))
    return set(re.findall(r"neds(?:-rt)? ([a-z][a-z-]+)", code))


def test_tree_names_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## Files\n\n```\n(.*?)```", text, re.S)[1]
    folder, checked = ROOT, 0
    for line in tree.splitlines():
        top = re.match(r"([\w/]+/)\s", line)
        if top:
            folder = ROOT / top[1]
        for name in re.findall(r"(?<![\w*./])[\w/]+\.(?:py|hpp|cpp)\b|(?<=^  )[\w/]+/", line):
            first = folder / line.split()[0]  # "data/arrays.py  ...; mapping.py" or "engines/  ..."
            places = [folder / name, first / name, first.parent / name]
            assert any(place.exists() for place in places), f"{folder}: {name}"
            checked += 1
    assert checked > 40
