"""A decode crossing a threshold as a TTL event in Open Ephys, through its Network Events plugin.

The plugin answers text over ZeroMQ REQ/REP: `TTL Line=5 State=1` -> `TTLHandled: Channel=5 on=1`.
One request is under way at a time. An event that finds one under way, or nobody connected, is
dropped and counted: late it would be worth less than nothing. Only `off` is said until it is heard,
and does not wait for the answer to `on`.
"""

from __future__ import annotations

import math

import msgspec
import zmq

from neds_rt.errors import BadInput
from neds_rt.sinks.guard import Guard
from neds_rt.sinks.outlet import WHERE
from neds_rt.sinks.values import labels, numbers
from neds_rt.sources.address import parse_address
from neds_rt.wire import Decode

DEFAULT_PORT = 5556
ANSWER_S = 1.0  # without an answer for so long the socket is made anew ("lazy pirate")
MAX_LINE = 256  # lines are counted from 1, as the plugin's text has them


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a line is raised and lowered; the options of `oe-events+tcp://HOST[:5556]`."""

    value: str  # which number, as `values.labels` names it
    above: float  # the line is raised when a valid decode reaches this
    below: float | None = None  # and may be raised again after one below this (default: above)
    refractory: float = 0.1  # seconds from one event to the next, at least
    pulse: float = 0.01  # seconds the line stays up; 0: until a decode is below
    line: int = 1
    stale: float | None = None  # seconds without a decode that end validity (default: a bin, 3 ms)
    lockout: float = 0.1  # seconds that decodes have to be valid again before an event


class Trigger:
    """The rule itself: valid decodes in, whether to raise or lower the line out. No sockets."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._below = rule.above if rule.below is None else rule.below
        self._armed = True
        self._last_event = -math.inf
        self.up = False  # where the line should be

    def see(self, number: float, now_s: float) -> bool:
        """Take a number of a valid decode; True if the line is to be raised now."""
        if number < self._below:
            self._armed = True
            self.up = self.up and self.rule.pulse > 0
        if not (self._armed and number >= self.rule.above):
            return False
        if now_s - self._last_event < self.rule.refractory:
            return False  # stays armed: a crossing that lasts is an event once the time is over
        self._armed, self.up, self._last_event = False, True, now_s
        return True

    def tick(self, now_s: float) -> None:
        """Lower the line when its pulse is over."""
        if now_s >= self.due_s:
            self.up = False

    @property
    def due_s(self) -> float:
        """When the pulse of a raised line is over; infinite where there is none."""
        pulsing = self.up and self.rule.pulse > 0
        return self._last_event + self.rule.pulse if pulsing else math.inf

    def take_back(self) -> None:
        """The line is to be down: the safe state, or an event that could not be delivered."""
        self.up = False


class TtlOutlet:
    """Raises and lowers one TTL line by a `Rule`."""

    def __init__(self, uri: str, *, insecure: bool = False) -> None:
        address, rule = parse_address(WHERE, uri, DEFAULT_PORT, Rule, insecure=insecure)
        _check(rule)
        self.rule, self.trigger = rule, Trigger(rule)
        self.guard = Guard(rule.stale, rule.lockout)
        self._endpoint = address.endpoint
        self.counters = dict.fromkeys(("events", "dropped", "answered", "bad_answer", "unanswered",
                                       "overtaken", "no_value", "silences"), 0)
        self._context = zmq.Context()
        self._socket = self._connect()
        self._asked: tuple[bool, float] | None = None  # state asked for and when
        self._is_up = False  # what the GUI last heard from us
        self._silent = True

    @property
    def due_s(self) -> float:
        """When `tick` has something to do."""
        return min(self.trigger.due_s, math.inf if self._silent else self.guard.due_s)

    def write(self, decode: Decode, now_s: float) -> None:
        """Look at the rule's value of a decode that may be acted upon; else lower the line."""
        self.tick(now_s)
        if not self.guard.see(decode, now_s):
            self.trigger.take_back()
            self.tick(now_s)
            return
        self._silent = False
        number = dict(zip(labels(decode), numbers(decode), strict=True)).get(self.rule.value)
        if number is None:
            self.counters["no_value"] += 1
        elif self.trigger.see(number, now_s):
            self._raise(now_s)

    def tick(self, now_s: float) -> None:
        """Read an answer, give up on one that does not come, lower the line when that is due."""
        self._hear(now_s)
        self.trigger.tick(now_s)
        if self.guard.silent(now_s):
            self.trigger.take_back()
            self.counters["silences"] += not self._silent
            self._silent = True
        if self._is_up and not self.trigger.up and (self._asked is None or self._asked[0]):
            overtakes = self._asked is not None
            self.counters["overtaken"] += self._ask(False, now_s) and overtakes

    def close(self) -> None:
        """Lower a raised line, as far as that can be said without waiting long."""
        self.trigger.take_back()
        if self._asked is not None:
            self._socket.poll(100)
            self._hear(self._asked[1])
        if self._is_up and self._ask(False, 0.0):
            self._socket.poll(100)
        self._socket.close()
        self._context.destroy(linger=100)

    def _raise(self, now_s: float) -> None:
        if self._asked is None and self._ask(True, now_s):
            self._is_up = True
            self.counters["events"] += 1
            return
        self.counters["dropped"] += 1
        self.trigger.take_back()

    def _ask(self, up: bool, now_s: float) -> bool:
        try:
            self._socket.send_string(f"TTL Line={self.rule.line} State={int(up)}", zmq.NOBLOCK)
        except zmq.Again:  # nobody is connected
            return False
        self._asked = up, now_s
        return True

    def _hear(self, now_s: float) -> None:
        if self._asked is None:
            return
        up, since = self._asked
        try:
            answer = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            if now_s - since >= ANSWER_S:
                self.counters["unanswered"] += 1
                self._socket.close()
                self._socket = self._connect()
                self._asked = None
            return
        self._asked = None
        handled = answer.strip(b"\0 \n").startswith(b"TTLHandled")
        self.counters["answered" if handled else "bad_answer"] += 1
        if not up:
            self._is_up = False

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.REQ_RELAXED, 1)  # a request may follow one without an answer,
        socket.setsockopt(zmq.REQ_CORRELATE, 1)  # whose answer is then no longer listened to
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a GUI that is not there
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, 4096)
        socket.connect(self._endpoint)
        return socket


def _check(rule: Rule) -> None:
    """Raise `BadInput` for a rule that cannot work."""
    for name in ("above", "below", "refractory", "pulse"):
        number = getattr(rule, name)
        if number is not None and not math.isfinite(number):
            raise BadInput(WHERE, name, number, "a finite number")
    if rule.below is not None and rule.below > rule.above:
        raise BadInput(WHERE, "below", rule.below, f"at most above ({rule.above})")
    if rule.refractory < rule.pulse or rule.pulse < 0:
        raise BadInput(WHERE, "pulse", rule.pulse, f"0 to refractory ({rule.refractory})")
    if not 1 <= rule.line <= MAX_LINE:
        raise BadInput(WHERE, "line", rule.line, f"1 to {MAX_LINE}")
