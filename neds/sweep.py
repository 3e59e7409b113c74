"""Search of a recipe's fields with Optuna, in a study that survives its trials and itself.

The study is a journal file in the output folder. Any number of processes, on one machine or on
several that see the folder, may work on it at a time; the same command goes on with a study that
was interrupted. Trials run in processes of their own (`neds.sweep_worker`): a trial that raises,
runs out of memory or is killed counts as failed, with the reason, and the study goes on. Every
trial is scored on the same validation parts by the same seeds; the test parts are never looked at.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from neds.config import RunConfig
from neds.sweep_process import Worker, WorkerDied, set_up
from neds.sweep_space import Space, apply, recipe_toml, value_of
from neds_rt.errors import BadInput, CheckFailed

STUDY = "neds"
ENDED = ("complete", "pruned", "failed", "interrupted")


@dataclass(frozen=True)
class Plan:
    """What a study compares: a base recipe, a space, and the data and seeds of every trial."""

    config: RunConfig
    space: Space
    sessions: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    rebin: bool = False
    sampler_seed: int = 0
    prune: bool = True

    @property
    def gap_bins(self) -> int:
        """Bins between the parts: enough for every window, so that all trials are scored alike."""
        return max(self.config.model.window, self.space.largest_window(self.config))

    def identity(self) -> dict[str, Any]:
        """What must be the same when a study is gone on with."""
        fields = {name: msgspec.to_builtins(of) for name, of in self.space.fields.items()}
        whole = {"recipe": msgspec.to_builtins(self.config), "space": fields,
                 "sessions": list(self.sessions), "seeds": list(self.seeds), "rebin": self.rebin}
        same: dict[str, Any] = json.loads(json.dumps(whole))
        return same

    def setup(self, threads: int, device: str) -> dict[str, Any]:
        """The first message to a worker. A session must hold the longest window of the space."""
        model = msgspec.structs.replace(self.config.model, window=self.gap_bins)
        config = msgspec.structs.replace(self.config, model=model)
        return {"sessions": list(self.sessions), "config": msgspec.to_builtins(config),
                "gap_bins": self.gap_bins, "rebin": self.rebin, "threads": threads,
                "device": device}


class Sweep:
    """One process's work on the study in `folder`: a thread and a worker for each job.

    `start` makes a worker, `setup` is its first message. Raises `BadInput` for a folder that cannot
    be written, or that holds a study of something else.
    """

    def __init__(
        self, folder: Path, plan: Plan, start: Callable[[], Worker], setup: dict[str, Any],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.plan, self.start, self.setup = folder, plan, start, setup
        self.say = say  # told of every trial that ends
        self.owner = uuid.uuid4().hex
        self.stopping = threading.Event()
        self.problem: BaseException | None = None
        self.drops: dict[str, Any] = {}
        self.workers: dict[int, Worker] = {}
        try:
            (folder / "owners").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(folder, "output", error.strerror, "a folder to write in") from error
        with self.locked():
            study = self.study()
            self._check_identity(study)
            if not study.get_trials(deepcopy=False):
                self._enqueue_base(study)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes and threads that work on this study."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def study(self) -> Any:
        """The study, opened anew: each thread needs its own."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = (optuna.pruners.MedianPruner(n_startup_trials=4) if self.plan.prune
                  else optuna.pruners.NopPruner())
        storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
        return optuna.create_study(storage=storage, study_name=STUDY, direction="maximize",
                                   pruner=pruner, load_if_exists=True)

    def _check_identity(self, study: Any) -> None:
        now, before = self.plan.identity(), study.user_attrs.get("identity")
        if before is None:
            study.set_user_attr("identity", now)
        elif before != now:
            differs = ", ".join(name for name in now if before.get(name) != now[name])
            raise BadInput(self.folder, "study", f"one with another {differs}",
                           "that of the same command, or another --out")

    def _enqueue_base(self, study: Any) -> None:
        """Let the recipe itself be the first trial, so that the best is never worse than it."""
        base = {name: value_of(self.plan.config, name) for name in self.plan.space.fields}
        if all(self.plan.space.holds(name, value) for name, value in base.items()):
            study.enqueue_trial(base)

    def work(self, trials: int, jobs: int, timeout_s: float | None = None) -> None:
        """Work until the study has `trials` trials, or for `timeout_s` seconds.

        What then still runs is ended and counts as interrupted: the same command makes up for it.
        Raises `NedsError` if the recordings are refused, and what else goes wrong in a thread.
        """
        started = time.monotonic()
        with (self.folder / "owners" / self.owner).open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            threads = [threading.Thread(target=self._thread, args=(i, trials), daemon=True)
                       for i in range(jobs)]
            try:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    late = timeout_s is not None and time.monotonic() - started >= timeout_s
                    if late or self.problem is not None:
                        break
                    time.sleep(0.05)
            finally:
                self._stop(threads)
                (self.folder / "owners" / self.owner).unlink(missing_ok=True)
        if self.problem is not None:
            raise self.problem

    def _stop(self, threads: list[threading.Thread]) -> None:
        self.stopping.set()
        while any(thread.is_alive() for thread in threads):
            for worker in list(self.workers.values()):
                worker.stop()
            for thread in threads:
                thread.join(0.2)

    def _thread(self, index: int, trials: int) -> None:
        try:
            study = self.study()
            while not self.stopping.is_set():
                trial = self._next(study, trials)
                if trial is None:
                    return
                try:
                    ending = self._run(index, trial)
                except BaseException:
                    self._end(study, trial, "interrupted", None)
                    raise
                self._end(study, trial, *ending)
        except BaseException as error:  # handed to the thread that asked for the work
            self.problem = self.problem or error
        finally:
            worker = self.workers.pop(index, None)
            if worker is not None:
                worker.close()

    def _next(self, study: Any, trials: int) -> Any | None:
        """A new trial, or None when there are enough; frees the trials of dead processes first."""
        import optuna

        with self.locked():
            self._bury(study)
            past = study.get_trials(deepcopy=False)
            if sum(counted(t) for t in past) >= trials:
                return None
            # A sampler of its own for each trial: a study that is gone on with, or worked on by
            # several processes, does not draw the same values again.
            seed = (self.plan.sampler_seed * 1_000_003 + len(past)) % 2**32
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                study.sampler = optuna.samplers.TPESampler(seed=seed)
                trial = study.ask()
            trial.set_user_attr("owner", self.owner)
            return trial

    def _bury(self, study: Any) -> None:
        """Mark running trials whose process is gone, that is: no longer holds its lock."""
        from optuna.trial import TrialState

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner", "")
            if owner != self.owner and not _is_alive(self.folder / "owners" / owner):
                study.tell(trial.number, state=TrialState.FAIL)  # without an error: interrupted

    def _run(self, index: int, trial: Any) -> tuple[str, Any]:
        """Run one trial; how it ended (of ENDED), and its scores or the reason."""
        try:
            config = apply(self.plan.config, self.plan.space.suggest(trial))
        except BadInput as error:
            return "failed", str(error)
        try:
            answer = self._worker(index).exchange({"config": msgspec.to_builtins(config),
                                      "seeds": list(self.plan.seeds)})
            while "report" in answer:
                step, score = answer["report"]
                trial.report(score, step)
                prune = self.plan.prune and trial.should_prune()
                answer = self.workers[index].exchange({"prune": prune})
        except WorkerDied as error:
            if (worker := self.workers.pop(index, None)) is not None:
                worker.close()
            if self.stopping.is_set():
                return "interrupted", "the sweep was ended"
            return "failed", str(error)
        if "scores" in answer:
            return "complete", answer["scores"]
        return ("pruned", None) if "pruned" in answer else ("failed", answer["failed"])

    def _worker(self, index: int) -> Worker:
        if index not in self.workers:
            worker = self.workers[index] = self.start()
            self.drops = set_up(worker, self.setup)
        return self.workers[index]

    def _end(self, study: Any, trial: Any, ending: str, what: Any) -> None:
        from optuna.trial import TrialState

        if ending == "complete":
            trial.set_user_attr("scores", what)
            study.tell(trial, sum(what) / len(what))
        elif ending == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            if ending == "failed":
                trial.set_user_attr("error", what)
            study.tell(trial, state=TrialState.FAIL)
        self.say(f"trial {trial.number}: {ending}" + (f", {what}" if what else ""))
        with self.locked():
            write_results(self.folder, self.plan, summary(study, self.plan))


