"""An engine whose step never ends, to see that a server can still be stopped."""

import signal
import sys
import time

from neds_rt.engines.native import NativeEngine


class HangingEngine(NativeEngine):
    """The native engine, until its first step."""

    def step(self, counts, present=True):
        handler = signal.getsignal(signal.SIGINT)

        def told(number, frame):
            handler(number, frame)
            print("interrupted", file=sys.stderr, flush=True)

        signal.signal(signal.SIGINT, told)
        print("hanging", file=sys.stderr, flush=True)
        time.sleep(600)
