"""Mistakes with the plugins of Open Ephys."""

import json
import struct
from contextlib import contextmanager

import zmq

from tests.rt.foreign import free_port
from tests.rt.mistakes import ADDRESS, Mistake, Rig, repeating
from tests.rt.raw_band import CHANNELS, templates
from tools.twins.feed import gui_blocks, random_feed
from tools.twins.network_events import NetworkEventsTwin
from tools.twins.oebroadcast import EventBroadcaster
from tools.twins.openephys import ZmqInterface

FEED = random_feed(n_units=6, rate_hz=20.0, seconds=20.0, seed=6)
UNSORTED = random_feed(n_units=3, rate_hz=20.0, seconds=20.0, seed=7)
UNSORTED.cluster[:] = 0


@contextmanager
def playing(twin, sizes=(697, 696), also=None):
    """The twin sends block after block, and `also()` after each."""
    blocks = gui_blocks(twin.feed, 0, 600_000, sizes)

    def step(_):
        block = next(blocks, None)
        if block is not None:
            twin.send_block(block)
        if also is not None:
            also()

    with repeating(step):
        yield


def plugin(uri="", *, feed=FEED, sizes=(697, 696), also=None, silent=False, **options):
    """A ZMQ Interface; `uri` are the probe's options, `also` is what it sends beside all else."""

    @contextmanager
    def plant(_):
        with ZmqInterface(feed, port=free_port(), hwm=0, **options) as twin:
            rig = Rig([twin.port, twin.port + 1],
                      (f"--probe=a=oe://127.0.0.1:{twin.port}{uri}",) if uri else ())
            if silent:
                yield rig
                return
            with playing(twin, sizes, also and (lambda: also(twin))):
                yield rig

    return plant


def sent(*parts):
    """`also` for a message of these parts, counted as one of the plugin's."""
    return lambda twin: twin.send_raw(*parts)


def headed(kind, **content):
    """`also` for a message whose header is well formed."""

    def send(twin):
        body = "spike" if kind == "spike" else "content"
        header = {"message_num": twin.number + 1, "type": kind,
                  body: {"stream": twin.stream} | content}
        twin.send_raw(b"EVENT\0", json.dumps(header).encode())

    return send


def other_stream(twin):
    header = {"type": "event", "content": {"stream": "ProbeB-AP", "sample_num": 1}}
    twin.send_raw(b"EVENT\0", json.dumps(header).encode(), counted=False)


@contextmanager
def templates_of_another_rate(folder):
    (folder / "a.templates").write_bytes(templates().encode())
    slow = random_feed(n_units=6, rate_hz=20.0, seconds=20.0, seed=6, fs=25_000.0)
    plant = plugin(f"?mode=templates&templates={folder}/a.templates", feed=slow, channels=CHANNELS)
    with plant(folder) as rig:
        yield rig


@contextmanager
def uri_of_another_plugin(folder):
    with plugin()(folder) as rig:
        yield Rig(rig.ports, (f"--probe=a=oe-events://127.0.0.1:{rig.ports[0]}",))


def restarted(twin):
    if twin.number > 100:
        twin.start_acquisition()


def broadcaster(uri="", *, also=None, **options):
    @contextmanager
    def plant(_):
        with EventBroadcaster(FEED, port=free_port(), hwm=0, **options) as twin:
            rig = Rig([twin.port], (f"--probe=a=oe-events://127.0.0.1:{twin.port}{uri}",)
                      if uri else ())
            with playing(twin, also=also and (lambda: also(twin))):
                yield rig

    return plant


def second_stream(twin):
    twin.send_raw(b"\1\0", json.dumps({
        "event_type": "spike", "stream": "ProbeB-AP", "electrode": "Electrode 1",
        "sample_number": 7, "sorted_id": 1, "sample_rate": 3e4}).encode())


@contextmanager
def broadcaster_of_old(_):
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        port = socket.bind_to_random_port(ADDRESS)
        with repeating(lambda k: socket.send_multipart(
                [b"\2\0", struct.pack("<d", k / 200), bytes(190)])):
            yield Rig([port])


@contextmanager
def events_without_acquisition(_):
    with NetworkEventsTwin(acquiring=False) as twin:
        yield Rig([int(twin.endpoint.rpartition(":")[2])])


