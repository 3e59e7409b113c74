"""Mistakes with SpikeGLX, Trodes, senders of one's own, units, and ports."""

from contextlib import contextmanager, nullcontext

import numpy as np
import zmq

from neds_rt.bundle import random_bundle, write_bundle
from tests.rt.foreign import free_port, units_of
from tests.rt.mistakes import ADDRESS, Mistake, Rig, repeating
from tests.rt.mistakes.openephys import FEED, UNSORTED, plugin
from tests.rt.serving import MODALITIES, SHAPE
from tests.rt.spike_frames import Sender, fields, pack
from tools.twins.native import NativePublisher
from tools.twins.spikeglx import SpikeGlxTwin
from tools.twins.trodes import TrodesTwin

UNIT_COLUMNS = "probe\tchannel\tcluster\tstream\telectrode\tsorted_id\n"


class OddSpikeGlx(SpikeGlxTwin):
    """Counts `pace` times as fast as its rate says, and has `probes` probes."""

    pace, probes = 1.0, 1

    @property
    def count(self):
        return int(super().count * self.pace)

    def _answer(self, command, words):
        if command == "GETSTREAMNP" and not self.probes:
            return "0"
        return super()._answer(command, words)


def spikeglx(uri="", *, prepare=lambda twin: None, channels=4, paced=True, **changes):
    """A SpikeGLX; `prepare` sets the mistake up."""

    @contextmanager
    def plant(_):
        with OddSpikeGlx(np.zeros((3000, channels), np.int16), paced=paced) as twin:
            for name, value in changes.items():
                setattr(twin, name, value)
            prepare(twin)
            yield Rig([twin.port],
                      (f"--probe=a=spikeglx://127.0.0.1:{twin.port}{uri}",) if uri else ())

    return plant


def still(twin, fault=""):
    twin.advance(3000)
    twin.fault = fault


@contextmanager
def templates_of_more_channels(folder):
    from tests.rt.raw_band import templates

    (folder / "a.templates").write_bytes(templates().encode())
    with spikeglx(f"?mode=templates&templates={folder}/a.templates")(folder) as rig:
        yield rig


def network(*, feed=FEED, prepare=lambda twin: None, message=None, offer=True, playing=True):
    """A Trodes network; `message` is sent beside its spikes."""

    @contextmanager
    def plant(_):
        with TrodesTwin(feed, offer=offer) as twin:
            prepare(twin)

            def step(k):
                twin.play(300 * k, 300 * k + 300)
                if message is not None:
                    twin.send(message)

            with repeating(step) if playing else nullcontext():
                yield Rig([twin.port])

    return plant


def elsewhere(twin):
    twin.names["source.spikes"] = "tcp://10.0.0.1:5000"


def bundle_of(folder, probe="p"):
    """A bundle of the feed's units."""
    units = [type(u)(probe, u.channel, u.cluster) for u in units_of(FEED)]
    made = random_bundle(SHAPE, len(units), MODALITIES, bin_size_s=0.02)
    write_bundle(folder / "x.neds", session="s", subject="m", bin_size_s=0.02, shape=SHAPE,
                 units=units, modalities=made.manifest.modalities, weights=made.weights)
    return f"--model={folder}/x.neds"


def sender(make, *, bundle="", probe=""):
    """A publisher of frames: `make(sender, k)` returns the parts of the k-th message."""

    @contextmanager
    def plant(folder):
        with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
            port = socket.bind_to_random_port(ADDRESS)
            source = Sender("p")
            options = [bundle_of(folder, bundle)] if bundle else []
            if probe:
                options.append(f"--probe={probe}=zmq+tcp://127.0.0.1:{port}")
            with repeating(lambda k: socket.send_multipart(make(source, k))):
                yield Rig([port], tuple(options))

    return plant


def good(source, k, unit=0):
    return source.frame(150 * k, 150 * k + 150, [150 * k], [unit])


