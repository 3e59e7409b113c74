"""Twin of Open Ephys' Network Events plugin: a REP socket that answers text.

    python tools/twins/network_events.py --port 5556

`TTL Line=5 State=1` -> `TTLHandled: Channel=5 on=1`, `IsAcquiring` -> `1` or `0`, anything else
`NotHandled`; lines are 1 to 256. As the plugin does, it answers whether or not acquisition runs and
takes TTLs into the recording only while it does.
"""

from __future__ import annotations

import argparse
import re
import threading
import time

import zmq

TTL = re.compile(r"TTL\s+Line=(\d+)\s+State=([01])", re.IGNORECASE)
LINES = 256


class NetworkEventsTwin:
    """The plugin, bound to `endpoint`; `ttls` holds (monotonic seconds, line, state) taken."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:*", *, acquiring: bool = True) -> None:
        self.acquiring, self.mute = acquiring, False  # mute: takes requests, never answers
        self.ttls: list[tuple[float, int, bool]] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def answer(self, text: str) -> str:
        """Return the plugin's answer to one request."""
        found = TTL.fullmatch(text.strip())
        if found:
            line, state = int(found[1]), found[2] == "1"
            if not 1 <= line <= LINES:
                return "InvalidLine"
            if self.acquiring:
                self.ttls.append((time.monotonic(), line, state))
            return f"TTLHandled: Channel={line} on={int(state)}"
        if text.strip().casefold() == "isacquiring":
            return "1" if self.acquiring else "0"
        return "NotHandled"

    def close(self) -> None:
        """Unbind."""
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def __enter__(self) -> NetworkEventsTwin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(20):
                continue
            text = self._socket.recv().decode(errors="replace")
            while self.mute and not self._stop.is_set():
                time.sleep(0.01)
            self._socket.send_string(self.answer(text))


def main() -> int:
    """Serve until interrupted, printing TTLs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=5556, help="default 5556")
    args = parser.parse_args()
    with NetworkEventsTwin(f"tcp://127.0.0.1:{args.port}") as twin:
        print(twin.endpoint, flush=True)
        seen = 0
        try:
            while True:
                time.sleep(0.05)
                for at, line, state in twin.ttls[seen:]:
                    print(f"{at:.4f} line {line} {'on' if state else 'off'}", flush=True)
                    seen += 1
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
