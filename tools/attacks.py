"""Attack a running server in every way that we know of, and say what became of it.

    python tools/attacks.py [--json] [--quick]

Starts `neds-rt serve` with keys on all of its sockets and a probe that has one, then tries to get
in, to be believed, and to bring it down; after every attempt a bin must still be decoded. Each row
says what was tried, whether it was refused (or done no harm) and what the server said. Exit code 4
if one got through. `--quick` calls the command in this process where a bundle has to be refused.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import zmq  # noqa: E402

from bench.output import finish  # noqa: E402
from neds_rt.client import Client  # noqa: E402
from neds_rt.curve import LOCAL, Access, write_key_pair  # noqa: E402
from neds_rt.endpoints import connect  # noqa: E402
from neds_rt.errors import NedsError  # noqa: E402
from neds_rt.wire import SPIKE_DTYPE  # noqa: E402
from tools import attack_bundles  # noqa: E402
from tools.attack_rig import Rig  # noqa: E402

REFUSED, HARMLESS, THROUGH, SKIPPED = "refused", "no harm", "GOT THROUGH", "skipped"
DEAF_S = 0.6  # in which somebody who is not let in hears nothing
HTML = "<script>alert(1)</script>"


class Row(NamedTuple):
    """One attack and what became of it."""

    attack: str
    result: str
    said: str


def strangers(rig: Rig) -> Iterator[Row]:
    """Without a key, with one that is not listed, and with one's own server."""
    known, unknown = rig.access("client", server="server"), rig.access("stranger", server="server")
    misled = rig.access("client", server="stranger")
    for name, access in (("client with an unknown key", unknown), ("client without a key", LOCAL),
                         ("client that expects another server's key", misled)):
        rig.skip()
        heard = _hears(rig, access)
        rig.decode()
        said = rig.said() or "nothing: the handshake fails before anything is read"
        yield Row(name, THROUGH if heard else REFUSED, said)
    if not _hears(rig, known):
        raise RuntimeError("the listed client does not get in either")


def impostor(folder: Path) -> Row:
    """A probe with a key of its own stands where the server connects to."""
    with Rig(folder, probe_key="stranger", decodes=False) as rig:
        rig.send_blind(20)
        summary = rig.end()
    frames = summary["counters"]["frames"]
    said = f"{frames} frames taken, {summary['stale_decodes']} invalid decodes published"
    return Row("probe with another key than --curve-server", THROUGH if frames else REFUSED, said)


def frames(rig: Rig, quick: bool) -> Iterator[Row]:
    """What a probe that has a key may still not do."""
    header, payload = rig.decode()
    long = bytes(1_000_001 * SPIKE_DTYPE.itemsize)
    tries: dict[str, Callable[[], list[bytes]]] = {
        "replayed frame": lambda: [header, payload],
        "frame of 1 000 001 spikes": lambda: [rig.header(n_spikes=1_000_001), long],
        "frame that says another number of spikes": lambda: [rig.header(n_spikes=9), payload],
        "message of 5 parts": lambda: [header, payload, b"", b"", b""],
        "header of 1 MB": lambda: [bytes(1 << 20), b""],
        "frame of another probe": lambda: [rig.header(stream="nobody"), b""],
        "watermark 2^62": lambda: [rig.header(watermark=1 << 62), b""],
    }
    for name, make in tries.items():
        rig.skip()
        rig.send(make())
        rig.decode()
        good = rig.last.reason in ("ok", "warming up")
        yield Row(name, REFUSED if good else THROUGH, rig.said() or "counted, in the summary")
    rig.skip()
    rig.decode(unit=2**32 - 1)
    yield Row("unit 2^32 - 1", REFUSED, rig.said())
    rng = np.random.default_rng(0)
    for _ in range(200 if quick else 5000):
        rig.send([rng.bytes(int(n)) for n in rng.integers(0, 600, rng.integers(1, 4))])
    rig.decode()
    yield Row("random bytes as frames", HARMLESS, rig.said() or "counted, in the summary")
    resident = rig.resident_mb()
    rig.send([bytes(65 << 20), b""])
    rig.reconnected()
    grown = rig.resident_mb() - resident
    result = REFUSED if grown < 32 else THROUGH
    yield Row("part of 65 MiB", result, f"connection closed, {grown:.0f} MB more resident")


def the_port(rig: Rig) -> Iterator[Row]:
    """Whoever reaches the port, without speaking ZeroMQ or without end."""
    address = ("127.0.0.1", int(rig.endpoint.rpartition(":")[2]))
    rng = random.Random(0)
    for _ in range(50):
        with socket.create_connection(address) as sock:
            sock.sendall(rng.randbytes(rng.randrange(1, 5000)))
    rig.decode()
    yield Row("random bytes at the port", HARMLESS, rig.said() or "nothing")
    held = [socket.create_connection(address) for _ in range(200)]
    rig.decode()
    for sock in held:
        sock.close()
    yield Row("200 connections that say nothing", HARMLESS, rig.said() or "nothing")
    context = zmq.Context()
    greedy: zmq.Socket[bytes] = context.socket(zmq.SUB)
    greedy.subscribe(b"")
    greedy.subscribe(bytes(20_000))
    connect("greedy", greedy, rig.endpoint, rig.access("client", server="server"))
    heard = bool(greedy.poll(int(DEAF_S * 1e3)))
    rig.decode()
    greedy.close(linger=0)
    context.term()
    yield Row("subscription of 20 kB by a listed client", THROUGH if heard else REFUSED,
              rig.said() or "nothing: the connection is closed")


