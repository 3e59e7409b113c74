"""Mistakes with the machine: planted truly where a process may, else in what doctor reads."""

import ctypes
import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

from neds_rt.doctor import machine
from tests.rt.mistakes import Mistake, Rig

PR_SET_TIMERSLACK = 29
NOWHERE = Rig([1])  # a port that nobody listens on


@contextmanager
def file_instead(folder, function, text, name="file"):
    """The check reads a file of ours."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    root = folder if "/" in name else path
    with patch.object(machine, function.__name__, lambda: function(root)):
        yield NOWHERE


@contextmanager
def one_core(_):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield NOWHERE
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def much_slack(_):
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_TIMERSLACK, 200_000, 0, 0, 0)
    try:
        yield NOWHERE
    finally:
        prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0)  # as it was when the thread began


@contextmanager
def busy(_):
    with patch.object(os, "getloadavg", lambda: (8.0 * (os.cpu_count() or 1), 0.0, 0.0)):
        yield NOWHERE


@contextmanager
def late_sleeps(_):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds + 0.004

    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep)
    with patch.object(machine, "time", clock):
        yield NOWHERE


def limit(which, most):
    """A user who is not root, with this limit."""

    @contextmanager
    def plant(_):
        real = resource.getrlimit
        with (patch.object(os, "geteuid", lambda: 1000),
              patch.object(resource, "getrlimit",
                           lambda kind: (most, most) if kind == which else real(kind))):
            yield NOWHERE

    return plant


MISTAKES = [
    Mistake("Machine: cores that save power", "warn", "governor", "frequency-set -g performance",
            lambda folder: file_instead(folder, machine.governor, "powersave\n",
                                        "cpu0/cpufreq/scaling_governor")),
    Mistake("Machine: one core", "fail", "affinity", "without taskset", one_core),
    Mistake("Machine: other programs want the cores", "warn", "load", "close other programs",
            busy),
    Mistake("Machine: sleeps end late", "warn", "sleep", "what else runs", late_sleeps),
    Mistake("Machine: timers may be late", "warn", "timer slack", "not from a battery saver",
            much_slack),
    Mistake("Machine: a slow clock", "warn", "clock source", "clocksource=tsc",
            lambda folder: file_instead(folder, machine.clock_source, "hpet\n")),
    Mistake("Machine: no real-time priority", "warn", "real-time permission", "rtprio 80",
            limit(resource.RLIMIT_RTPRIO, 0)),
    Mistake("Machine: little memory may be locked", "warn", "locked memory", "memlock unlimited",
            limit(resource.RLIMIT_MEMLOCK, 8 << 20)),
    Mistake("Machine: memory was moved to disk", "warn", "swap", "swapoff -a",
            lambda folder: file_instead(folder, machine.swap, "SwapTotal: 4194304 kB\n"
                                        "SwapFree: 1048576 kB\n")),
]
