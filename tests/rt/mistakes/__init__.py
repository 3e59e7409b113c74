"""Every mistake that is planted for `neds-rt doctor`, and the line that has to find it.

The table of docs/how-to/doctor.md has these rows and no others, which test_doctor_mistakes.py
compares.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

ADDRESS = "tcp://127.0.0.1"


class Rig(NamedTuple):
    """What doctor is run with: ports, the first of which is at fault, and more options."""

    ports: list[int]
    options: tuple[str, ...] = ()


class Mistake(NamedTuple):
    """One row: `check` is the name of the line, PORT for the port; `advice` what it must say."""

    what: str
    status: str
    check: str
    advice: str
    plant: Callable[..., AbstractContextManager[Rig]]  # called with a folder of its own


@contextmanager
def repeating(step, every_s=0.005):
    """Call `step(k)` again and again, in a thread, until all is over."""
    stop = threading.Event()

    def run():
        k = 0
        while not stop.wait(every_s):
            step(k)
            k += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
