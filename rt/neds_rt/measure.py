"""What every reported figure carries: percentiles in one shape, and the machine it was taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

PACKAGES = ("neds", "numpy", "pyzmq", "msgspec", "numba", "onnxruntime", "torch")
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def percentiles(values: ArrayLike) -> dict[str, float]:
    """Return `p50`, `p99`, `p999`, `max` of `values`, and how many there are as `n`."""
    array = np.asarray(values, np.float64).ravel()
    if array.size == 0:
        return {"p50": float("nan"), "p99": float("nan"), "p999": float("nan"),
                "max": float("nan"), "n": 0}
    p50, p99, p999 = np.percentile(array, (50, 99, 99.9))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3),
            "p999": round(float(p999), 3), "max": round(float(array.max()), 3), "n": array.size}


def machine_facts() -> dict[str, Any]:
    """Return what a reader needs to judge a figure: processor, cores, load, system, versions."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "hypervisor": "hypervisor" in _cpuinfo("flags").split(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": {name: os.environ[name] for name in THREAD_LIMITS if name in os.environ},
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "libzmq": _libzmq(),
        "commit": commit(),
    }
    return {name: value for name, value in facts.items() if value not in (None, "", {})}


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the installed memory in GiB, None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


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


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _libzmq() -> str:
    import zmq

    return zmq.zmq_version()
