"""Bundles as an attacker would make them, and what `neds-rt serve` says to each."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from neds_rt import bundle_files
from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.cli import main

SHAPE = Shape(hidden=16, layers=1, heads=2, mlp=32, window=4)
VELOCITY = ModalityOut("velocity", "continuous", 2, sd=[1.0, 1.0])
SERVE = ("serve", "--probe", "a=zmq+tcp://127.0.0.1:5999", "--out", "tcp://127.0.0.1:*")
Attempt = tuple[str, bool, str]  # attack, whether it was refused, what was said


def make_bundle(path: Path, probe: str = "a", modality: ModalityOut = VELOCITY) -> Path:
    """Write a small bundle of random weights, with one more file beside them."""
    made = random_bundle(SHAPE, 4, [modality], probe=probe)
    m = made.manifest
    write_bundle(path, session=m.session, subject=m.subject, bin_size_s=m.bin_size_s, shape=m.shape,
                 units=m.units, modalities=m.modalities, weights=made.weights,
                 files={"model.onnx": bytes(range(256))})
    return path


def serve(path: Path, *options: str, quick: bool = False) -> tuple[int, str]:
    """Start a server on a bundle that it must refuse; returns exit code and standard error.

    `quick` calls the command in this process.
    """
    words = [*SERVE, "--model", str(path), "--max-bins", "1", *options]
    if not quick:
        command = [sys.executable, "-P", "-m", "neds_rt", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    return code, said.getvalue()


def attempts(folder: Path, *, quick: bool, seed: int = 0) -> Iterator[Attempt]:
    """Yield what became of every attack by bundle."""
    def judged(name: str, path: Path, *options: str) -> Attempt:
        code, said = serve(path, *options, quick=quick)
        return name, code == 2 and said.count("\n") == 1, said.strip().replace(str(folder), "")

    trust: list[str] = []
    if importlib.util.find_spec("cryptography"):
        trust = make_trust(folder)
        yield judged("unsigned bundle", make_bundle(folder / "unsigned.neds"), *trust)
        stolen = make_bundle(folder / "signed-by-a-stranger.neds")
        sign(stolen, folder / "stranger.pem")
        yield judged("bundle signed by a stranger", stolen, *trust)
        forged = make_bundle(folder / "forged.neds", modality=ModalityOut("x", "continuous", 2))
        files = bundle_files.read_files(forged)
        good = make_bundle(folder / "good.neds")
        sign(good, folder / "lab.pem")
        files["signature"] = bundle_files.read_files(good)["signature"]
        bundle_files.write_files(forged, files)
        yield judged("signature moved to another bundle", forged, *trust)
    for form in (".neds", ""):
        yield from _tampered(folder, form, trust, random.Random(seed), judged)
    for name, data in hostile_zips().items():
        path = folder / "hostile.neds"
        path.write_bytes(data)
        yield judged(name, path)
    linked = make_bundle(folder / "linked")
    (linked / "more").symlink_to("/etc/hostname")
    yield judged("link in a bundle directory", linked)


def _tampered(
    folder: Path, form: str, trust: list[str], rng: random.Random,
    judged: Callable[..., Attempt],
) -> Iterator[Attempt]:
    path = make_bundle(folder / f"tampered{form}")
    if trust:
        sign(path, folder / "lab.pem")
    for name, data in bundle_files.read_files(path).items():
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(7)
        _replace(path, name, bytes(changed))
        what = f"one byte changed in {name}, {'zipped' if form else 'in a directory'}"
        yield judged(what, path, *trust)
        _replace(path, name, data)


def _replace(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in a member's place, all checksums of the zip file right again."""
    if path.is_dir():
        (path / name).write_bytes(data)
        return
    files = bundle_files.read_files(path) | {name: data}
    bundle_files.write_files(path, files)


def make_trust(folder: Path) -> list[str]:
    """Make the keys `lab` and `stranger`; return the options that trust the first."""
    for name in ("lab", "stranger"):
        with contextlib.redirect_stdout(io.StringIO()):
            main(["keygen", "--signing", "--out", str(folder), "--name", name])
    return ["--trust", str(folder / "lab.pub.pem")]


def sign(path: Path, key: Path) -> None:
    """Sign a bundle."""
    with contextlib.redirect_stdout(io.StringIO()):
        main(["sign", str(path), "--key", str(key)])


def hostile_zips() -> dict[str, bytes]:
    """Return zip files by what they attempt."""
    passwd = zipfile.ZipInfo("weights.safetensors")
    passwd.external_attr = 0o120777 << 16
    return {
        "zip bomb: 1 GB of zeros in 1 MB": _bomb(),
        "zip bomb: members that share their bytes": _overlapping(900),
        "zip bomb: 60 000 members": _overlapping(60_000),
        "path traversal in a zipped bundle": _zip((zipfile.ZipInfo("../../escaped"), b"x")),
        "absolute path in a zipped bundle": _zip((zipfile.ZipInfo("/tmp/escaped"), b"x")),
        "link in a zipped bundle": _zip((passwd, b"/etc/passwd")),
        "manifest of nested brackets": _zip((zipfile.ZipInfo("manifest.json"), b"[" * 1_000_000)),
        "manifest that asks for a terabyte": _zip((zipfile.ZipInfo("manifest.json"), _greedy())),
    }


def _zip(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for info, data in members:
            archive.writestr(info, data)
    return raw.getvalue()


def _bomb() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
            archive.open("weights.safetensors", "w") as member:
        for _ in range(256):
            member.write(bytes(4 << 20))
    return raw.getvalue()


def _overlapping(n: int) -> bytes:
    data = _zip((zipfile.ZipInfo("a00000"), bytes(1_000_000)))
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    listing = data[start:end]
    entries = b"".join(listing.replace(b"a00000", b"a%05d" % i) for i in range(n))
    record = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(entries), start, 0)
    return data[:start] + entries + record


def _greedy() -> bytes:
    fields = msgspec.to_builtins(random_bundle(SHAPE, 4, [VELOCITY]).manifest)
    fields["shape"] |= {"hidden": 65536, "layers": 1024, "window": 1 << 20}
    return msgspec.json.encode(fields)


def with_unknown_field(name: str) -> bytes:
    """Return a zipped manifest that has one field too many."""
    fields = msgspec.to_builtins(random_bundle(SHAPE, 4, [VELOCITY]).manifest)
    return _zip((zipfile.ZipInfo("manifest.json"), msgspec.json.encode(fields | {name: 1})))
