"""Nothing that is read can become code: no pickle and no eval in what is installed or run here."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from neds_rt.control import Request, ask
from tests import import_graph
from tests.rt.serving import Publisher, small_bundle
from tests.rt.spike_frames import Sender

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


# The import graph, from the commands on.

# What turns objects into pickles and back by itself when it passes them to another process, and
# where that is allowed: both ends are our own processes, of one user, started by one command.
PICKLING = ("multiprocessing", "ray", "concurrent.futures.ProcessPoolExecutor", "dask", "joblib",
            "torch.multiprocessing", "torch.distributed", "torch.utils.data", "mpi4py", "loky")
BETWEEN_OWN_PROCESSES = {
    "neds.preparing": ("multiprocessing", "calls and rows of `neds prepare --jobs` between the "
                       "command and the workers it started, over pipes that nobody else has"),
    "neds.cluster": ("ray", "functions and rows between the command and its workers on a Ray "
                     "cluster, which runs what its users send it: that is what it is for, and why "
                     "its ports have to be kept from others. Trials of a sweep are JSON text"),
}
# What no command imports: it is imported by a user's program, or named on a command line.
BY_USERS = {
    "neds.adapters", "neds.adapters.counts", "neds.adapters.ezmsg_unit", "neds.adapters.falcon",
    "neds.cudagraph_engine", "neds.torch_engine", "neds.window_engines", "neds.data.objects",
    "neds.data.alf_write", "neds.plots.drift", "neds.reference", "neds.reference_config",
    "neds.reference_data", "neds.reference_masking", "neds.reference_train",
}
# Where a module's name is computed, and where the names come from.
BY_NAME = {
    "neds_rt.dispatch": "COMMANDS", "neds_rt.sinks": "SINKS", "neds_rt.sinks.outlet": "OUTLETS",
    "neds_rt.sources": "SOURCES", "neds_rt.plans": "PRODUCTS", "neds.baselines": "a table",
    "neds_rt.engines.cuda": "a constant", "neds.preparing": "a table of readers",
    "neds.data.reader": "constants of the readers",
    "neds_rt.engines": "ENGINES, or --engine: never a bundle or a recording",
    "neds_rt.children": "modules of ours, for child processes",
}
ENTRIES = import_graph.entry_points()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_nothing_that_a_command_imports_becomes_code(entry):
    modules = import_graph.reached(entry)
    assert len(modules) > 100
    found = {m: list(offences(import_graph.tree_of(m))) for m in modules}
    assert {m: told for m, told in found.items() if told} == {}
    outside = {name for m in modules for name in import_graph.imports_of(m)[1]}
    assert {name for name in outside if set(name.split(".")) & MODULES} == set()


def test_the_graph_leaves_nothing_out():
    unreached = import_graph.all_modules() - import_graph.reached(*ENTRIES.values())
    assert unreached == BY_USERS
    for module in ("neds_rt.server", "neds_rt.bundle_reader", "neds_rt.sinks.lsl",
                   "neds_rt.engines.onnx", "neds_rt.sources.spikeglx", "neds_rt.children"):
        assert module in import_graph.reached(ENTRIES["neds-rt"])
    assert not any(m.partition(".")[0] == "neds" for m in import_graph.reached(ENTRIES["neds-rt"]))


def test_pickle_between_own_processes_is_where_it_is_said_to_be():
    found = {
        (module, name) for module in import_graph.all_modules() for name in PICKLING
        if any(f"{other}.".startswith(f"{name}.") for other in import_graph.imports_of(module)[1])
    }
    assert found == {(module, name) for module, (name, _) in BETWEEN_OWN_PROCESSES.items()}
    assert set(BETWEEN_OWN_PROCESSES) & import_graph.reached(ENTRIES["neds-rt"]) == set()


def test_modules_are_imported_by_name_where_it_is_said_only():
    found = {
        module for module in import_graph.all_modules()
        for node in ast.walk(import_graph.tree_of(module)) if isinstance(node, ast.Call)
        if dotted(node.func).split(".")[-1] in ("import_module", "run_module", "run_path",
                                                "spec_from_file_location")
    }
    assert found == set(BY_NAME)


# A server as it runs.

WATCHED = """
import json, sys
told = {"find_class": 0, "marshal": []}

def watch(event, args):
    if event == "pickle.find_class":
        told["find_class"] += 1
    elif event in ("marshal.loads", "marshal.load"):
        frame = sys._getframe(1)
        if frame.f_code.co_filename != "<frozen importlib._bootstrap_external>":
            told["marshal"].append(frame.f_code.co_filename)

sys.addaudithook(watch)
import pickle, collections
told["works"] = pickle.loads(pickle.dumps(collections.OrderedDict)) and told["find_class"]
told["find_class"] = 0
from neds_rt import server
from neds_rt.cli import main
code = main(sys.argv[1:])
names = ("pickle", "marshal", "shelve")
held = {name: sorted(m for m, module in list(sys.modules.items())
                     if any(value is sys.modules.get(name) or getattr(value, "__module__", "") in (
                         name, "_" + name) for value in list(vars(module).values())
                         if value is not None))
        for name in names if name in sys.modules}
print(json.dumps(told | {"code": code, "modules": sorted(sys.modules), "held": held}))
"""
# Who holds them in a server: numpy and pyzmq have a method for whoever wants pickles, the standard
# library reads its own compiled code.
HOLDERS = {
    "pickle": {"pickle", "_pickle", "__main__", "_compat_pickle", "copyreg"},
    "marshal": {"marshal", "zipimport", "pkgutil", "_frozen_importlib", "importlib._bootstrap",
                "_frozen_importlib_external", "importlib._bootstrap_external"},
}
LIBRARIES = ("numpy", "zmq")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What a server had loaded when it ended, having decoded, been recorded and been asked."""
    folder = tmp_path_factory.mktemp("served")
    folder.chmod(0o700)
    uri = f"zmq+ipc://{folder}/probe"
    probe = Publisher(uri)
    words = [sys.executable, "-c", WATCHED, "serve", f"--probe=a={uri}", "--max-bins=20",
             f"--model={small_bundle(folder / 'x.neds')}", "--out=tcp://127.0.0.1:*", "--json",
             f"--record={folder}/flight", f"--control={folder}/control", "--close-after=60"]
    process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        probe.wait()
        sender = Sender()
        for k in range(10):
            probe.send(sender.frame(600 * k, 600 * k + 600))
        assert ask(str(folder / "control"), Request("info"), 30)
        for k in range(10, 20):
            probe.send(sender.frame(600 * k, 600 * k + 600))
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        probe.close()
    return json.loads(out.splitlines()[-1])


def test_a_server_makes_no_object_of_a_pickle(served):
    assert served["works"] == 1  # such a one would be seen
    assert (served["code"], served["find_class"], served["marshal"]) == (0, 0, [])


def test_a_server_loads_none_that_does(served):
    modules = set(served["modules"])
    assert {"neds_rt.server", "neds_rt.control", "neds_rt.recording.flight"} <= modules
    tops = {name.partition(".")[0] for name in modules}
    refused = MODULES - {"pickle", "_pickle", "marshal"} | {
        "multiprocessing", "ray", "torch", "neds", "h5py"}
    assert tops & refused == set()
    for name, holders in served["held"].items():
        others = {m for m in holders if m.partition(".")[0] not in LIBRARIES}
        assert others <= HOLDERS.get(name, set()), name
