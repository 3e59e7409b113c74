"""The security table: every attack of `tools/attacks.py` on a running server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography")
ROOT = Path(__file__).parents[2]
MUST_BE_TRIED = (
    "unknown key", "without a key", "replayed frame", "frame of 1 000 001 spikes", "65 MiB",
    "zip bomb", "path traversal", "HTML", "control command from another user",
    *(f"changed in {name}" for name in ("manifest", "weights", "model.onnx", "signature")),
)


def test_no_attack_gets_through():
    done = subprocess.run([sys.executable, "tools/attacks.py", "--quick", "--json"], cwd=ROOT,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["attacks"]
    assert {row["result"] for row in rows} <= {"refused", "no harm", "skipped"}
    for words in MUST_BE_TRIED:
        assert [row for row in rows if words in row["attack"]], words
    assert all(row["said"] and "\n" not in row["said"] for row in rows)
    skipped = [row["attack"] for row in rows if row["result"] == "skipped"]
    assert set(skipped) <= {"control command from another user"}
