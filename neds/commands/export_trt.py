"""Write a bundle with TensorRT plans, which neds-rt serves on a GPU (and on the CPU as any other).

Plans of tensorrt-rtx are built on any machine; those of tensorrt only where their GPU is.

example:
  neds export-trt runs/indy --session indy_20161006_02 --out indy.neds --target sm86,sm89
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds_rt.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from neds.commands.export import add_bundle_arguments

    add_bundle_arguments(parser)
    parser.add_argument("--form", choices=("step", "window", "both"), default="step",
                        help="one bin against the state (step, the default), the window recomputed "
                        "every bin, or both")
    parser.add_argument("--precision", default="fp32,fp16", metavar="P[,P...]",
                        help="of matrix products: fp32, fp16, bf16 (%(default)s)")
    parser.add_argument("--product", default="", metavar="P[,P...]",
                        help="tensorrt, tensorrt-rtx (all that are installed)")
    parser.add_argument("--target", default="", metavar="SM[,SM...]",
                        help="GPUs to build for, such as sm86,sm89 (this machine's, or without one "
                        "sm86,sm89,sm120)")


def run(args: argparse.Namespace) -> int:
    """Write the bundle; print its plans and their parity."""
    import json
    import sys
    from pathlib import Path

    from neds.commands.export import names_of, open_session, sign_written, signing_key
    from neds_rt.engines.onnx_nodes import PRECISIONS
    from neds_rt.errors import BadInput

    precisions = names_of(args.precision)
    for name in precisions or [""]:
        if name not in PRECISIONS:
            raise BadInput("--precision", "name", repr(name), f"some of {', '.join(PRECISIONS)}")
    forms = ["step", "window"] if args.form == "both" else [args.form]
    targets = _targets(names_of(args.product), names_of(args.target))
    from neds.plan_export import Wanted, export_plans

    wanted = Wanted(forms, precisions, targets)
    key = signing_key(args.sign)
    model, info, recording = open_session(args)
    manifest = export_plans(
        model, info, recording, Path(args.out), behaviours=names_of(args.behaviours),
        wanted=wanted, say=lambda line: print(f"neds export-trt: {line}", file=sys.stderr))
    sign_written(args.out, key)
    print(json.dumps(_summary(args.out, manifest)) if args.json else _table(args.out, manifest))
    return 0


def _targets(products: list[str], targets: list[str]) -> dict[str, list[str]]:
    """Product -> targets; all is checked here, before anything is loaded or computed."""
    import sys

    from neds_rt.errors import BadInput, StartError
    from neds_rt.plans import (
        RTX_TARGETS,
        USUAL_TARGETS,
        check_target,
        installed_products,
        product_module,
    )

    named = list(products)
    products = products or installed_products()
    if not products:
        raise StartError("neither tensorrt nor tensorrt-rtx is installed: "
                         "pip install 'neds[trt-rtx]' (or 'neds[trt]')")
    here, problem = _this_gpu()
    chosen = {}
    for product in products:
        product_module(product)
        for target in targets:
            check_target(product, target)
        if product == "tensorrt-rtx":
            chosen[product] = targets or ([here] if here in RTX_TARGETS else list(USUAL_TARGETS))
        elif here and set(targets) <= {here}:
            chosen[product] = [here]
        elif not named and len(products) > 1:
            print(f"neds export-trt: no plans of {product}, which builds only for the GPU of its "
                  f"machine ({problem or here})", file=sys.stderr)
        elif here:
            raise BadInput("--target", product, ",".join(targets),
                           f"{here}: {product} builds only for the GPU of its machine")
        else:
            raise StartError(f"{product} builds only for the GPU of its machine: {problem}")
    return chosen


def _this_gpu() -> tuple[str, str]:
    """This machine's target, or "" and why there is none."""
    from neds_rt.engines.cuda_runtime import Device
    from neds_rt.errors import StartError

    try:
        device = Device()
    except StartError as error:
        return "", str(error)
    device.close()
    return device.target, ""


def _summary(out: str, manifest: Manifest) -> dict[str, Any]:
    import msgspec

    from neds.commands.export import size_of

    return {
        "bundle": out,
        "model_hash": manifest.model_hash,
        "units": len(manifest.units),
        "modalities": [m.name for m in manifest.modalities],
        "bytes": size_of(out),
        "parity": manifest.parity,
        "plans": msgspec.to_builtins(manifest.plans),
    }


def _table(out: str, manifest: Manifest) -> str:
    lines = [f"wrote {out}: {len(manifest.plans)} plans"]
    for plan in manifest.plans:
        (parity,) = (p for p in manifest.parity["plans"]
                     if (p["form"], p["precision"]) == (plan.form, plan.precision))
        changes = [abs(c) for c in parity["score_change"].values() if c is not None]
        lines.append(
            f"  {plan.form:6} {plan.precision} {plan.target:5} {plan.product} {plan.version}: "
            f"{plan.bytes / 1e6:.1f} MB, built in {plan.build_s:.1f} s; largest error "
            f"{parity['max']:.1e}, rms {parity['rms']:.1e}, scores within "
            f"{max(changes, default=0.0):.4f}")
    return "\n".join(lines)
