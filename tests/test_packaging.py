"""What an install contains and asks for: a small base without torch, and everything it runs."""

import re
import subprocess
import tomllib
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import neds.cli
import neds_rt.cli
from neds.data.ibl_one import LISTS
from neds_rt.bundle import read_bundle
from neds_rt.demo import BUNDLE, UNITS
from neds_rt.synthetic_task import STEP_S

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements):
    return {re.split(r"[<>=!~;\[ ]", text)[0].lower() for text in requirements}


def test_base_install_is_the_runtime_alone():
    base = names(PROJECT["dependencies"])
    assert not base & {"torch", "h5py", "onnx", "safetensors", "scikit-learn", "matplotlib"}
    assert {"numpy", "pyzmq", "msgspec", "rich"} <= base


def test_metadata_is_that_of_this_tree():
    assert metadata("neds")["Version"] == PROJECT["version"]
    always = [text for text in requires("neds") if "extra ==" not in text]
    assert names(always) == names(PROJECT["dependencies"])


@pytest.mark.parametrize("cli", [neds.cli, neds_rt.cli], ids=["neds", "neds-rt"])
def test_every_command_is_a_file_of_its_package(cli):
    package = Path(cli.__file__).parent
    modules = {path.stem for path in (package / "commands").glob("*.py")} - {"__init__"}
    listed = {module.rpartition(".")[2] for module, _ in cli.COMMANDS.values()}
    assert modules == listed


def test_demo_bundle_is_small_whole_and_the_demo_animals():
    assert BUNDLE.stat().st_size < 1_000_000
    bundle = read_bundle(BUNDLE)
    assert len(bundle.manifest.units) == UNITS
    assert bundle.manifest.bin_size_s == STEP_S
    assert {m.name for m in bundle.manifest.modalities} == {"wheel", "whisker", "choice", "block"}
    assert bundle.onnx_bytes is not None
    assert set(bundle.manifest.parity) >= {"native", "onnx"}


def test_licence_and_readme_are_named_and_there():
    assert (ROOT / PROJECT["readme"]).is_file()
    assert "MIT" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "MIT"


def test_lists_of_sessions_are_files_of_the_package_that_the_wheel_takes_whole():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert "neds" in build["scikit-build"]["wheel"]["packages"]
    assert "exclude" not in build["scikit-build"]["wheel"]
    for path in LISTS.values():
        assert path.is_relative_to(ROOT / "neds")
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode
        # 128: an unpacked archive, in which nothing can be ignored.
        assert ignored in (1, 128), f"{path} is ignored, so the wheel leaves it out"
