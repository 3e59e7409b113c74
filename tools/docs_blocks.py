"""Code blocks of the documentation: found, and run as a reader would run them.

A fenced block of `bash` or `python` runs, in order and in one folder a page, unless the line above
it says why not:

    <!-- skip: needs an acquisition program -->

A page that needs a package which the tests may lack says so once, anywhere in it:

    <!-- needs: spikeinterface, pandas -->

Ports are replaced by free ones, so that a run does not collide with a server that is running.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RUNNABLE = ("bash", "python")
PORTS = ("5570", "5580", "5581", "5590")

FENCE = re.compile(
    r"(?:^[ ]*<!-- skip: (?P<reason>[^>]*) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.M | re.S,
)
NEEDS = re.compile(r"^<!-- needs: ([\w, .-]+) -->$", re.M)


class CodeBlock(NamedTuple):
    """One fenced block: its page (path from the root), the line its code begins after, its language
    ("" where it has none), its code, and why it is not run ("" where it is)."""

    page: str
    line: int
    language: str
    code: str
    reason: str

    @property
    def runs(self) -> bool:
        """Whether a test has to run it."""
        return self.language in RUNNABLE and not self.reason


def blocks(page: Path) -> list[CodeBlock]:
    """Return all fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        indent = match["indent"]
        code = re.sub(f"^{indent}", "", match["code"], flags=re.M) if indent else match["code"]
        found.append(CodeBlock(str(page.relative_to(ROOT)), line, match["language"], code,
                               (match["reason"] or "").strip()))
    return found


def missing_packages(page: Path) -> list[str]:
    """Return the packages that the page needs and this environment lacks."""
    needed = NEEDS.search(page.read_text(encoding="utf-8"))
    names = [name.strip() for name in needed[1].split(",")] if needed else []
    return [name for name in names if importlib.util.find_spec(name) is None]


def free_ports(ports: tuple[str, ...] = PORTS) -> dict[str, str]:
    """Return a free port of loopback in place of each."""
    sockets = [socket.socket() for _ in ports]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    chosen = {port: str(held.getsockname()[1])
              for port, held in zip(ports, sockets, strict=True)}
    for held in sockets:
        held.close()
    return chosen


def run_block(
    block: CodeBlock, folder: Path, ports: Mapping[str, str], *, python: str = sys.executable,
    timeout: float = 280.0,
) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder` with the scripts beside `python` first on the path."""
    code = block.code
    if ports:
        code = re.sub(rf"\b({'|'.join(ports)})\b", lambda match: ports[match[0]], code)
    scripts = str(Path(python).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"],
                                "MPLBACKEND": "agg"}
    command = [python, "-c", code]
    if block.language == "bash":
        command = [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=timeout)
