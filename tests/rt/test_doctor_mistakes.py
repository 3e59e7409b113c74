"""Every mistake of `tests/rt/mistakes` is found by its line, and the table says which that is."""

import json
import re
from pathlib import Path

import pytest

from neds_rt.cli import main
from tests.rt.mistakes import openephys, others, this_machine

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md"
OF_RIG = openephys.MISTAKES + others.MISTAKES
MISTAKES = OF_RIG + this_machine.MISTAKES


def found_by_doctor(capsys, rig, seconds, *options):
    code = main(["doctor", f"--ports={','.join(map(str, rig.ports))}", "--json",
                 f"--seconds={seconds}", *rig.options, *options])
    checks = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    assert (code == 4) == any(check["status"] == "fail" for check in checks)
    return {check["name"]: check for check in checks}


def assert_found(mistake, checks, port):
    found = checks[mistake.check.replace("PORT", f"port {port}")]
    assert found["status"] == mistake.status, found
    assert mistake.advice in found["advice"], found


@pytest.mark.parametrize("mistake", OF_RIG, ids=lambda mistake: mistake.what)
def test_a_planted_mistake_is_found(capsys, tmp_path, mistake):
    with mistake.plant(tmp_path) as rig:
        checks = found_by_doctor(capsys, rig, 0.4, "--no-machine")
    assert_found(mistake, checks, rig.ports[0])
    wrong = {name for name, check in checks.items() if check["status"] != "ok"}
    # What has no numbers is said of each Event Broadcaster and each Trodes.
    unnumbered = {f"port {rig.ports[0]} losses"}
    assert wrong - unnumbered <= {mistake.check.replace("PORT", f"port {rig.ports[0]}")}


@pytest.mark.parametrize("mistake", this_machine.MISTAKES, ids=lambda mistake: mistake.what)
def test_a_planted_state_of_the_machine_is_found(capsys, tmp_path, mistake):
    with mistake.plant(tmp_path) as rig:
        checks = found_by_doctor(capsys, rig, 0.1)
    assert_found(mistake, checks, rig.ports[0])


def test_the_table_has_these_mistakes_and_no_others():
    rows = re.findall(r"^\| (.+?) \| (fail|warn) \| `(.+?)` \| (.+?) \|$",
                      PAGE.read_text(encoding="utf-8"), re.M)
    assert rows == [(m.what, m.status, m.check, m.advice) for m in MISTAKES]
    assert len({m.what for m in MISTAKES}) == len(MISTAKES)
