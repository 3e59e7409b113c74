"""Check the documentation without running it: blocks, links, anchors, commands and their options.

    python tools/check_docs.py [--json]

Looks at the pages of `READMES` and all of docs/. Every block has a language; one of bash or python
runs in a test or says why not (`tools/docs_blocks.py`). Every relative link leads to a file and a
heading that exist, as GitHub names headings, which is how the site names them too. Every `neds` and
`neds-rt` command in a block has that name and those options, and the examples that a command's
`--help` gives are taken by its own parser. Nothing is fetched. Exit code 4 if something is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

import neds.cli  # noqa: E402
import neds_rt.cli  # noqa: E402
from neds_rt.dispatch import command_parser  # noqa: E402
from tools.docs_blocks import FENCE, RUNNABLE, CodeBlock, blocks  # noqa: E402

READMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "rt/README.md", "neds/README.md",
           "bench/README.md", "bench/RESULTS.md", "tools/twins/README.md")
SHOWN = ("text", "toml", "json", "console", "yaml", "ini", "tsv")
"""Languages of blocks that only show something: never commands."""

PLAIN = ("README.md", "rt/README.md")
"""Pages whose blocks without a language are pictures and bytes; their python is tested apart."""

PROGRAMS = {"neds": neds.cli.COMMANDS, "neds-rt": neds_rt.cli.COMMANDS}
COMMANDS = [(program, command) for program, table in PROGRAMS.items() for command in table]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.*?)\s*$", re.M)
INDENTED = re.compile(r"(?:^|\n)(?![ ]*(?:[-*|]|\d+\.))[^\n]*\n\n {4}(\S[^\n]*)")


def pages() -> list[Path]:
    """Return every page that is checked."""
    return [ROOT / name for name in READMES] + sorted((ROOT / "docs").rglob("*.md"))


def problems(page: Path) -> Iterator[str]:
    """Yield what is wrong with a page, one line each."""
    found = blocks(page)
    name = str(page.relative_to(ROOT))
    for block in found:
        yield from (f"{name}:{block.line}: {text}" for text in _of_block(block))
    for target in wrong_links(page):
        yield f"{name}: link to {target}: no such file or heading"
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in INDENTED.finditer(text):
        yield f"{name}: indented code block: {match[1][:50]!r}, expected a fence with a language"


def _of_block(block: CodeBlock) -> Iterator[str]:
    if block.language not in (*RUNNABLE, *SHOWN) and not (
        block.page in PLAIN and not block.language
    ):
        yield f"language {block.language!r}, expected one of {', '.join((*RUNNABLE, *SHOWN))}"
    if block.reason and len(block.reason) < 10:
        yield f"reason {block.reason!r} says nothing"
    if block.language == "bash":
        yield from wrong_commands(block.code)


def wrong_commands(code: str) -> Iterator[str]:
    """Yield each use of `neds` or `neds-rt` whose command or option does not exist."""
    lines = code.replace("\\\n", " ").splitlines()
    for line in lines:
        for part in re.split(r"&&|\|\||[|;&]|\$\(", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue  # a quote that goes over several lines: a program of its own
            at = _program_at(words)
            if at is None:
                continue
            program, command = Path(words[at]).name, words[at + 1]
            if command.startswith("-"):
                continue
            if command not in PROGRAMS[program]:
                yield f"{program} {command}: no such command"
                continue
            used = {w.partition("=")[0] for w in words[at + 2:] if w.startswith("--")}
            for option in sorted(used - options(program, command)):
                yield f"{program} {command} {option}: no such option"


def _program_at(words: list[str]) -> int | None:
    """Where the program's name stands, with a word after it: first, or after `-m`."""
    named = next((i for i, w in enumerate(words) if not re.match(r"\w+=|sudo$", w)), 0)
    at = words.index("-m") + 1 if "-m" in words else named
    return at if at + 1 < len(words) and Path(words[at]).name in PROGRAMS else None


@cache
def options(program: str, command: str) -> frozenset[str]:
    """Return the long options of a command, from its own parser."""
    module = importlib.import_module(PROGRAMS[program][command][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return frozenset(o for action in parser._actions for o in action.option_strings)


def examples(program: str, command: str) -> Iterator[str]:
    """Yield the lines of a command's `--help` that show how it is called, continued ones joined."""
    said = command_parser(program, PROGRAMS[program], command).description or ""
    for line in said.replace("\\\n", " ").splitlines():
        if line.startswith(" ") and re.search(r"(?<![\w-])neds(-rt)? ", line):
            yield " ".join(line.split())


def wrong_examples(program: str, command: str) -> Iterator[str]:
    """Yield each example of a command's `--help` that the parser of what it calls refuses."""
    for line in examples(program, command):
        yield from wrong_commands(line)
        words = shlex.split(re.split(r" [>|] ", line)[0])
        at = _program_at(words)
        if at is None or words[at + 1] not in PROGRAMS[Path(words[at]).name]:
            continue
        named, said = Path(words[at]).name, io.StringIO()
        given = [word for word in words[at + 2:] if word != "..."]
        try:
            with redirect_stderr(said):
                command_parser(named, PROGRAMS[named], words[at + 1]).parse_args(given)
        except SystemExit:
            yield f"{line}: {said.getvalue().strip()}"


def wrong_links(page: Path) -> Iterator[str]:
    """Yield the targets of relative links that lead nowhere."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]+`", "``", text)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings as GitHub makes them, -1 added to the second."""
    if page.suffix != ".md":
        return frozenset()
    seen: dict[str, int] = {}
    found = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        again = seen.get(slug, 0)
        seen[slug] = again + 1
        found.add(f"{slug}-{again}" if again else slug)
    return frozenset(found)


def main(argv: list[str] | None = None) -> int:
    """Print every problem; 4 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    wrong = [text for page in pages() for text in problems(page)]
    wrong += [f"{program} {command} --help: {text}" for program, command in COMMANDS
              for text in wrong_examples(program, command)]
    found = [block for page in pages() for block in blocks(page)]
    facts = {"pages": len(pages()), "blocks": len(found), "run": sum(b.runs for b in found),
             "marked": sum(bool(b.reason) for b in found),
             "examples": sum(1 for words in COMMANDS for _ in examples(*words)),
             "problems": len(wrong)}
    for text in wrong:
        print(text, file=sys.stderr)
    print(json.dumps(facts) if args.json else ", ".join(f"{v} {k}" for k, v in facts.items()))
    return 4 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