def every_other(odd):
    """Frames as they should be, and one of `odd(k)` between each two."""
    return sender(lambda source, k: good(source, k // 2) if k % 2 == 0 else odd(k))


@contextmanager
def dropping(_):
    # The twin keeps to real time by itself, so each call plays a stretch of it.
    with NativePublisher(FEED, port=(port := free_port()), loss=0.3) as twin, \
            repeating(lambda k: twin.play(6000 * k, 6000 * k + 6000)):
        yield Rig([port])


def late(source, k):
    return source.frame(150 * k, 150 * k + 150, [max(0, 150 * k - 300)], [0])


@contextmanager
def stranger(_):
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port(ADDRESS)
        with repeating(lambda k: socket.send(b"weather %d" % k)):
            yield Rig([port])


@contextmanager
def unit_map(folder, lines):
    table = folder / "units.tsv"
    table.write_text(UNIT_COLUMNS + "".join(lines))
    with plugin()(folder) as rig:
        yield Rig(rig.ports, (bundle_of(folder), f"--units={table}"))


MISTAKES = [
    Mistake("SpikeGLX: no run", "fail", "PORT run", "start a run",
            spikeglx(prepare=lambda twin: twin.stop_run())),
    Mistake("SpikeGLX: no probe enabled", "fail", "PORT probes", "enable a probe",
            spikeglx(probes=0)),
    Mistake("SpikeGLX: `?probe=` with one that is not there", "fail", "PORT probes",
            "one of these in the URI", spikeglx("?probe=1")),
    Mistake("SpikeGLX: a probe without AP channels", "fail", "PORT probe 0",
            "another probe=", spikeglx(channels=0)),
    Mistake("SpikeGLX: its count stands still", "fail", "PORT probe 0",
            "the probe's cable", spikeglx(prepare=still, paced=False)),
    Mistake("SpikeGLX: its count runs at another rate than it says", "warn", "PORT probe 0",
            "sample rate is mis-configured", spikeglx(pace=1.1)),
    Mistake("SpikeGLX: it refuses to fetch", "fail", "PORT probe 0", "SpikeGLX's console",
            spikeglx(prepare=lambda twin: still(twin, "error"), paced=False)),
    Mistake("SpikeGLX: it closes the connection", "fail", "PORT replies", "SpikeGLX's console",
            spikeglx(prepare=lambda twin: still(twin, "close"), paced=False)),
    Mistake("SpikeGLX: samples are gone before they are fetched", "fail", "PORT probe 0 fetch",
            "on the machine of SpikeGLX", spikeglx(queue_s=0.001)),
    Mistake("SpikeGLX, `?mode=templates`: another probe's templates", "fail", "PORT probe 0 "
            "templates", "measured on this probe", templates_of_more_channels),
    Mistake("Trodes: no `source.spikes` offered", "fail", "PORT spikes", "open a workspace",
            network(offer=False, playing=False)),
    Mistake("Trodes: the directory names another machine", "fail", "PORT spikes",
            "open a workspace", network(prepare=elsewhere, playing=False)),
    Mistake("Trodes: not streaming", "fail", "PORT spikes", "start streaming",
            network(playing=False)),
    Mistake("Trodes: nothing sorted", "warn", "PORT spikes", "draw clusters",
            network(feed=UNSORTED)),
    Mistake("Trodes: messages that cannot be read", "fail", "PORT messages", "update Trodes",
            network(message=b"\xc1")),
    Mistake("Trodes: sample counts that cannot be", "fail", "PORT messages", "update Trodes",
            network(message={"nTrodeId": 1, "cluster": 1, "localTimestamp": -5})),
    Mistake("Trodes on another machine than the server", "warn", "PORT losses",
            "on the machine of Trodes", network()),
    Mistake("Native frames: headers that cannot be read", "fail", "PORT messages",
            "docs/how-to/own-sender.md", every_other(lambda k: pack(["x"]))),
    Mistake("Native frames: another wire version", "fail", "PORT messages",
            "docs/how-to/own-sender.md", every_other(lambda k: pack(fields(version=2).values()))),
    Mistake("Native frames: a payload not as long as its header says", "fail", "PORT messages",
            "docs/how-to/own-sender.md", every_other(lambda k: pack(fields(n_spikes=3).values()))),
    Mistake("Native frames: messages of three parts", "fail", "PORT messages",
            "docs/how-to/own-sender.md", every_other(lambda k: (*pack(fields().values()), b""))),
    Mistake("Native frames: a watermark that goes backwards", "fail", "PORT messages",
            "docs/how-to/own-sender.md",
            sender(lambda source, k: source.frame(0, 100_000 - 150 * (k % 9), [200_000], [0]))),
    Mistake("Native frames: frames are lost on the way", "fail", "PORT gaps", "XPUB_NODROP",
            dropping),
    Mistake("Native frames: spikes below the last watermark", "fail", "PORT late spikes",
            "no spike below it will follow", sender(late)),
    Mistake("Native frames: no spikes in them", "fail", "PORT spikes", "send the units' spikes",
            sender(lambda source, k: source.frame(150 * k, 150 * k + 150))),
    Mistake("Native frames: a stream that is no `--probe`", "fail", "PORT stream",
            "name the stream 'q'", sender(good, probe="q")),
    Mistake("Native frames: a stream that is no probe of the bundle", "fail", "PORT stream",
            "name the stream 'q'", sender(good, bundle="q")),
    Mistake("Native frames: units that the bundle does not have", "fail", "PORT units",
            "in the bundle's order", sender(lambda s, k: good(s, k, unit=6), bundle="p")),
    Mistake("A model some of whose units nothing can mean", "warn", "units", "into the unit map",
            lambda folder: unit_map(folder, ["p\t0\t1\t\tElectrode 0\t1\n"])),
    Mistake("A model none of whose units fires", "fail", "units", "into the unit map",
            lambda folder: unit_map(folder, ["p\t0\t1\t\tElectrode 99\t1\n"])),
    Mistake("A publisher of another program", "warn", "PORT", "the program's own port", stranger),
    Mistake("Nobody on any port", "fail", "ports", "start the acquisition program",
            lambda _: nullcontext(Rig([free_port()]))),
]
