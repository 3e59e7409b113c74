"""Search a recipe's fields with Optuna; the best recipe is OUT/best.toml, for neds train --recipe.

Trials are scored on the validation parts. A trial that fails or is killed is counted and the study
goes on; the same command goes on with a study that was interrupted; the same command on several
machines that share OUT works on one study (in all, TRIALS trials).

    neds sweep sessions/*.h5 --recipe single --out sweeps/single --trials 50 --jobs 2
    neds sweep sessions/*.h5 --out sweeps/wide --space space.toml --ray local --jobs 8
    neds train sessions/a.h5 --recipe sweeps/single/best.toml --out runs/a

A space is a TOML table [sweep] of fields: {low, high, log, step} or a list of choices.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds.sweep import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("sessions", nargs="+", metavar="SESSION.h5", help="prepared sessions")
    parser.add_argument("--recipe", default="single",
                        help="recipe that trials vary, packaged or TOML file (single)")
    parser.add_argument("--space", default="default",
                        help="search space, packaged or TOML file (default)")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE",
                        help="override one field of the recipe; may be repeated")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the study")
    parser.add_argument("--trials", type=int, default=50,
                        help="trials the study shall have in all (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=None, metavar="S",
                        help="end after so many seconds (no limit)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time (default 1)")
    parser.add_argument("--threads", type=int, default=0,
                        help="CPU threads of a trial (this machine's, shared by the jobs)")
    parser.add_argument("--device", default="cpu", help="where trials train (default cpu)")
    parser.add_argument("--seeds", default="0",
                        help="comma-separated training seeds, a trial's score is their mean (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the search itself (0)")
    parser.add_argument("--rebin", action="store_true",
                        help="add up bins of binned recordings to the recipe's")
    parser.add_argument("--no-prune", action="store_true",
                        help="train every trial to its end, however bad it looks")
    parser.add_argument("--ray", default=None, metavar="ADDRESS",
                        help="run trials on a Ray cluster, or on a local one (local)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Work on the study, then print its best trial."""
    import json
    import os
    import sys
    import time
    from contextlib import ExitStack
    from pathlib import Path

    from neds.sweep import Sweep, require_optuna, result
    from neds.sweep_process import LocalWorker, Worker

    _check(args)
    require_optuna()
    started = time.monotonic()
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    plan = _plan(args)
    out = Path(args.out).absolute()

    def say(text: str) -> None:
        if not args.json:
            print(text, file=sys.stderr)

    with ExitStack() as stack:
        if args.ray:
            from neds.cluster import RemoteWorker, cluster

            ray = stack.enter_context(cluster(args.ray, args.jobs * threads))
            gpus = 0 if args.device == "cpu" else 1

            def start() -> Worker:
                return RemoteWorker(ray, threads, gpus)
        else:
            def start() -> Worker:
                return LocalWorker(threads, out / "worker.log")

        sweep = Sweep(out, plan, start, plan.setup(threads, args.device), say)
        sweep.work(args.trials, args.jobs, args.timeout)
    found = result(sweep)
    best = found["best"]
    report = {"study": args.out, "metrics": {"validation": {"score": best and best["score"]}},
              **found, "recipe": best and str(Path(args.out) / "best.toml"),
              "drops": sweep.drops, "seconds": round(time.monotonic() - started, 1)}
    if args.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _check(args: argparse.Namespace) -> None:
    from neds_rt.errors import BadInput

    for name in ("trials", "jobs"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name}", "number", getattr(args, name), "1 or more")
    if args.threads < 0:
        raise BadInput("--threads", "number", args.threads, "0 (shared by the jobs) or more")
    if args.timeout is not None and not args.timeout > 0:
        raise BadInput("--timeout", "seconds", args.timeout, "above 0")
    if args.seed < 0:
        raise BadInput("--seed", "number", args.seed, "0 or more")


def _plan(args: argparse.Namespace) -> Plan:
    from pathlib import Path

    from neds.config import load_recipe
    from neds.drops import fitted
    from neds.sweep import Plan
    from neds.sweep_space import load_space
    from neds_rt.errors import BadInput

    config = load_recipe(args.recipe, list(args.set))
    space = load_space(args.space)
    paths = [Path(path).absolute() for path in args.sessions]
    for path in paths:
        if not path.exists():
            raise BadInput(path, "session", "no such file", "a file written by neds prepare")
    if not args.rebin and not any(item.startswith("data.bin_size_s=") for item in args.set):
        config = fitted(paths, config)
    return Plan(config=config, space=space, sessions=tuple(map(str, paths)),
                seeds=_seeds(args.seeds), rebin=args.rebin, sampler_seed=args.seed,
                prune=not args.no_prune)


def _seeds(text: str) -> tuple[int, ...]:
    from neds_rt.errors import BadInput

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise BadInput("--seeds", "numbers", repr(text), "different whole numbers, 0 or more")
    return tuple(int(word) for word in words)


def _print(report: dict[str, Any]) -> None:
    trials = ", ".join(f"{n} {name}" for name, n in report["trials"].items() if n)
    print(f"{report['study']}: {trials or 'no trial'} in {report['seconds']} s")
    for failure in report["failures"][-3:]:
        print(f"trial {failure['trial']} failed: {failure['error']}")
    best = report["best"]
    if best is None:
        print("no complete trial yet: the same command goes on")
        return
    print(f"best: trial {best['trial']}, validation {best['score']:.4f}, wrote {report['recipe']}")
    for name, value in best["params"].items():
        print(f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}")
