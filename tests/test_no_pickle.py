"""Nothing that is read can become code: no pickle and no eval in what is installed or run here."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rt/neds_rt", "neds", "tools", "bench")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "marshal",
           "shelve", "joblib", "jsonpickle", "code", "codeop", "xmlrpc"}
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
ATTRIBUTES = {"read_pickle", "to_pickle", "recv_pyobj", "send_pyobj", "unsafe_load", "full_load"}
# Where a plain call may run code, and the argument that says it may not.
LOADERS = {"torch.load": ("weights_only", True), "joblib.load": None, "yaml.load": None,
           "os.system": None, "os.popen": None}


def dotted(node):
    """The name of what is called, `a.b.c`, as far as it is one."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def offences(tree):
    """What in a module could turn data into code, each as `line: what`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if set(name.split(".")) & MODULES:
                yield f"{node.lineno}: import {name}"
        if isinstance(node, ast.Constant) and node.value in MODULES - {"code"}:
            yield f"{node.lineno}: {node.value!r}, perhaps imported by name"
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield f"{node.lineno}: .{node.attr}"
        if isinstance(node, ast.Call):
            yield from call_offences(node)


def call_offences(node):
    name = dotted(node.func)
    keywords = {word.arg: getattr(word.value, "value", "?") for word in node.keywords}
    if name in BUILTINS:
        yield f"{node.lineno}: {name}()"
    if keywords.get("allow_pickle", False) is not False:
        yield f"{node.lineno}: {name}(allow_pickle=...)"
    if keywords.get("shell", False) is not False and name.startswith("subprocess"):
        yield f"{node.lineno}: {name}(shell=...)"
    if name in LOADERS:
        needed = LOADERS[name]
        if needed is None or keywords.get(needed[0]) is not needed[1]:
            yield f"{node.lineno}: {name}()"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_read_becomes_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(offences(tree)) == []


@pytest.mark.parametrize("text", [
    "import pickle", "import os, marshal", "from shelve import open", "import multiprocessing.dill",
    "eval('1')", "exec(x)", "compile(x, '', 'exec')", "__import__('os')",
    "importlib.import_module('pickle')", "np.load(f, allow_pickle=True)",
    "np.load(f, allow_pickle=flag)", "torch.load(f)", "torch.load(f, weights_only=False)",
    "yaml.load(f)", "pd.read_pickle(f)", "sock.recv_pyobj()", "os.system('ls')",
    "subprocess.run('ls', shell=True)",
])
def test_what_is_looked_for_is_found(text):
    assert list(offences(ast.parse(text)))


def test_what_is_harmless_is_not():
    text = ("re.compile('x'); model.eval(); np.load(f); torch.load(f, weights_only=True); "
            "np.load(f, allow_pickle=False)")
    assert list(offences(ast.parse(text))) == []


def test_a_server_imports_none_of_it():
    """What a server, a client and a sink load, pickle is not among their own doing.

    numpy and the standard library import pickle themselves; what counts is that none of our modules
    holds it, under whatever name.
    """
    import neds_rt.bundle
    import neds_rt.client
    import neds_rt.server  # noqa: F401

    ours = [m for name, m in list(sys.modules.items()) if name.startswith("neds_rt")]
    assert len(ours) > 20
    held = {
        (module.__name__, value.__name__)
        for module in ours for value in vars(module).values()
        if getattr(value, "__name__", "") in MODULES and type(value).__name__ == "module"
    }
    assert held == set()
