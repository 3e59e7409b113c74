"""Frames from a source's own thread to the one that serves, over an in-process socket."""

from __future__ import annotations

import itertools

import zmq

from neds_rt.sources.frame import Frame

QUEUE = 2000  # frames between the two threads
_serial = itertools.count()


class Handover:
    """The end that the serving thread waits on; `sender` makes the other one."""

    def __init__(self) -> None:
        self._endpoint = f"inproc://handover-{next(_serial)}"
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self.socket.setsockopt(zmq.RCVHWM, QUEUE)
        self.socket.bind(self._endpoint)

    def sender(self) -> zmq.Socket[bytes]:
        """Return a socket for the other thread, which closes it."""
        push: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        push.setsockopt(zmq.SNDHWM, QUEUE)
        push.setsockopt(zmq.LINGER, 0)
        push.connect(self._endpoint)
        return push

    def receive(self, frame: Frame) -> bool:
        """Put one frame that waits into `frame`; False when none does."""
        try:
            parts = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        frame.header, frame.payload = parts
        frame.parts = 2
        return True

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


class HandedOver:
    """What the serving thread sees of a source whose frames another thread makes."""

    _handover: Handover

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The end of the in-process socket."""
        return self._handover.socket

    def receive(self, frame: Frame) -> bool:
        """Take one frame that the other thread has made."""
        return self._handover.receive(frame)


def hand_over(push: zmq.Socket[bytes], frame: Frame) -> bool:
    """Send a frame without waiting; False where the server is too far behind."""
    try:
        push.send_multipart([frame.header, frame.payload], zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
