"""The fault table, short: a real server, real sockets, and a judge that has to be able to fail."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.rt.serving import ROOT
from tools.fault_rig import Rig, judge
from tools.fault_table import FAULTS
from tools.faults import get_well


@pytest.mark.parametrize("names", [
    "one frame lost,one probe unplugged", "acquisition restarts,engine not a number"])
def test_nothing_wrong_is_called_valid(names, tmp_path):
    out = tmp_path / "faults.json"
    subprocess.run([sys.executable, "tools/faults.py", "--runs=2", f"--faults={names}",
                    f"--out={out}"], cwd=ROOT, check=False, timeout=200, capture_output=True)
    for row in json.loads(out.read_text())["faults"]:
        assert row["valid_checked"] > 50
        assert row["wrong_and_valid"] == row["unreported_lost"] == row["never_recovered"] == 0
        assert row["alarms"] == row["runs"]


def test_the_judge_notices_a_wrong_decode_and_a_bin_that_nobody_told_of():
    with Rig(7) as rig:
        assert get_well(rig)
        for _ in range(30):
            rig.tick()
        summary = rig.end()
        assert judge(rig, summary) == (sum(d.valid for d in rig.decodes), [], 0)
        valid = [d for d in rig.decodes if d.valid]
        rig.truth[(valid[5].session, valid[5].bin)] += np.uint16(1)
        wrong = judge(rig, summary).wrong
        assert wrong[0] == valid[5].seq
        rig.decodes.remove(valid[-3])
        assert judge(rig, summary).unreported >= 1


def test_there_are_faults_enough():
    assert len(FAULTS) >= 18
    assert all((fault.do.__doc__ or "").strip() for fault in FAULTS.values())
