"""The arrows between packages: neds_rt <- neds <- bench, tools, tests; no other is allowed.

Imports inside functions count as well, and so do import strings such as "neds.model:Model", since
the tables of engines, sources and commands are made of them.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "neds_rt": ROOT / "rt" / "neds_rt",
    "neds": ROOT / "neds",
    "bench": ROOT / "bench",
    "tools": ROOT / "tools",
    "tests": ROOT / "tests",
}
FORBIDDEN = {
    "neds_rt": {"neds", "torch", "bench", "tools", "tests"},
    "neds": {"bench", "tools", "tests"},
    "bench": {"tests"},
    "tools": {"tests"},
    "tests": set(),
}
IMPORT_STRING = re.compile(r"([A-Za-z_]\w*)(\.\w+)+(:\w+)?|([A-Za-z_]\w*)(\.\w+)*:[A-Za-z_]\w*")
COMMAND_FILES = sorted(
    path
    for package in ("neds_rt", "neds")
    for path in (FOLDERS[package] / "commands").glob("*.py")
)


def imported(tree: ast.AST, package: str) -> set[str]:
    """Return the top-level names a module imports, by statement or by import string."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = IMPORT_STRING.fullmatch(node.value)
            if match and not node.value.endswith((".py", ".toml", ".h5", ".neds")):
                names.add(match.group(1) or match.group(4))
    return names


def violations(package: str, path: Path) -> set[str]:
    """Return the forbidden packages that the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return imported(tree, package) & FORBIDDEN[package]


@pytest.mark.parametrize("package", FOLDERS)
def test_arrows(package):
    files = sorted(FOLDERS[package].rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): sorted(bad)
        for path in files
        if (bad := violations(package, path))
    }
    assert found == {}
    if package in ("neds_rt", "neds"):
        assert len(files) > 3  # the walk saw the package


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "import torch.nn as nn",
        "from neds.model import Model",
        "def f():\n    from neds import data",
        "TABLE = {'x': 'neds.model:Model'}",
        "import importlib\nimportlib.import_module('torch.nn')",
    ],
)
def test_walk_sees_a_wrong_arrow(tmp_path, line):
    path = tmp_path / "module.py"
    path.write_text(line)
    assert violations("neds_rt", path)


def test_walk_lets_a_right_arrow_pass(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""About neds."""\nfrom . import wire\nfrom neds_rt import wire\n')
    assert violations("neds_rt", path) == set()


@pytest.mark.parametrize("path", COMMAND_FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_command_modules_import_only_the_standard_library(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in _at_import(tree.body):
        names |= imported(node, "relative")
    assert names <= set(sys.stdlib_module_names)


def _at_import(body):
    """Yield the import statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for field in ("body", "orelse", "finalbody"):
                yield from _at_import(getattr(node, field, []))
