"""Clock and scheduling state of this machine, as far as the system shows it (Linux)."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np

from neds_rt.doctor import Check

PR_GET_TIMERSLACK = 30
SLACK_NS = 50_000  # what Linux gives every process
SLEEPS, SLEEP_S, LATE_S = 100, 0.001, 0.002
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")


def machine_checks() -> list[Check]:
    """Return one check per property."""
    return [governor(), affinity(), load(), sleeping(), timer_slack(), clock_source(),
            real_time(), locked_memory(), swap()]


def governor(root: Path = Path("/sys/devices/system/cpu")) -> Check:
    """Whether cores keep their frequency when they have been idle."""
    found = {_read(path) for path in root.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if not found:
        return Check("governor", "ok", "not shown by this system (a virtual machine, or not Linux)")
    if found == {"performance"}:
        return Check("governor", "ok", "performance")
    return Check("governor", "warn", ", ".join(sorted(found)),
                 "sudo cpupower frequency-set -g performance")


def affinity() -> Check:
    """Whether there is a core for the server beside those of ZeroMQ and everything else."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n >= 2:
        return Check("affinity", "ok", f"{n} cores usable")
    return Check("affinity", "fail", "one core usable",
                 "start without taskset, or give the container two cores")


def load() -> Check:
    """Whether other programs want the cores."""
    cores = os.cpu_count() or 1
    try:
        wanted = os.getloadavg()[0]
    except OSError:
        return Check("load", "ok", "not shown by this system")
    found = f"{wanted:.1f} of {cores} cores wanted in the last minute"
    if wanted < 0.7 * cores:
        return Check("load", "ok", found)
    return Check("load", "warn", found, "close other programs on this machine")


def sleeping() -> Check:
    """How late a sleep ends: what a deadline can be kept to."""
    late = np.empty(SLEEPS)
    for i in range(SLEEPS):
        start = time.perf_counter()
        time.sleep(SLEEP_S)
        late[i] = time.perf_counter() - start - SLEEP_S
    p50, p99 = np.percentile(late, [50, 99])
    found = f"1 ms sleeps end {p50 * 1e6:.0f} us late (p50), {p99 * 1e6:.0f} us (p99)"
    if p99 < LATE_S:
        return Check("sleep", "ok", found)
    return Check("sleep", "warn", found, "find what else runs on this machine, or use another one")


def timer_slack() -> Check:
    """By how much the kernel may delay this process's timers."""
    if sys.platform != "linux":
        return Check("timer slack", "ok", "not shown by this system")
    slack = ctypes.CDLL(None).prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)
    if slack <= SLACK_NS:
        return Check("timer slack", "ok", f"{slack / 1e3:.0f} us")
    return Check("timer slack", "warn", f"{slack / 1e3:.0f} us",
                 "start from a shell of your own, not from a battery saver or a background slice")


def clock_source(
    path: Path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
) -> Check:
    """Whether reading the clock is cheap."""
    found = _read(path)
    if not found or found in GOOD_CLOCKS:
        return Check("clock source", "ok", found or "not shown by this system")
    return Check("clock source", "warn", found,
                 "boot with clocksource=tsc: reading this clock takes microseconds")


def real_time() -> Check:
    """Whether this user may ask for real-time priority."""
    if sys.platform != "linux":
        return Check("real-time permission", "ok", "not shown by this system")
    import resource

    most = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
    if os.geteuid() == 0 or most != 0:
        return Check("real-time permission", "ok", "root" if most == 0 else f"priority to {most}")
    return Check("real-time permission", "warn", "none",
                 "add `USER - rtprio 80` to /etc/security/limits.conf and log in again")


def locked_memory() -> Check:
    """How much memory this user may keep from being swapped out."""
    if sys.platform != "linux":
        return Check("locked memory", "ok", "not shown by this system")
    import resource

    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if os.geteuid() == 0 or most == resource.RLIM_INFINITY or most >= 1 << 30:
        return Check("locked memory", "ok", "enough")
    return Check("locked memory", "warn", f"{most >> 20} MiB",
                 "add `USER - memlock unlimited` to /etc/security/limits.conf and log in again")


def swap(path: Path = Path("/proc/meminfo")) -> Check:
    """Whether memory has been moved to disk."""
    sizes = dict(line.split(":", 1) for line in _read(path).splitlines() if ":" in line)
    total, free = (_kilobytes(sizes.get(name, "0 kB")) for name in ("SwapTotal", "SwapFree"))
    if total - free < 1024:
        return Check("swap", "ok", "none used")
    return Check("swap", "warn", f"{(total - free) >> 10} MiB used",
                 "close what fills the memory, then sudo swapoff -a")


def _kilobytes(text: str) -> int:
    return int(text.split()[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
