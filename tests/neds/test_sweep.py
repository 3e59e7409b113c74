"""A sweep: its space, its study, and what happens when trials or the sweep itself die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from neds.cli import main
from neds.config import RunConfig, load_recipe
from neds.data.store import write_session
from neds.sweep_process import LocalWorker, WorkerDied, set_up
from neds.sweep_space import apply, load_space, parse_space, recipe_toml
from neds_rt.errors import BadInput, NedsError
from tests.neds.conftest import make_session

optuna = pytest.importorskip("optuna")

from neds.sweep import Plan, Sweep, counted, interrupted, result, summary  # noqa: E402

SPACE = {"train": {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
         "model": {"window": [10, 20]}}
FAST = ["--recipe", "smoke", "--set", "train.steps=4", "--set", "train.validate_every=2",
        "--set", "model.layers=1", "--set", "data.bin_size_s=0.05", "--threads", "1"]


class Scripted:
    """A worker that answers by a function of the recipe instead of training."""

    def __init__(self, score):
        self.score, self.waiting, self.stopped = score, [], False

    def exchange(self, message):
        if message and "sessions" in message:
            return {"ready": 1, "drops": {"sessions": 0}}
        if message and "config" in message:
            config = msgspec.convert(message["config"], RunConfig)
            answer = self.score(config, message["seeds"])
            self.waiting = answer if isinstance(answer, list) else [answer]
        elif message and message.get("prune"):
            return {"pruned": True}
        answer = self.waiting.pop(0)
        if isinstance(answer, str):
            raise WorkerDied(answer)
        return answer

    def stop(self):
        self.stopped = True

    close = stop


def by_rate(config, seeds):
    return {"scores": [1 - abs(config.train.learning_rate - 5e-3) * 100 + s for s in seeds]}


def plan(**changes):
    return Plan(**({"config": load_recipe("smoke"), "space": parse_space(SPACE, "test"),
                    "sessions": ("a.h5",)} | changes))


def sweep(folder, start, **changes):
    made = plan(**changes)
    return Sweep(folder, made, start, made.setup(1, "cpu"))


@pytest.fixture(scope="module")
def session_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "made.h5"
    write_session(make_session(bins=600), path)
    return path


@pytest.fixture
def space_file(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("[sweep.train]\nlearning_rate = { low = 1e-3, high = 1e-2, log = true }\n"
                    "[sweep.model]\nwindow = [10, 20]\n")
    return path


def test_packaged_space_and_recipes_fit():
    space = load_space("default")
    assert "train.learning_rate" in space.fields
    for name in ("single", "smoke", "indy"):
        config = load_recipe(name)
        middle = {key: (of.low + of.high) / 2 for key, of in space.fields.items()}
        assert apply(config, middle).train.learning_rate == middle["train.learning_rate"]


@pytest.mark.parametrize(("tree", "words"), [
    ({}, "no field"),
    ({"data": {"bin_size_s": [0.01, 0.02]}}, "data.bin_size_s"),
    ({"train": {"seed": [0, 1]}}, "train.seed"),
    ({"train": {"lerning_rate": [0.1]}}, "lerning_rate"),
    ({"train": {"learning_rate": {"low": 1.0, "high": 0.1}}}, "low below high"),
    ({"train": {"learning_rate": {"low": 0.0, "high": 0.1, "log": True}}}, "above 0 with log"),
    ({"train": {"learning_rate": {"low": 0.01, "hihg": 0.1}}}, "hihg"),
    ({"train": {"steps": {"low": 0.5, "high": 10.5}}}, "steps"),
    ({"train": {"steps": {"low": 10, "high": 20, "step": 0.5}}}, "step 0.5"),
    ({"train": {"steps": []}}, "a list"),
    ({"train": {"steps": [[1], [2]]}}, "a list"),
    ({"train": {"steps": 5}}, "a list"),
    ({"model": {"form": ["stream", 7]}}, "form"),
    ({"nothing": {"x": [1]}}, "nothing.x"),
])
def test_wrong_spaces_are_named(tree, words):
    with pytest.raises(BadInput, match=words.replace(".", r"\.")):
        parse_space(tree, "space.toml")


def test_space_files(tmp_path):
    with pytest.raises(BadInput, match="packaged space"):
        load_space("nothing")
    with pytest.raises(BadInput, match="readable"):
        load_space(str(tmp_path / "absent.toml"))
    path = tmp_path / "x.toml"
    path.write_text("[model]\nhidden = 3\n")
    with pytest.raises(BadInput, match=r"one table, \[sweep\]"):
        load_space(str(path))
    path.write_text("[sweep]\ntrain.behaviour_weights.choice = { low = 0.1, high = 2.0 }\n"
                    "model.layers = { low = 1, high = 4 }\n")
    space = load_space(str(path))
    assert list(space.fields) == ["train.behaviour_weights.choice", "model.layers"]
    changed = apply(RunConfig(), {"train.behaviour_weights.choice": 0.5, "model.layers": 2})
    assert changed.train.behaviour_weights == {"choice": 0.5}
    drawn = space.suggest(optuna.trial.FixedTrial({"train.behaviour_weights.choice": 0.5,
                                                   "model.layers": 2}))
    assert drawn == {"train.behaviour_weights.choice": 0.5, "model.layers": 2}


def test_masking_shares_add_up_and_the_window_form_keeps_its_length():
    config = apply(RunConfig(), {"masking.decoding": 0.8, "masking.ratio": 0.5})
    shares = msgspec.structs.asdict(config.masking)
    assert shares.pop("ratio") == 0.5
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["decoding"] == pytest.approx(0.5)
    window = apply(RunConfig(), {"model.form": "window", "model.window": 40})
    assert window.train.bins == 40
    with pytest.raises(BadInput, match="heads"):
        apply(RunConfig(), {"model.heads": 3})


def test_recipe_is_written_so_that_it_is_read_back(tmp_path):
    config = apply(RunConfig(), {"train.learning_rate": 1.23456789e-5, "model.form": "window",
                                 "train.clip": float("inf"),
                                 "train.behaviour_weights.left paw": 0.3})
    config = msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, behaviours=['say "x"', "é"]))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(config, "two\nlines"))
    assert load_recipe(str(path)) == config


def test_study_finds_the_best_resumes_and_writes_a_recipe(tmp_path):
    made = sweep(tmp_path, lambda: Scripted(by_rate), seeds=(0, 2))
    made.work(6, 1)
    found = result(made)
    assert found["trials"]["complete"] == 6
    best = found["best"]
    assert best["score"] == pytest.approx(sum(best["scores"]) / 2)
    recipe = load_recipe(str(tmp_path / "best.toml"))
    assert recipe.train.learning_rate == best["params"]["train.learning_rate"]
    assert recipe.model.window == best["params"]["model.window"]
    assert json.loads((tmp_path / "result.json").read_text()) == found
    before = (tmp_path / "best.toml").read_bytes()
    again = sweep(tmp_path, lambda: Scripted(by_rate), seeds=(0, 2))
    again.work(6, 1)  # enough already
    assert (tmp_path / "best.toml").read_bytes() == before
    again = sweep(tmp_path, lambda: Scripted(by_rate), seeds=(0, 2))
    again.work(8, 1)
    rates = [t.params["train.learning_rate"] for t in again.study().trials]
    assert len(set(rates)) == len(rates) == 8
    assert list((tmp_path / "owners").iterdir()) == []


def test_the_recipe_itself_is_the_first_trial_when_the_space_holds_it(tmp_path):
    config = apply(load_recipe("smoke"), {"model.window": 20, "train.learning_rate": 2.5e-3})
    made = sweep(tmp_path, lambda: Scripted(by_rate), config=config)
    made.work(1, 1)
    assert result(made)["best"]["params"] == {"train.learning_rate": 2.5e-3, "model.window": 20}


def test_same_seed_same_trials(tmp_path):
    drawn = []
    for name in ("a", "b"):
        made = sweep(tmp_path / name, lambda: Scripted(by_rate), sampler_seed=3)
        made.work(3, 1)
        drawn.append([t.params for t in made.study().trials])
    assert drawn[0] == drawn[1]


def test_another_plan_in_the_same_folder_is_refused_by_what_differs(tmp_path):
    sweep(tmp_path, lambda: Scripted(by_rate)).work(1, 1)
    with pytest.raises(BadInput, match="another seeds"):
        sweep(tmp_path, lambda: Scripted(by_rate), seeds=(0, 1))
    with pytest.raises(BadInput, match="another recipe"):
        sweep(tmp_path, lambda: Scripted(by_rate), config=load_recipe("single"))


def test_failed_killed_and_impossible_trials_are_counted_and_the_study_goes_on(tmp_path):
    endings = iter([{"failed": "ValueError: boom"}, "killed by SIGKILL"])

    def start():
        return Scripted(lambda config, seeds: next(endings, None) or by_rate(config, seeds))

    space = parse_space({**SPACE, "model": {"window": [10, 20], "heads": [2, 3]}}, "test")
    made = sweep(tmp_path, start, space=space)
    made.work(12, 1)
    found = result(made)
    errors = " | ".join(f["error"] for f in found["failures"])
    assert "boom" in errors
    assert "SIGKILL" in errors
    assert "model.heads" in errors  # 32 is not divisible by 2 * 3
    assert found["trials"]["complete"] + found["trials"]["failed"] == 12
    assert found["trials"]["complete"] >= 2


def test_nothing_but_failures_is_a_failed_check_that_names_the_last(tmp_path):
    made = sweep(tmp_path, lambda: Scripted(lambda c, s: {"failed": "OSError: no"}))
    made.work(2, 1)
    with pytest.raises(NedsError, match="no trial of 2 succeeded; the last: OSError: no") as stop:
        result(made)
    assert stop.value.exit_code == 4
    assert not (tmp_path / "best.toml").exists()


def test_bad_trials_are_pruned_by_the_median(tmp_path):
    scores = iter([0.9] * 5 + [0.1])

    def reporting(config, seeds):
        value = next(scores)
        return [{"report": [2, value]}, {"report": [4, value]}, {"scores": [value]}]

    made = sweep(tmp_path, lambda: Scripted(reporting))
    made.work(6, 1)
    assert result(made)["trials"] == {"complete": 5, "pruned": 1, "failed": 0, "interrupted": 0,
                                      "running": 0}


def test_several_jobs_share_the_trials(tmp_path):
    workers = []

    def start():
        workers.append(Scripted(by_rate))
        return workers[-1]

    made = sweep(tmp_path, start)
    made.work(9, 3)
    assert result(made)["trials"]["complete"] == 9
    assert all(worker.stopped for worker in workers)


def test_two_processes_on_one_study_make_the_trials_asked_for_together(tmp_path):
    def slow(config, seeds):
        time.sleep(0.02)
        return by_rate(config, seeds)

    both = [sweep(tmp_path, lambda: Scripted(slow)) for _ in range(2)]
    threads = [threading.Thread(target=made.work, args=(8, 1)) for made in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = both[0].study().trials
    assert [t.state.name for t in trials] == ["COMPLETE"] * 8
    assert len({t.user_attrs["owner"] for t in trials}) == 2
    assert len({t.params["train.learning_rate"] for t in trials}) == 8


def test_timeout_ends_running_trials_as_interrupted(tmp_path):
    class Endless(Scripted):
        def exchange(self, message):
            if message and "sessions" in message:
                return {"ready": 1, "drops": {}}
            while not self.stopped:
                time.sleep(0.01)
            raise WorkerDied("killed by SIGKILL")

    made = sweep(tmp_path, lambda: Endless(by_rate))
    made.work(5, 2, timeout_s=0.3)
    assert result(made)["trials"] == {"complete": 0, "pruned": 0, "failed": 0, "interrupted": 2,
                                      "running": 0}
    made = sweep(tmp_path, lambda: Scripted(by_rate))
    made.work(1, 1)
    assert result(made)["trials"]["complete"] == 1


def test_refused_recordings_end_the_sweep_and_leave_no_running_trial(tmp_path):
    class Refusing(Scripted):
        def exchange(self, message):
            return {"refused": "sessions: usable sessions: found 0 of 1, expected one or more"}

    made = sweep(tmp_path, lambda: Refusing(by_rate))
    with pytest.raises(NedsError, match="0 of 1"):
        made.work(3, 2)
    trials = summary(made.study(), made.plan)["trials"]
    assert trials["running"] == 0
    assert trials["complete"] == 0


def test_trials_of_a_dead_process_are_made_up_for_and_those_of_a_living_one_kept(tmp_path):
    made = sweep(tmp_path, lambda: Scripted(by_rate))
    study = made.study()
    for owner in ("dead", made.owner):
        study.ask().set_user_attr("owner", owner)
    made.work(3, 1)
    trials = study.get_trials()
    assert interrupted(trials[0])
    assert not counted(trials[0])
    assert trials[1].state.name == "RUNNING"
    assert sum(t.state.name == "COMPLETE" for t in trials) == 2


def test_worker_trains_reports_and_prunes(session_file):
    config = load_recipe("smoke", ["train.steps=4", "train.validate_every=2", "model.layers=1",
                                   "data.bin_size_s=0.05"])
    worker = LocalWorker(1)
    try:
        made = plan(config=config, sessions=(str(session_file),))
        drops = set_up(worker, made.setup(1, "cpu"))
        assert drops["sessions"] == 0
        trial = {"config": msgspec.to_builtins(config), "seeds": [0, 1]}
        steps, answer = [], worker.exchange(trial)
        while "report" in answer:
            steps.append(answer["report"][0])
            answer = worker.exchange({"prune": False})
        assert steps == [2, 4]  # of the first seed
        assert len(set(answer["scores"])) == 2
        assert "report" in worker.exchange(trial)
        assert worker.exchange({"prune": True}) == {"pruned": True}
        wild = msgspec.to_builtins(apply(config, {"train.learning_rate": 1e30}))
        answer = worker.exchange({"config": wild, "seeds": [0]})
        while "report" in answer:
            answer = worker.exchange({"prune": False})
        assert answer["failed"].startswith("BadInput")
        worker.exchange(trial)
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            never_ending(worker)
    finally:
        worker.close()


def test_command_that_is_killed_leaves_a_study_to_go_on_with(tmp_path, session_file, space_file):
    out = tmp_path / "study"
    command = [sys.executable, "-m", "neds", "sweep", str(session_file), *FAST, "--set",
               "train.steps=100000", "--set", "train.validate_every=50000", "--space",
               str(space_file), "--out", str(out), "--trials", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: journal(out).count('"op_code":4') >= 1 and children(process.pid),
                 process)
        worker = children(process.pid)[0]
        process.kill()  # nothing is cleaned up
    wait_for(lambda: not Path(f"/proc/{worker}").exists())
    config = load_recipe("smoke", [*FAST[3:8:2], "data.bin_size_s=0.05", "train.steps=100000",
                                   "train.validate_every=50000"])
    made = sweep(out, lambda: Scripted(by_rate), config=config, space=load_space(str(space_file)),
                 sessions=(str(session_file),))
    made.work(1, 1)
    assert result(made)["trials"] == {"complete": 1, "pruned": 0, "failed": 0, "interrupted": 1,
                                      "running": 0}


def never_ending(worker):
    while True:  # an answer or two may have been on their way
        worker.exchange({"prune": False})


def journal(out):
    path = out / "journal.log"
    return path.read_text().replace(" ", "") if path.exists() else ""


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def wait_for(condition, process=None):
    for _ in range(2400):
        if condition():
            return
        if process is not None and process.poll() is not None:
            pytest.fail(process.stderr.read().decode())
        time.sleep(0.05)
    pytest.fail("it did not happen")


def test_command_writes_a_recipe_that_train_accepts(tmp_path, session_file, space_file, capsys):
    out = tmp_path / "study"
    command = ["sweep", str(session_file), *FAST, "--space", str(space_file), "--out", str(out),
               "--json"]
    assert main([*command, "--trials", "2"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["trials"]["complete"] == 2
    assert report["metrics"]["validation"]["score"] == report["best"]["score"]
    assert report["drops"]["sessions"] == 0
    assert main(["train", str(session_file), "--recipe", report["recipe"], "--out",
                 str(tmp_path / "run"), "--json"]) == 0
    capsys.readouterr()
    assert main([*command[:-1], "--trials", "2"]) == 0
    assert "best: trial" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "words"), [
    (["--trials", "0"], "--trials"),
    (["--timeout", "0"], "--timeout"),
    (["--seeds", "0,0"], "--seeds"),
    (["--space", "absent"], "--space"),
    (["--recipe", "absent"], "--recipe"),
])
def test_bad_options_are_one_line(tmp_path, session_file, capsys, options, words):
    out = tmp_path / "study"
    assert main(["sweep", str(session_file), "--out", str(out), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
    assert not out.exists()


def test_unusable_sessions_are_one_line(tmp_path, capsys):
    session = replace(make_session(bins=12), session="short")
    write_session(session, tmp_path / "short.h5")
    code = main(["sweep", str(tmp_path / "short.h5"), *FAST, "--out", str(tmp_path / "study"),
                 "--trials", "1", "--json"])
    assert code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "0 of 1" in err
