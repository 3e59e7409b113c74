"""Facts about this machine and this process that belong beside every reported number."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("neds", "numpy", "pyzmq", "msgspec", "numba", "onnxruntime", "torch")


def machine_facts() -> dict[str, Any]:
    """Return CPU, cores, memory, system and versions, as JSON-ready values."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": _usable_cores(),
        "memory_gb": _memory_gb(),
        "system": platform.system(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "versions": package_versions(PACKAGES),
    }


def gpu_words(target: str = "") -> str:
    """Return "GPU" and what it is: its model where the system has one alone, else `target`."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in text.splitlines()
                  if line.startswith("Model:")]
    return ", ".join(filter(None, ("GPU", found[0] if len(found) == 1 else target)))


def resident_bytes() -> int | None:
    """Return the memory this process holds in RAM, None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float | None:
    """Return CPU seconds of a process, all its threads included, None where Linux is not asked.

    Processes that it started itself are not counted.
    """
    if platform.system() != "Linux":
        return None
    per_process_clock = (~pid << 3) | 2  # the clock that clock_getcpuclockid(3) names
    try:
        return time.clock_gettime(per_process_clock)
    except OSError:
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


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of these distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gb() -> float | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return round(total / 1e9, 1)
