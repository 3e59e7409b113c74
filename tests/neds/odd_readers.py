"""Readers that go wrong, for the tests of preparing many sources."""

import os
import signal
import time
from pathlib import Path

from neds.data.objects import from_arrays
from neds.data.reader import Reader, one_file


def odd_reader(preset, words):
    """A text file is a session of its name; its text says what happens while it is read."""

    def read(source):
        text = Path(source).read_text()
        if "kill" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "divide" in text:
            return 1 / 0
        if "slow" in text:
            time.sleep(0.3)
        if "wait" in text:
            Path(source).with_suffix(".waiting").touch()
            time.sleep(600)
        name = text.partition("name=")[2].strip() or Path(source).stem
        return from_arrays(name, [[0.1, 0.2], []])

    return Reader(read=read, files=one_file)
