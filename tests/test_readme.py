"""The README's words are true: its blocks run, and what it names exists.

Every ```bash block runs, in order and in one folder, as a reader would. A block that needs
recordings, a network or minutes has `<!-- skip: reason -->` on the line above. Ports are replaced
by free ones, so that the test does not collide with a server that is running.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import neds.cli
import neds_rt.cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md"]
BLOCK = re.compile(
    r"(?:^<!-- skip: (?P<reason>[^>]*) -->\n)?^```bash\n(?P<code>.*?)^```$", re.M | re.S
)


class CodeBlock(NamedTuple):
    page: str
    line: int
    code: str
    reason: str


def blocks():
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            name = str(page.relative_to(ROOT))
            found.append(CodeBlock(name, line, match["code"], (match["reason"] or "").strip()))
    return found


RUN = [block for block in blocks() if not block.reason]
SKIPPED = [block for block in blocks() if block.reason]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def ports():
    """Free ports in place of the default ones."""
    chosen = {}
    for port in ("5570", "5580"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            chosen[port] = str(probe.getsockname()[1])
    return chosen


def test_blocks_are_counted():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(RUN) + len(SKIPPED) == len(re.findall(r"^```bash$", text, re.M))
    assert text.count("<!-- skip:") == len(SKIPPED), "a skip comment that is not above a block"
    assert len(RUN) >= 2
    assert len(SKIPPED) == 20, "a block was added or no longer runs: say why, and count it here"
    assert all(len(block.reason) > 10 for block in SKIPPED)


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}:{block.line}")
def test_block_runs(block, folder, ports):
    code = re.sub("|".join(ports), lambda match: ports[match[0]], block.code)
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", code], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if "neds-rt replay" in code:
        decoded = re.search(r"(\d+) decodes of (\d+) bins", done.stdout)
        assert decoded, "the server's summary is missing"
        assert int(decoded[1]) == int(decoded[2]) == 1500  # the last 30 s of 150, in 20 ms bins


def test_two_commands_of_the_front_page_run_in_the_check():
    """`.ci/run` takes both lines from the README by these words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for words in ("&& .venv/bin/neds-rt demo", "&& .venv/bin/pytest"):
        assert len(re.findall(f"^.*{re.escape(words)}$", text, re.M)) == 1
        assert f"'{words}'" in script


def test_commands_named_exist():
    programs = {"neds": neds.cli.COMMANDS, "neds-rt": neds_rt.cli.COMMANDS}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        used = re.findall(r"(?:^|[\s`/])(neds|neds-rt) ([a-z][a-z-]+)(?=[\s`])", text, re.M)
        shell = {(program, name) for program, name in used if name in _words_in_code(text)}
        assert shell, f"{page}: names no command"
        unknown = [(program, name) for program, name in shell if name not in programs[program]]
        assert unknown == []


def _words_in_code(text):
    """Words that follow a program's name inside backticks or code blocks."""
    code = "\n".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", text, re.S))
    return set(re.findall(r"neds(?:-rt)? ([a-z][a-z-]+)", code))


def test_links_and_files_named_exist():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page}: {target}"


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
