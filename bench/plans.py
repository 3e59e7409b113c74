"""How long GPU plans take to build and how large they are, by size of model; needs no GPU.

    python bench/plans.py --target sm89 --out bench/results/plans.json

Models are those of the GPU suite and the recipe's default at 200 units, weights random: neither
figure depends on them. The plan cache is not used.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import write_json  # noqa: E402
from neds.config import load_recipe  # noqa: E402
from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle  # noqa: E402
from neds_rt.engines.onnx_nodes import PRECISIONS  # noqa: E402
from neds_rt.engines.plan_graph import FORMS, build_plan_graph  # noqa: E402
from neds_rt.errors import NedsError  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402
from neds_rt.plans import build_plan, check_target, product_version  # noqa: E402
from tools.gpu_measure import MODELS, make_model, n_parameters  # noqa: E402

DEFAULT = "default"
DEFAULT_UNITS = 200


def open_model(name: str) -> Bundle:
    """The bundle of random weights that `name` stands for."""
    if name != DEFAULT:
        return make_model(name)
    model = load_recipe("indy_many").model
    shape = Shape(hidden=model.hidden, layers=model.layers, heads=model.heads, mlp=model.mlp,
                  window=model.window, conv=model.conv, recurrent=model.recurrent)
    return random_bundle(shape, DEFAULT_UNITS, [ModalityOut("velocity", "continuous", 2)])


def measure(name: str, form: str, precision: str, product: str, target: str) -> dict[str, Any]:
    """One row: what one plan took and weighs."""
    bundle = open_model(name)
    graph = build_plan_graph(bundle, form, precision)
    wall, cpu = time.perf_counter(), time.process_time()
    plan = build_plan(graph, product, target)
    return {
        "model": name, "parameters": n_parameters(bundle), "units": len(bundle.manifest.units),
        "window": bundle.manifest.shape.window, "form": form, "precision": precision,
        "target": target, "build_s": round(time.perf_counter() - wall, 2),
        "build_cpu_s": round(time.process_time() - cpu, 2), "plan_bytes": len(plan),
        "graph_bytes": len(graph),
    }


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Build every combination; a line each as they come."""
    version, rows = product_version(args.product), []
    for target in args.target.split(","):
        check_target(args.product, target)
        for name in args.model.split(","):
            for form in args.form.split(","):
                for precision in args.precision.split(","):
                    row = measure(name, form, precision, args.product, target)
                    rows.append(row)
                    print(f"{name:8} {form:6} {precision} {target}: {row['build_s']:6.1f} s "
                          f"({row['build_cpu_s']:.1f} s of CPU), {row['plan_bytes'] / 1e6:6.1f} MB",
                          file=sys.stderr, flush=True)
    return {"command": " ".join(["python", *sys.argv]), "commit": commit(),
            "machine": machine_facts(), "product": args.product, "version": version, "plans": rows}


def main(argv: list[str] | None = None) -> int:
    """Measure, print or write; the error's own exit code after bad input, named in one line."""
    names = [DEFAULT, *(name for name in MODELS if name != "tiny")]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=",".join(names), help="names (%(default)s)")
    add("--form", default=",".join(FORMS), help="forms (%(default)s)")
    add("--precision", default="fp32,fp16", help=f"some of {', '.join(PRECISIONS)} (%(default)s)")
    add("--product", default="tensorrt-rtx", help="which builds (%(default)s)")
    add("--target", default="sm89", help="GPUs (%(default)s)")
    add("--out", type=Path, default=None, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        result = measure_all(args)
        if args.out:
            write_json(args.out, result)
    except NedsError as error:
        print(f"plans: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
