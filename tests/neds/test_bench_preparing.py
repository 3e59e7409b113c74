"""The bench of preparing many sessions, small: killed, resumed, nothing read twice."""

import json

from bench.preparing import main


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    out = tmp_path / "preparing.json"
    assert main(["--sessions=6", "--recordings=2", "--seconds=40", "--units=20",
                 f"--folder={tmp_path}", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["passed"]
    assert (found["there"], found["left_behind"]) == (6, [])
    assert found["resumed"]["skipped"] == found["killed"]["finished"] >= 2
    assert found["nothing_left_to_do"]["skipped"] == 6
    assert 50 < found["peak_mb"] < 2000
    assert [p.name for p in tmp_path.iterdir()] == ["preparing.json"]