def names(folder: Path) -> Iterator[Row]:
    """Names that are programs where they are shown."""
    escape = "\x1b]0;owned\x07"
    modality = attack_bundles.ModalityOut(HTML, "continuous", 2, sd=[1.0, 1.0])
    with Rig(folder, probe=HTML, modality=modality) as rig:
        decode = rig.last
        summary = rig.end()
    plain = list(decode.values) == [HTML] and HTML in summary["sources"]
    yield Row("HTML as a unit's probe and as a behaviour", HARMLESS if plain else THROUGH,
              "carried as text, letter by letter; a page has to escape it")
    path = folder / "escape.neds"
    path.write_bytes(attack_bundles.with_unknown_field("x" + escape))
    _, said = attack_bundles.serve(path, quick=True)
    yield Row("terminal codes in a manifest", HARMLESS if "\x1b" not in said else THROUGH,
              said.strip().replace(str(folder), ""))


def control(folder: Path) -> Row:
    """Another user of the machine at the control socket."""
    name = "control command from another user"
    if os.name != "posix" or os.geteuid() != 0:
        return Row(name, SKIPPED, "only root can try it in another user's name")
    path = folder / "control" / "server.ctl"
    path.parent.mkdir(mode=0o700)
    with Rig(folder, options=("--control", str(path))) as rig:
        outcome = _as_nobody(lambda: _connect_to(str(path)))
        modes = f"{path.stat().st_mode & 0o777:04o} in {path.parent.stat().st_mode & 0o777:04o}"
        for place, mode in ((folder, 0o755), (path.parent, 0o755), (path, 0o666)):
            place.chmod(mode)  # and where somebody has opened all of it
        second = _as_nobody(lambda: _connect_to(str(path)))
        rig.decode()
    got_in = "answered" in (outcome, second)
    return Row(name, THROUGH if got_in else REFUSED,
               f"{outcome} (mode {modes}); {second} where both modes were opened")


def unsigned_load(folder: Path) -> Row:
    """The server's own user loads a bundle that no trusted key has signed."""
    from neds_rt import control

    name, path = "unsigned bundle through the control socket", str(folder / "load.ctl")
    if not importlib.util.find_spec("cryptography"):
        return Row(name, SKIPPED, "needs the extra `sign`")
    trust = attack_bundles.make_trust(folder)
    other = attack_bundles.make_bundle(folder / "other.neds")
    with Rig(folder, options=("--control", path, *trust), sign=folder / "lab.pem") as rig:
        try:
            control.ask(path, control.Request("load", str(other)), 30.0)
        except NedsError as error:
            rig.decode()
            return Row(name, REFUSED, str(error).replace(str(folder), ""))
    return Row(name, THROUGH, "loaded")


def _connect_to(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(3)
        sock.connect(path)
        request = b"\x81\xa7command\xa4info"
        sock.sendall(len(request).to_bytes(4, "little") + request)
        return "answered" if sock.recv(4) else "connection closed unheard"


def _as_nobody(action: Callable[[], str]) -> str:
    """Return what `action` returns, or the error it met, in a child that is the user nobody."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            text = action()
        except OSError as error:
            text = error.strerror or type(error).__name__
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as file:
        return file.read().decode()


def _hears(rig: Rig, access: Access) -> bool:
    """Whether a client with these keys receives a decode while bins are decoded."""
    with Client(rig.endpoint, access=access) as client:
        try:  # stale decodes come by themselves
            client.recv(DEAF_S)
        except TimeoutError:
            return False
        return True


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Yield a row for every attack."""
    for name in ("server", "probe", "client", "stranger"):
        write_key_pair(folder, name)
    with Rig(folder) as rig:
        yield from strangers(rig)
        yield from the_port(rig)
        yield from frames(rig, quick)
    yield impostor(folder)
    yield from names(folder)
    yield unsigned_load(folder)
    yield control(folder)
    bundles = folder / "bundles"
    bundles.mkdir()
    for attack, refused, said in attack_bundles.attempts(bundles, quick=quick):
        yield Row(attack, REFUSED if refused else THROUGH, said)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="bundles in this process")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in run(Path(folder), quick=args.quick):
            rows.append(row)
            if not args.json:
                print(f"{row.attack:58} {row.result:12} {row.said[:140]}", flush=True)
    finish("tools/attacks", args, {"attacks": [row._asdict() for row in rows]}, lambda _: None)
    return 4 if any(row.result == THROUGH for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
