"""Write the READMEs' tables from the results in bench/results, so that no figure is typed by hand.

    python tools/make_tables.py [--results bench/results] [--readme README.md ...]

What stands between `<!-- KIND: ... -->` and `<!-- end: KIND -->` is replaced, and the first comment
then names the files and their commits. A kind without results stays as it is. The place may be on
any of the pages, which are README.md, bench/README.md and bench/RESULTS.md.

    within, encoding, forms, masking, streaming   within-SET*.json, encoding-, forms-, masking-,
                                                  streaming-: rows of all of them are pooled, and a
                                                  table takes the models of its protocol; a set
                                                  has one if a file is of that protocol
    new-session, discrete                         new-session-*.json, steinmetz-*.json
    tried, regions, gpu, latency, throughput      tried-*.json, regions-*.json, gpu-*.json and so on
    memory, compare, sizes, plans, parity, floor  memory*.json, compare*.json and so on
    faults, swap, viewers, blackbox, probes, sources, wheel, bwb     faults*.json and so on

SET is the data set's name up to the next dash; several sets have a table each. Without results of
`within`, its place shows accuracy-*.json, sessions trained alone. Pictures go below their tables:
run tools/make_pictures.py first.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.protocols import MODELS, PROTOCOLS  # noqa: E402
from neds_rt.errors import BadInput  # noqa: E402
from tools.tables import accuracy, compared, engines, outside, precisions, speed, trust  # noqa: E402
from tools.tables.page import Result, origin, read_result, replace_block  # noqa: E402
from tools.tables.rows import Score, pool  # noqa: E402

ORACLES = tuple(name for name, model in MODELS.items() if model.oracle)
POOLED = ("within-*.json", "encoding-*.json", "forms-*.json", "masking-*.json", "streaming-*.json")
# Each kind: where its rows are, the models it takes (none: all), and what makes the table.
SCORES: dict[str, tuple[tuple[str, ...], Sequence[str], Callable[[Sequence[Score]], str]]] = {
    "within": (POOLED, PROTOCOLS["within"], accuracy.within_table),
    "encoding": (POOLED, (*PROTOCOLS["encoding"], *ORACLES), accuracy.encoding_table),
    "forms": (POOLED, PROTOCOLS["forms"], compared.variants_table),
    "masking": (POOLED, PROTOCOLS["masking"], compared.variants_table),
    "streaming": (POOLED, PROTOCOLS["streaming-vs-window"], compared.variants_table),
    "new-session": (("new-session-*.json",), (), accuracy.new_session_table),
    "discrete": (("steinmetz-*.json",), (), accuracy.discrete_table),
}
OTHERS: dict[str, tuple[str, Callable[[Sequence[Result]], str]]] = {
    "tried": ("tried-*.json", compared.tried_table),
    "regions": ("regions-*.json", compared.regions_table),
    "latency": ("latency*.json", speed.latency_table),
    "compare": ("compare*.json", engines.compare_table),
    "sizes": ("sizes*.json", engines.sizes_table),
    "plans": ("plans*.json", engines.plans_table),
    "parity": ("parity*.json", precisions.parity_table),
    "floor": ("floor*.json", precisions.floor_table),
    "gpu": ("gpu-*.json", speed.gpu_table),
    "faults": ("faults*.json", trust.faults_table),
    "attacks": ("attacks*.json", trust.attacks_table),
    "swap": ("swap*.json", trust.swap_table),
    "viewers": ("viewers*.json", trust.viewers_table),
    "blackbox": ("blackbox*.json", trust.blackbox_table),
    "probes": ("probes*.json", trust.probes_table),
    "sources": ("sources*.json", trust.sources_table),
    "raw": ("raw_path*.json", trust.raw_table),
    "throughput": ("throughput*.json", speed.throughput_table),
    "memory": ("memory*.json", speed.memory_table),
    "preparing": ("preparing*.json", speed.preparing_table),
    "wheel": ("wheel*.json", outside.wheel_table),
    "bwb": ("bwb*.json", outside.bwb_table),
}
KINDS = (*SCORES, *OTHERS)
PAGES = (ROOT / "README.md", ROOT / "bench" / "README.md", ROOT / "bench" / "RESULTS.md")
# What tools/make_pictures.py draws of a kind and a data set is shown below the table.
PICTURES = {"alone": ("accuracy", "Velocity R² by session and model, a dot a seed"),
            "within": ("single-multi", "Every session: trained on all against trained on it alone"),
            "masking": ("masking", "Decoding and encoding with each masking scheme left out"),
            "new-session": ("calibration", "Velocity R² against minutes of calibration data")}
Block = tuple[str, list[Result]]  # its text, and the files it is made of


def main(argv: list[str] | None = None) -> int:
    """Rewrite the README; 2 after bad input, named in one line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, nargs="+", default=PAGES)
    args = parser.parse_args(argv)
    try:
        rewrite(args.readme, args.results)
    except BadInput as error:
        print(f"make_tables: {error}", file=sys.stderr)
        return 2
    return 0