MISTAKES = [
    Mistake("ZMQ Interface: no continuous channel selected", "fail", "PORT channels",
            "select exactly one", plugin(channels=0)),
    Mistake("ZMQ Interface: two channels selected", "warn", "PORT channels",
            "deselect all but one", plugin(channels=2)),
    Mistake("ZMQ Interface: all 384 channels selected", "fail", "PORT channels",
            "2.6 blocks fill the plugin's queue", plugin(channels=384)),
    Mistake("ZMQ Interface, `?mode=`: no channel selected", "fail", "PORT channels",
            "select all", plugin("?mode=threshold", channels=0)),
    Mistake("ZMQ Interface, `?mode=`: a channel is not selected", "fail", "PORT channels",
            "select all", plugin("?mode=threshold&channels=8", channels=7)),
    Mistake("ZMQ Interface, `?mode=`: more channels than the templates have", "fail",
            "PORT channels", "or the templates are of",
            plugin("?mode=threshold&channels=8", channels=9)),
    Mistake("ZMQ Interface, `?mode=templates`: another rate than the templates'", "fail",
            "PORT templates", "measured on this probe, at this rate", templates_of_another_rate),
    Mistake("ZMQ Interface: blocks of 192 samples", "fail", "PORT block",
            "200 samples or more", plugin(sizes=(192,))),
    Mistake("ZMQ Interface: nobody answers heartbeats on the next port", "warn", "PORT heartbeat",
            "ports that are two apart", plugin(heartbeat=False)),
    Mistake("ZMQ Interface: a stream's name is not ASCII", "warn", "PORT names",
            "ASCII letters only", plugin(stream="µ-AP")),
    Mistake("ZMQ Interface: messages are lost", "fail", "PORT losses",
            "deselect channels", plugin(loss=0.1)),
    Mistake("ZMQ Interface: acquisition restarted while doctor listens", "warn", "PORT losses",
            "two plugins send here", plugin(also=restarted)),
    Mistake("ZMQ Interface: headers that cannot be read", "fail", "PORT messages",
            "ASCII letters only, or update", plugin(also=sent(b"DATA\0", b"{\"a", b""))),
    Mistake("ZMQ Interface: messages of a type that is not known", "warn", "PORT messages",
            "versions 0.2 to 1.x", plugin(also=headed("text", sample_num=1))),
    Mistake("ZMQ Interface: spikes without a sample number", "fail", "PORT messages",
            "versions 0.2 to 1.x", plugin(also=headed("spike", electrode="E 1"))),
    Mistake("ZMQ Interface: sample numbers that cannot be", "fail", "PORT messages",
            "versions 0.2 to 1.x", plugin(also=headed("spike", sample_num=2**60))),
    Mistake("ZMQ Interface: waveforms not as long as their header says", "fail", "PORT messages",
            "versions 0.2 to 1.x",
            plugin(also=headed("spike", sample_num=7, num_channels=1, num_samples=40))),
    Mistake("ZMQ Interface: another program sends to its port", "fail", "PORT messages",
            "no other program", plugin(also=sent(b"hello", b"{}"))),
    Mistake("ZMQ Interface: no Spike Detector before it", "fail", "PORT spikes",
            "put a Spike Detector", plugin(feed=FEED.until(0))),
    Mistake("ZMQ Interface: no Spike Sorter before it", "warn", "PORT spikes",
            "put a Spike Sorter", plugin(feed=UNSORTED)),
    Mistake("ZMQ Interface: a second stream through one plugin", "warn", "PORT streams",
            "a plugin of its own", plugin(also=other_stream)),
    Mistake("ZMQ Interface: `?stream=` with a name that is not there", "fail", "PORT stream",
            "?stream= with one of 'ProbeA-AP'", plugin("?stream=ProbeC")),
    Mistake("ZMQ Interface: acquisition is not running", "warn", "PORT",
            "start acquisition", plugin(silent=True)),
    Mistake("A URI for another plugin than the one that is there", "fail", "PORT probe",
            "oe:// in the URI", uri_of_another_plugin),
    Mistake("Event Broadcaster where ZMQ Interface could be", "warn", "PORT losses",
            "use ZMQ Interface", broadcaster()),
    Mistake("Event Broadcaster: binary spikes without `?rate=`", "warn", "PORT rate",
            "?rate=30000 in the URI", broadcaster(raw=True)),
    Mistake("Event Broadcaster: a wrong `?rate=`", "fail", "PORT rate",
            "?rate=30000 in the URI", broadcaster("?rate=25000", raw=True)),
    Mistake("Event Broadcaster: bodies that cannot be read", "fail", "PORT messages",
            "update Event Broadcaster", broadcaster(also=lambda t: t.send_raw(b"\1\0", b"{\"x"))),
    Mistake("Event Broadcaster: binary spikes cut short", "fail", "PORT messages",
            "update Event Broadcaster",
            broadcaster("?rate=30000", raw=True,
                        also=lambda t: t.send_raw(b"\1\0", b"\2\1" + bytes(30)))),
    Mistake("Event Broadcaster: plugin 0.1", "fail", "PORT messages",
            "update Event Broadcaster", broadcaster_of_old),
    Mistake("Event Broadcaster: two streams and no `?stream=`", "warn", "PORT streams",
            "?stream=NAME", broadcaster(also=second_stream)),
    Mistake("Network Events: acquisition is not running", "warn", "PORT",
            "start acquisition", events_without_acquisition),
]
