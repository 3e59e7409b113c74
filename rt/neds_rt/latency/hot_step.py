"""Time of an engine's step in a tight loop, in its own process: the figure a rig does not see.

    python -m neds_rt.latency.hot_step --model X.neds --engine native
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from neds_rt.bundle import Bundle, read_bundle
from neds_rt.engines import load_engine
from neds_rt.latency.steps import fill_window, make_rows, tight_us
from neds_rt.stats import percentiles


def hot_step_us(
    bundle: Bundle, engine_name: str, rate_hz: float, limit_s: float
) -> dict[str, float] | None:
    """Return percentiles over at most 5,000 steps, fewer when `limit_s` seconds are over."""
    engine, rows = load_engine(engine_name, bundle), make_rows(bundle, rate_hz)
    fill_window(engine, bundle, rows)
    return percentiles(np.array(tight_us(engine, rows, 5000, limit_s)))


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="Time an engine's step in a tight loop.")
    parser.add_argument("--model", required=True, help="bundle")
    parser.add_argument("--engine", required=True, help="NAME[:PRECISION]")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="mean rate of a unit")
    parser.add_argument("--limit-s", type=float, default=5.0, help="longest time to measure")
    args = parser.parse_args()
    found = hot_step_us(read_bundle(args.model), args.engine, args.rate_hz, args.limit_s)
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
