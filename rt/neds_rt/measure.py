"""What every reported figure carries: percentiles in one shape, and the machine it was taken on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike


def percentiles(values: ArrayLike) -> dict[str, float]:
    """Return `p50`, `p99`, `p999`, `max` of `values`, and how many there are as `n`."""
    array = np.asarray(values, np.float64).ravel()
    if array.size == 0:
        return {"p50": float("nan"), "p99": float("nan"), "p999": float("nan"),
                "max": float("nan"), "n": 0}
    p50, p99, p999 = np.percentile(array, (50, 99, 99.9))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3),
            "p999": round(float(p999), 3), "max": round(float(array.max()), 3), "n": array.size}


def commit() -> str | None:
    """Return the commit of the checkout this package runs from, None for an installed copy."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