def rewrite(pages: Sequence[Path], folder: Path) -> None:
    """Replace the blocks of `pages` that `folder` has results for. Raises `BadInput`."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    found = blocks(folder)
    if not found:
        raise BadInput(folder, "results", "none", "files such as within-*.json or latency*.json")
    for kind, (block, results) in found.items():
        page = page_of(kind, texts)
        if page.parent.name == "bench":  # where pictures are nearer
            block = block.replace("](bench/results/", "](results/")
        texts[page] = replace_block(texts[page], kind, origin(results), block, page)
    for page, text in texts.items():
        staged = page.with_name(f".{page.name}.part")
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, page)


def page_of(kind: str, texts: Mapping[Path, str]) -> Path:
    """The page with a place for a kind, the first of all if none has one."""
    having = (page for page, text in texts.items() if f"\n<!-- {kind}: " in text)
    return next(having, next(iter(texts)))


def blocks(folder: Path) -> dict[str, Block]:
    """The text of every kind that has results, and what it is made of."""
    found = {kind: score_block(folder, kind, *how) for kind, how in SCORES.items()}
    if not found["within"][0]:
        found["within"] = score_block(folder, "alone", ("accuracy-*.json",), (),
                                      accuracy.alone_table)
    for kind, (pattern, make) in OTHERS.items():
        results = read_all(folder, pattern)
        found[kind] = (make(results) if results else "", results)
    return {kind: block for kind, block in found.items() if block[0]}


def score_block(
    folder: Path, kind: str, patterns: Sequence[str], models: Sequence[str],
    make: Callable[[Sequence[Score]], str],
) -> Block:
    """A table for each data set, with a heading where there are several.

    Of the kinds that share their rows, a set has a table if one of its files is of that protocol.
    """
    sets = sets_of(folder, patterns, models)
    if patterns is POOLED:
        sets = {name: results for name, results in sets.items()
                if any(is_of(kind, result) for result in results)}
    made = {name: make(pool(results, models)) for name, results in sets.items()}
    made = {name: block for name, block in made.items() if block}
    heads = {name: f"**{name}**\n\n" if len(made) > 1 else "" for name in made}
    text = "\n".join(heads[name] + block + picture(folder, kind, name)
                     for name, block in made.items())
    return text, [result for name in made for result in sets[name]]


def is_of(kind: str, result: Result) -> bool:
    """Whether a result was run for a kind of table, by its protocols or its name."""
    protocol = "streaming-vs-window" if kind == "streaming" else kind
    named = str(result["file"]).startswith(f"{kind}-")
    return named or protocol in str(result.get("protocol", "")).split(",")


def picture(folder: Path, kind: str, data: str) -> str:
    """The Markdown that shows a kind's picture of a data set, if it was drawn."""
    stem, words = PICTURES.get(kind, ("", ""))
    file = "accuracy.svg" if kind == "alone" else f"{stem}-{data}.svg"
    return f"\n![{words}](bench/results/{file})\n" if stem and (folder / file).exists() else ""


def sets_of(
    folder: Path, patterns: Sequence[str], models: Sequence[str]
) -> dict[str, list[Result]]:
    """Files with a row of one of these models (any, if there are none), by data set."""
    sets: dict[str, list[Result]] = defaultdict(list)
    for pattern in patterns:
        for result in read_all(folder, pattern):
            if not models or {row["model"] for row in result.get("rows", [])} & set(models):
                sets[data_set(result["file"])].append(result)
    return dict(sets)


def data_set(file: str) -> str:
    """The data set that a file of scores is of: indy for `new-session-indy-neds.json`."""
    name = Path(file).stem.removeprefix("new-session-")
    first, *rest = name.split("-")
    named_after_kind = any(pattern.startswith(f"{first}-") for pattern in (*POOLED, "accuracy-"))
    return rest[0] if named_after_kind and rest else first


def read_all(folder: Path, pattern: str) -> list[Result]:
    """The results of one kind, by name. Raises `BadInput`."""
    return [read_result(path) for path in sorted(folder.glob(pattern))]


if __name__ == "__main__":
    sys.exit(main())
