"""A decoder for a new animal from the first minutes of its session, within a time budget.

Writes a bundle that `neds-rt serve --model` loads at once, and reports the accuracy to expect,
measured on the minutes that were held back. --minutes 0 decodes with what the pretrained sessions
share.

example:
  neds calibrate sessions/today.h5 --minutes 2 --init runs/all --out today.neds --budget 120s
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("recording", metavar="RECORDING", help="prepared session of the new animal")
    add("--minutes", type=float, default=2.0, help="calibration data, from its start (2)")
    add("--init", required=True, metavar="CKPT", help="pretrained checkpoint")
    add("--out", required=True, metavar="X.neds", help="bundle file or folder")
    add("--budget", default="120s", metavar="TIME", help="time to end within, such as 90s or 2m "
        "(default %(default)s)")
    add("--recipe", default="finetune", help="recipe whose [train] is used (finetune)")
    add("--set", action="append", default=[], metavar="train.FIELD=VALUE",
        help="override one field of the recipe; may be repeated")
    add("--behaviours", default="", help="comma-separated names (those the checkpoint knows)")
    add("--rebin", action="store_true",
        help="add up bins of a binned recording to the checkpoint's")
    add("--seed", type=int, default=0, help="of batches and masks")
    add("--device", default="cpu", help="cpu, cuda or auto (default %(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (torch's default)")
    add("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Calibrate, write the bundle, print what accuracy to expect."""
    import json
    import math
    import time
    from pathlib import Path

    started = time.monotonic()
    import msgspec
    import torch

    from neds.calibrate import calibrate, write_decoder
    from neds.checkpoint import load_checkpoint
    from neds.config import load_recipe
    from neds.data.store import read_session
    from neds.fits import in_bins
    from neds.runs import choose_device
    from neds_rt.errors import BadInput

    if not 0 <= args.minutes < math.inf:
        raise BadInput("--minutes", "number", args.minutes, "0 or more")
    if args.threads < 0:
        raise BadInput("--threads", "number", args.threads, "0 (torch's default) or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    budget, init = seconds(args.budget), Path(args.init)
    knobs = load_recipe(args.recipe, [*args.set, f"train.seed={args.seed}"]).train
    model, info = load_checkpoint(init)
    if info.config.model.form != "stream":
        raise BadInput(init, "model.form", repr(info.config.model.form), "'stream', which needs no "
                       "future bins: neds pretrain --set model.form=stream")
    command = f"calibrate {args.recording} --init {init} --out {args.out}"
    session, _ = in_bins(read_session(Path(args.recording)), info, init, args.rebin, command)
    names = [name.strip() for name in args.behaviours.split(",") if name.strip()]
    done = calibrate(session, model, info, init, minutes=args.minutes, budget_s=budget,
                     knobs=knobs, behaviours=names, device=choose_device(args.device),
                     progress=not args.json, started=started)
    manifest = write_decoder(done, Path(args.out))
    report = {
        "bundle": args.out, "model_hash": manifest.model_hash,
        "session": done.recording.state.session, "minutes": args.minutes, **done.report,
        "parity": msgspec.to_builtins(manifest.parity),
        "seconds": round(time.monotonic() - started, 1),
    }
    if args.json:
        print(json.dumps(report))
    else:
        say(report)
    return 0


def seconds(text: str) -> float:
    """A time such as 90s, 2m or 90 in seconds; raises `BadInput` for anything else."""
    from neds_rt.errors import BadInput

    factor = {"s": 1, "m": 60}.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise BadInput("--budget", "time", repr(text), "seconds or minutes, such as 120s or 2m")
    return value


def say(report: dict[str, object]) -> None:
    """Print the report in words."""
    where = (f"{report['held_back_s']:g} s held back" if report["held_back"]
             else f"the last {report['held_back_s']:g} s of the calibration data, which also chose "
                  "when to stop")
    print(f"wrote {report['bundle']} in {report['seconds']} s: fitted on "
          f"{report['calibration_s']:g} s, accuracy to expect by {where}:")
    metrics, intervals, others = (report[k] for k in ("metrics", "intervals", "baselines"))
    assert isinstance(metrics, dict)
    assert isinstance(intervals, dict)
    assert isinstance(others, dict)
    for name, row in metrics.items():
        for metric, value in row.items():
            if value is None:
                continue
            ends = intervals[name][metric]
            span = "" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})"
            than = ", ".join(f"{who} {rows[name][metric]:.3f}" for who, rows in others.items()
                             if rows.get(name, {}).get(metric) is not None)
            print(f"  {name:12} {metric:20} {value:.3f}{span}{'; ' + than if than else ''}")