def _is_alive(path: Path) -> bool:
    """Whether a process holds the lock on its file."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def counted(trial: Any) -> bool:
    """Whether a trial counts towards the number asked for: interrupted ones are made up for."""
    return trial.state.name != "WAITING" and not interrupted(trial)


def interrupted(trial: Any) -> bool:
    """Whether a trial was ended from outside: a trial that failed says of what."""
    return trial.state.name == "FAIL" and "error" not in trial.user_attrs


def summary(study: Any, plan: Plan) -> dict[str, Any]:
    """The study in JSON values: how many trials ended how, every failure, the best and its recipe.

    `best` is None while no trial is complete.
    """
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
    totals = dict.fromkeys((*ENDED, "running"), 0)
    failures, best = [], None
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in names:
            continue
        totals["interrupted" if interrupted(trial) else names[trial.state.name]] += 1
        if "error" in trial.user_attrs:
            failures.append({"trial": trial.number, "params": trial.params,
                             "error": trial.user_attrs["error"]})
        if trial.state.name == "COMPLETE" and (best is None or trial.value > best.value):
            best = trial
    return {"trials": totals, "failures": failures, "best": best and {
        "trial": best.number, "score": best.value, "scores": best.user_attrs["scores"],
        "params": best.params,
    }}


def write_results(folder: Path, plan: Plan, found: Mapping[str, Any]) -> None:
    """Write `result.json` and, if a trial is complete, `best.toml`, each whole or not at all."""
    texts = {"result.json": json.dumps(found, indent=1) + "\n"}
    best = found["best"]
    if best is not None:
        config = apply(plan.config, best["params"])
        knobs = msgspec.structs.replace(config.train, seed=plan.seeds[0])
        comment = (f"Trial {best['trial']} of a sweep over {', '.join(plan.space.fields)}.\n"
                   f"Mean validation score {best['score']:.4f} over seeds "
                   f"{', '.join(map(str, plan.seeds))}.")
        texts["best.toml"] = recipe_toml(msgspec.structs.replace(config, train=knobs), comment)
    for name, text in texts.items():
        staged = folder / f".{name}.{os.getpid()}"
        staged.write_text(text)
        os.replace(staged, folder / name)


def result(sweep: Sweep) -> dict[str, Any]:
    """The study's summary after work, written to the folder too.

    Raises `CheckFailed` when trials ended and none of them is complete.
    """
    study = sweep.study()
    with sweep.locked():
        found = summary(study, sweep.plan)
        write_results(sweep.folder, sweep.plan, found)
    if found["best"] is None and found["trials"]["failed"]:
        last = found["failures"][-1]
        raise CheckFailed(f"{sweep.folder}: no trial of {found['trials']['failed']} succeeded; "
                          f"the last: {last['error']}")
    return found


def require_optuna() -> None:
    """Raise `BadInput` where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise BadInput("neds sweep", "optuna", "not installed",
                       'pip install "neds[sweep]"') from error
