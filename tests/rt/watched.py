"""A server under watch: two probes that play at the pace of bins, one of which may fall silent."""

import threading
import time

from tests.rt.serving import COMMAND, Publisher, Serving, small_bundle
from tests.rt.spike_frames import Sender

WIDTH = 600  # samples a bin of 20 ms


def spikes_in(bin_):
    """How many spikes each probe sends in a bin: 0 to 5, without a period."""
    return (bin_ * 2_654_435_761 >> 9) % 6


class Pacer:
    """Plays one probe, a frame a bin, until it is closed; `pause` is a probe that hangs."""

    def __init__(self, uri, stream, units=2):
        self.publisher = Publisher(uri)
        self._sender, self._units = Sender(stream), units
        self._playing, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self):
        self.publisher.wait()
        self._playing.set()
        self._thread.start()

    def pause(self):
        self._playing.clear()

    def close(self):
        self._stop.set()
        self._playing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.publisher.close()

    def _run(self):
        bin_, due = 0, time.monotonic()
        while not self._stop.is_set():
            if not self._playing.wait(0.1):
                continue
            samples = [bin_ * WIDTH + k for k in range(spikes_in(bin_))]
            self.publisher.send(self._sender.frame(
                bin_ * WIDTH, (bin_ + 1) * WIDTH, samples, [bin_ % self._units] * len(samples)))
            bin_, due = bin_ + 1, due + 0.02
            time.sleep(max(0.0, due - time.monotonic()))


class Watched:
    """The server, its two probes, and where it publishes."""

    def __init__(self, folder, probes=("a", "b"), bundle=small_bundle, *options):
        uris = {name: f"zmq+ipc://{folder}/probe{i}" for i, name in enumerate(probes)}
        self.probes = {name: Pacer(uri, name) for name, uri in uris.items()}
        self.serving = Serving(bundle(folder / "x.neds", probes=probes), uris, *options)
        words = self.serving.lines[-1].split()
        self.decodes = words[1]
        self.status = next(w for w in words if w.startswith("status=")).removeprefix("status=")
        for probe in self.probes.values():
            probe.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for probe in self.probes.values():
            probe.close()
        self.serving.__exit__()


def command(*words):
    return [*COMMAND, *map(str, words)]
