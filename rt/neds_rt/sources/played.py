"""`replay:` and `synthetic:`: a recording, or an animal that never was, played inside the server.

    replay:PATH[?probe=NAME&speed=1|max&loop=0]
    synthetic:[?units=N&hz=8&seed=0&session=0&seconds=60&speed=1|max&loop=0]

PATH is what `neds-rt replay` takes. A thread of this source hands over the blocks that
`neds-rt replay`, or `python -m neds_rt.sources.synthetic`, would send, each when its last sample
would have been recorded, stamped with when that really was. Nothing is dropped: the play waits for
a server that is behind, and says so. It begins shortly after the source was first tended, so
several probes begin together, and after its end the source is silent (`--idle-exit`). With `loop`
it begins anew instead, as another session, since samples then count anew.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zmq

from neds_rt.errors import BadInput
from neds_rt.player import Block
from neds_rt.sources.address import parse_options
from neds_rt.sources.bridge import Bridge
from neds_rt.sources.frame import Frame
from neds_rt.sources.handover import HandedOver, Handover, hand_over
from neds_rt.sources.units import UnitMap
from neds_rt.wire import MAX_SPIKES_PER_FRAME

BLOCK_S = 0.01  # recording time of a frame, as the publishers have it by default
START_NS = 250_000_000  # from the first call of `tend` on: by then the server takes frames
BEHIND_MS = 100  # at most so long a wait for the server before a stop is looked for
UNITS, MAX_UNITS = 150, 1 << 14  # of a synthetic animal where no model says how many
MAX_SECONDS = 3600.0  # of a synthetic session, which is drawn before it is played

MESSAGES = {"held_up": "the server was too far behind; the play waited for it"}
COUNTERS = ("frames", "spikes", "loops", *MESSAGES)


class Options(msgspec.Struct, frozen=True):
    """What both kinds of play can be told."""

    speed: str = "1"
    loop: bool = False


class ReplayOptions(Options, frozen=True):
    """What stands behind the question mark of `replay:`."""

    probe: str = ""  # of the session; empty: the model's, or the only one


class SyntheticOptions(Options, frozen=True):
    """What stands behind the question mark of `synthetic:`."""

    units: int = 0  # 0: as many as the model has of this probe
    hz: float = 8.0  # mean rate of a unit, of all units and behaviour
    seed: int = 0  # of the animal
    session: int = 0  # which session of that animal
    seconds: float = 60.0


class Play(NamedTuple):
    """What is played: `blocks` makes them from the start on, `words` say what it is."""

    fs: float
    blocks: Callable[[], Iterable[Block]]
    words: str


def open_replay(name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> PlayedSource:
    """Read a recording and get ready to play it. Raises `BadInput`, as `neds-rt replay` does."""
    where = f"--probe {name}"
    path, options = _parse(where, uri, ReplayOptions)
    if not path:
        raise BadInput(where, "URI", repr(uri), "replay:PATH")
    return PlayedSource(name, uri, options, _recorded(where, Path(path), options, units))


def open_synthetic(name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> PlayedSource:
    """Draw a session and get ready to play it. Raises `BadInput` for a bad option."""
    where = f"--probe {name}"
    path, options = _parse(where, uri, SyntheticOptions)
    if path:
        raise BadInput(where, "URI", repr(uri), "synthetic:[?option=value&...]")
    return PlayedSource(name, uri, options, _synthetic(where, options, len(units.units)))


class PlayedSource(HandedOver):
    """A play as a source: its frames come over an in-process socket."""

    messages = MESSAGES
    edges = None

    def __init__(self, name: str, uri: str, options: Options, play: Play) -> None:
        self.name, self.uri = name, uri
        speed = _speed(f"--probe {name}", options.speed)
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._handover = Handover()
        self._thread = PlayThread(
            name, play, speed, options.loop, self._handover.sender(), self.counters)
        self._thread.start()

    def tend(self) -> str:
        """Let the play begin, and return what it is at."""
        self._thread.begin.set()
        return self._thread.state

    def report(self) -> dict[str, Any]:
        """Return what is played, and the seconds of it that were."""
        return {"played": self._thread.words, "seconds": round(self._thread.seconds, 3)}

    def close(self) -> None:
        """End the thread and close both sockets."""
        self._thread.end()
        self._handover.close()


class PlayThread(threading.Thread):
    """Hands over a play's blocks when they are due, until its end or `end`."""

    def __init__(
        self, name: str, play: Play, speed: float, loop: bool, push: zmq.Socket[bytes],
        counters: dict[str, int],
    ) -> None:
        super().__init__(name=f"play {name}", daemon=True)
        self.begin = threading.Event()
        self.words, self.state, self.seconds = play.words, "", 0.0
        self._play, self._speed, self._loop, self._push = play, speed, loop, push
        self._counters = counters
        self._bridge = Bridge(name, MAX_SPIKES_PER_FRAME)
        self._frame = Frame()
        self._stop_asked = threading.Event()

    def end(self) -> None:
        """Stop and wait for the thread."""
        self._stop_asked.set()
        self.begin.set()
        self.join()

    def run(self) -> None:
        """Wait to be tended, play once or for ever, and say so at the end."""
        with self._push:
            self.begin.wait()
            start = time.monotonic_ns() + START_NS
            self._stop_asked.wait(START_NS / 1e9)
            for round_ in itertools.count():
                if round_:
                    self._bridge.restart()
                    self._counters["loops"] += 1
                start = self._once(start)
                if self._stop_asked.is_set() or not self._loop:
                    break
            self.state = f"played {self.words} to its end"
            self._stop_asked.wait()  # what was handed over is lost with this end of the socket

    def _once(self, start: int) -> int:
        """Play from the beginning, its first sample at `start`; return when the last one was."""
        first, due = None, start
        self.state = f"playing {self.words}"
        for block in self._play.blocks():
            first = block.t0 if first is None else first
            due = start + int((block.watermark - first) / self._play.fs / self._speed * 1e9)
            left = due - time.monotonic_ns()
            if self._stop_asked.wait(max(left, 0) / 1e9):
                break
            self._send(block)
            self.seconds += (block.watermark - block.t0) / self._play.fs
        return due if self._speed < float("inf") else time.monotonic_ns()

    def _send(self, block: Block) -> None:
        """Hand over a block: a frame, or more of them where it has more spikes than one takes."""
        spikes = block.spikes
        while len(spikes) > MAX_SPIKES_PER_FRAME:  # these come ahead of their watermark
            self._fill(spikes[:MAX_SPIKES_PER_FRAME], block.t0, block.t0)
            spikes = spikes[MAX_SPIKES_PER_FRAME:]
        self._fill(spikes, block.t0, block.watermark)

    def _fill(self, spikes: Any, t0: int, watermark: int) -> None:
        self._bridge.extend(spikes["sample"], spikes["unit"])
        self._bridge.emit(self._frame, t0, watermark, self._play.fs)
        if not hand_over(self._push, self._frame):
            self._counters["held_up"] += 1
            while not self._stop_asked.is_set():
                if self._push.poll(BEHIND_MS, zmq.POLLOUT) and hand_over(self._push, self._frame):
                    break
        self._counters["frames"] += 1
        self._counters["spikes"] += len(spikes)


