"""The native sink: a PUB socket that binds; a subscriber that is too slow loses messages alone."""

from __future__ import annotations

import zmq

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import bind

# Messages waiting for one slow subscriber, 20 s of 20 ms bins; newer ones are dropped for it.
SEND_QUEUE = 1000
LINGER_MS = 500


class ZmqSink:
    """Decode messages, one ZeroMQ frame each, to whoever subscribes at `endpoint`."""

    def __init__(self, endpoint: str, access: Access = LOCAL) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            self.endpoint = bind("--out", self._socket, endpoint, access)
        except BaseException:
            self._socket.close()
            raise

    def send(self, message: memoryview) -> None:
        """Publish one message. A PUB socket drops rather than blocks."""
        self._socket.send(message, copy=True)

    def close(self) -> None:
        """Close the socket once its queues are sent, at most `LINGER_MS` later."""
        self._socket.close()
