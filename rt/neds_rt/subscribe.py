"""Subscribe to a publisher and know that it stands before the first message is sent.

A PUB socket drops what it sends before a subscriber's request has reached it. Programs that start
both ends and count every message therefore wait here.
"""

from __future__ import annotations

import time

import zmq

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import connect
from neds_rt.errors import StartError
from neds_rt.wire import MAX_DECODE_BYTES, MAX_WAITING

SETTLE_S = 0.1  # the request follows the handshake; it is not acknowledged


def subscribe(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, timeout: float,
    access: Access = LOCAL,
) -> zmq.Socket[bytes]:
    """Return a SUB socket, connected and subscribed to all; raises `StartError` without answer."""
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, MAX_WAITING)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_DECODE_BYTES)
    socket.setsockopt(zmq.LINGER, 0)
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    socket.subscribe(b"")
    connect("subscribe", socket, endpoint, access)
    answered = monitor.poll(int(timeout * 1000))
    socket.disable_monitor()
    monitor.close(linger=0)
    if not answered:
        socket.close()
        raise StartError(f"{endpoint}: no answer for {timeout:g} s")
    time.sleep(SETTLE_S)
    return socket
