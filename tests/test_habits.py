"""What stands beside the code says what is so: service, image, citation, wheels, templates."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools.check_docs import wrong_commands

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SERVICE = ROOT / "packaging" / "neds-rt.service"
DOCKERFILE = ROOT / "packaging" / "Dockerfile"


def test_the_service_starts_a_command_that_exists_and_stops_it_in_order():
    text = SERVICE.read_text(encoding="utf-8")
    command = re.search(r"^ExecStart=(.*)$", text, re.M)[1]
    assert "neds-rt serve --config" in command
    assert list(wrong_commands(command)) == []
    assert list(wrong_commands("neds-rt serve --configs x")) != []
    assert re.search(r"^KillSignal=SIGINT$", text, re.M)
    assert re.search(r"^RestartPreventExitStatus=2$", text, re.M)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_service(tmp_path):
    unit = tmp_path / SERVICE.name
    text = SERVICE.read_text(encoding="utf-8")
    there = f"ExecStart={shutil.which('true')}"
    unit.write_text(re.sub(r"^ExecStart=\S+", there, text, flags=re.M))
    assert verify(unit) == ""
    unit.write_text(text.replace("LimitMEMLOCK=", "LimitMEMLOK="))
    assert "LimitMEMLOK" in verify(unit)


def verify(unit):
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True,
                          text=True, timeout=60)
    return "\n".join(line for line in done.stderr.splitlines() if unit.name in line)


def test_the_image_is_built_of_what_exists():
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    steps = re.findall(r"^(?:RUN|#  ) +(.*)$", text, re.M)
    assert [problem for step in steps for problem in wrong_commands(step)] == []
    extras = re.search(r"'/src\[([\w,-]+)\]'", text)[1].split(",")
    assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
    bases = re.findall(r"^FROM (\S+)", text, re.M)
    assert bases == [f"nvidia/cuda:${{CUDA}}-{kind}-ubuntu24.04" for kind in ("devel", "base")]
    assert re.search(r"^USER neds$", text, re.M), "the server needs no root"


def test_wheels_are_made_for_every_python_we_take_and_run_the_demo():
    wheels = PYPROJECT["tool"]["cibuildwheel"]
    least = PYPROJECT["project"]["requires-python"].removeprefix(">=").replace(".", "")
    assert wheels["build"][0] == f"cp{least}-*"
    assert list(wrong_commands(wheels["test-command"])) == []
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    for system in ("24.04", "24.04-arm", "macos-15", "macos-15-intel", "windows-2022"):
        assert system in workflow


def test_the_citation_is_of_this_version_and_names_the_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PYPROJECT['project']['version']}\n" in text
    assert "arXiv:2504.08201" in text


def test_files_for_people_are_read_as_yaml():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {"ruff", "mypy", "docs"} == {hook["id"] for hook in hooks}
    for hook in hooks:
        for word in hook["entry"].split():
            assert not word.endswith(".py") or (ROOT / word).is_file()
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem != "config":
            ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
            assert len(set(ids)) == len(ids)
    bug = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "neds-rt doctor --json" in bug
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["cff-version"] == "1.2.0"
