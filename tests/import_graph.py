"""Which of our modules a command can come to import, read off their source without running it.

Edges are import statements wherever they stand, in functions too, and texts that name a module:
tables such as `ENGINES` ("neds_rt.engines.native:NativeEngine") and programs started with `-m`.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {"neds_rt": ROOT / "rt" / "neds_rt", "neds": ROOT / "neds"}
_NAMED = re.compile(r"((?:neds_rt|neds)(?:\.\w+)+)(?::\w+)?")


def file_of(module):
    """Source of one of our modules, None if there is no such one."""
    package, *parts = module.split(".")
    if package not in PLACES:
        return None
    place = PLACES[package].joinpath(*parts)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def module_of(path):
    for package, place in PLACES.items():
        if path.is_relative_to(place):
            parts = path.relative_to(place).with_suffix("").parts
            return ".".join([package, *(part for part in parts if part != "__init__")])
    raise ValueError(path)


def entry_points():
    """Modules that the commands begin with, by command, and those that `-m` begins with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts = {name: target.partition(":")[0] for name, target in project["scripts"].items()}
    return scripts | {f"-m {package}": f"{package}.__main__" for package in PLACES}


@cache
def tree_of(module):
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


@cache
def imports_of(module):
    """(our modules, others by full name) that a module may import."""
    named = set()
    package = module if file_of(module).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            named |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = _NAMED.fullmatch(node.value)
            named |= {found[1]} if found and file_of(found[1]) else set()
    ours, others = set(), set()
    for name in named:
        if name.split(".")[0] not in PLACES:
            others.add(name)
            continue
        parts = name.split(".")  # with every package on the way, which is imported as well
        ours |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)
                 if file_of(".".join(parts[:n]))}
    return frozenset(ours), frozenset(others)


def reached(*roots):
    """All our modules that `roots` can come to import, themselves included."""
    found, ahead = set(), list(roots)
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += imports_of(module)[0]
    return found


def all_modules():
    return {module_of(path) for place in PLACES.values() for path in place.rglob("*.py")}