def _parse(where: str, uri: str, options: type[Any]) -> tuple[str, Any]:
    """Return path and options of SCHEME:PATH[?option=value&...], or of SCHEME://PATH."""
    scheme, _, rest = uri.partition(":")
    path, mark, query = rest.removeprefix("//").rpartition("?")
    if not mark:
        path, query = query, ""
    return path, parse_options(where, scheme, query, options)


def _speed(where: str, text: str) -> float:
    try:
        speed = float("inf") if text == "max" else float(text)
    except ValueError:
        speed = float("nan")
    if not speed >= 1e-3:
        raise BadInput(where, "URI option", f"speed={text}", "a number from 0.001 on, or max")
    return speed


def _recorded(where: str, path: Path, options: ReplayOptions, units: UnitMap) -> Play:
    """Return the play of a session file or a flight recording, units in the model's order.

    Without a model (`neds-rt record`) all units are played, and `units` is told of each.
    """
    from neds_rt.recording.header import is_recording
    from neds_rt.recording.tape_session import read_tape_session
    from neds_rt.sources.replay import Recording, blocks, read_recording

    order = [(u.probe, u.channel, u.cluster) for u in units.units]
    recording: Recording
    if is_recording(path):
        recording, _ = read_tape_session(path, None, options.probe or None)
    else:
        probe = options.probe or (order[0][0] if order else None)
        recording = read_recording(path, probe, order or None)
    played = recording.units
    if order and [key[1:] for key in order] != played.places:
        raise BadInput(where, str(path), "a recording of other units", "those of the model")
    if not order:
        for number, (channel, cluster) in enumerate(played.places):
            electrode = f"{played.probe}/{channel}" if channel >= 0 else ""
            units.number(f"{recording.session} {number}", electrode, cluster)
    t0, t1 = int(recording.spans[0, 0]), int(recording.spans[-1, 1])
    block = max(1, round(BLOCK_S * recording.fs))
    words = f"{recording.session}, probe {played.probe}"
    return Play(recording.fs, lambda: blocks(recording, t0, t1, block), words)


def _synthetic(where: str, options: SyntheticOptions, n_model: int) -> Play:
    from neds_rt.sources.synthetic import make_animal, synthetic_blocks
    from neds_rt.synthetic import FS

    units = options.units or n_model or UNITS
    for name, value, least, most in (
        ("units", units, 1, MAX_UNITS), ("hz", options.hz, 1e-3, 1000.0),
        ("seconds", options.seconds, 0.02, MAX_SECONDS), ("seed", options.seed, 0, 1 << 31),
        ("session", options.session, 0, 1 << 31),
    ):
        if not least <= value <= most:
            raise BadInput(where, "URI option", f"{name}={value}", f"{least:g} to {most:g}")
    animal = make_animal(options.seed, units, options.hz)
    parts = synthetic_blocks(animal, options.session, options.seconds, round(BLOCK_S * FS))
    return Play(FS, lambda: parts, f"animal {options.seed}, session {options.session}")
