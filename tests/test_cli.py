"""Both commands from outside: help, exit codes, and a runtime that needs no training library."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import neds.cli
import neds_rt.cli

PROGRAMS = {"neds": neds.cli, "neds-rt": neds_rt.cli}
COMMANDS = [(program, name) for program, cli in PROGRAMS.items() for name in cli.COMMANDS]

# What `pip install neds[train]` adds to the base install, by import name.
TRAIN_ONLY = ("torch", "h5py", "onnx", "safetensors", "tqdm", "sklearn", "matplotlib")

BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAIN_ONLY!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120
    )


def script(program):
    """Path of the installed console script, beside the interpreter that runs the tests."""
    path = Path(sys.executable).parent / program
    assert path.exists(), f"{path} is missing: install the project with pip first"
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_installed_script_lists_every_command(program):
    done = subprocess.run([script(program), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    listed = re.findall(r"^  (\S+)  +(\S.*)$", done.stdout, flags=re.M)
    assert dict(listed) == {name: text for name, (_, text) in PROGRAMS[program].COMMANDS.items()}


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_has_help(program, name, capsys):
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program].main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {program} {name}")
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)(.*(?:\n {8,}.*)*)", text, flags=re.M)
    silent = [option for option, rest in options if not re.search(r"\s{2,}\S", rest)]
    assert silent == [], "options without a line of help"


@pytest.mark.parametrize("program", PROGRAMS)
def test_unknown_command_is_one_line_and_exit_2(program, capsys):
    assert PROGRAMS[program].main(["frobnicate"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "frobnicate" in err


@pytest.mark.parametrize("program", PROGRAMS)
def test_version(program, capsys):
    assert PROGRAMS[program].main(["--version"]) == 0
    assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_help_of_the_runtime_without_training_libraries():
    code = BLOCK + "from neds_rt.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = run(code, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: neds-rt" in done.stdout


def test_every_runtime_module_imports_without_training_libraries():
    code = BLOCK + (
        "import importlib, pkgutil, neds_rt\n"
        "names = [m.name for m in pkgutil.walk_packages(neds_rt.__path__, 'neds_rt.')"
        " if not m.name.endswith('__main__')]\n"
        "for name in names: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules\n"
        "print(len(names))"
    )
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 8


def test_the_blocker_blocks():
    done = run(BLOCK + "import h5py")
    assert done.returncode != 0
    assert "blocked: h5py" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_no_heavy_library(program):
    module = PROGRAMS[program].__name__
    heavy = ("numpy", "numba", "onnxruntime", "rich", "zmq", "torch", "h5py")
    code = (
        f"import sys; from {module} import main; main(['--help']);"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = run(code)
    assert done.stdout.splitlines()[-1] == "[]"
