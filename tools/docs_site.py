"""Hooks of MkDocs: the READMEs are pages of the site as they are, and links hold in both places.

A page of `docs/` links to `../rt/README.md#bins` as GitHub needs it. On the site the sections of
the READMEs are pages of their own, named in `PAGES`, and such links are turned to the page that has
the heading. What lies elsewhere in the repository is linked at `extra.source_url` of mkdocs.yml,
and is plain text while that is empty. Nothing is written into the checkout.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

# Page of the site: its title, its README, and the sections of it ("*": those no other page has).
PAGES = {
    "reference/wire.md": ("Wire protocol", "rt/README.md",
                          ("Sockets", "Spike frames", "Bins", "Decode messages")),
    "reference/acquisition.md": ("Acquisition programs", "rt/README.md",
                                 ("Acquisition programs",)),
    "reference/sinks.md": ("Sinks", "rt/README.md", ("Sinks",)),
    "reference/engines.md": ("Engines", "rt/README.md",
                             ("What a step computes", "Engines and precisions",
                              "Engines on TensorRT")),
    "reference/server.md": ("The runtime", "rt/README.md", ("*",)),
    "reference/data.md": ("Recordings", "neds/README.md", ("Data",)),
    "reference/evaluation.md": ("Evaluation", "neds/README.md", ("Evaluation",)),
    "reference/training.md": ("Training and export", "neds/README.md", ("*",)),
    "reference/benchmarks.md": ("Benchmarks", "bench/README.md", ("*",)),
    "reference/results.md": ("Results, and how it works", "README.md", ("*",)),
    "reference/results-in-full.md": ("Results in full", "bench/RESULTS.md", ("*",)),
    "reference/changelog.md": ("Changelog", "CHANGELOG.md", ("*",)),
    "contributing.md": ("Contributing", "CONTRIBUTING.md", ("*",)),
}
FENCE = re.compile(r"(^[ ]*```.*?^[ ]*```[ ]*$)", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages made of READMEs, and the pictures that they show."""
    for name in PAGES:
        files.append(File.generated(config, name, content=page_text(name)))
    for picture in sorted((ROOT / "bench" / "results").glob("*.svg")):
        files.append(File.generated(config, f"images/results/{picture.name}",
                                    abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links out of docs/ to the pages of the site that hold what they lead to."""
    name = page.file.src_uri
    home = posixpath.dirname(PAGES[name][1] if name in PAGES else f"docs/{name}")
    source_url = (config["extra"] or {}).get("source_url", "")

    def turn(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        if re.match(r"[a-z]+:", target) or (target.startswith("#") and name not in PAGES):
            return match[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(home, path)) if path else PAGES[name][1]
        found = place(file, anchor)
        if found is None:
            there = f"{source_url}/{file}{'#' if anchor else ''}{anchor}"
            return f"[{text}]({there})" if source_url else text
        here = posixpath.relpath(found, posixpath.dirname(name) or ".")
        return f"{bang}[{text}]({here}{'#' if anchor else ''}{anchor})"

    parts = FENCE.split(markdown.replace("<details>", "<details markdown>"))
    parts[::2] = [LINK.sub(turn, part) for part in parts[::2]]
    return "".join(parts)


def place(file: str, anchor: str) -> str | None:
    """Return the site's page for a file of the repository, None for one that has none."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.startswith("bench/results/") and file.endswith(".svg"):
        return f"images/results/{posixpath.basename(file)}"
    pages = [name for name, (_, readme, _) in PAGES.items() if readme == file]
    for name in pages:
        if anchor and anchor in slugs(page_text(name)):
            return name
    return next((name for name in pages if "*" in PAGES[name][2]), None)


@cache
def page_text(name: str) -> str:
    """Return the sections that belong to a page, under its title."""
    title, readme, wanted = PAGES[name]
    introduction, sections = split(readme)
    if "*" in wanted:
        taken = {s for _, r, w in PAGES.values() if r == readme for s in w}
        parts = [introduction, *(text for head, text in sections.items() if head not in taken)]
    else:
        parts = [sections[head] for head in wanted]
    return f"# {title}\n\n" + "\n".join(parts)


@cache
def split(readme: str) -> tuple[str, dict[str, str]]:
    """Return a page's text before its first section, without title, and its sections by heading."""
    parts = FENCE.split((ROOT / readme).read_text(encoding="utf-8"))
    sections: dict[str, str] = {}
    head, introduction = "", ""
    for i, part in enumerate(parts):
        for piece in re.split(r"^(?=## )", part, flags=re.M) if i % 2 == 0 else [part]:
            if i % 2 == 0 and piece.startswith("## "):
                head = piece[3:].partition("\n")[0].strip()
                sections[head] = piece
            elif head:
                sections[head] += piece
            else:
                introduction += re.sub(r"\A# .*\n", "", piece)
    return introduction, sections


def slugs(text: str) -> set[str]:
    """Return the anchors of a text's headings as GitHub names them."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?)\s*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found
