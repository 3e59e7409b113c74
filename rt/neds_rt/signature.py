"""Ed25519 signatures of bundles: whose a model is, where hashes only say that it is whole.

The member `signature` of a bundle is a JSON object, `{"algorithm": "ed25519", "public_key": HEX,
"signature": HEX}`, over `CONTEXT` and then the bytes of `manifest.json`, which has the hash of
every other member. Keys are PEM files (PKCS 8 and SubjectPublicKeyInfo), as OpenSSL writes them.
Needs the package `cryptography` (extra `sign`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from neds_rt import bundle_files
from neds_rt.bundle import MANIFEST, SIGNATURE, read_bundle
from neds_rt.curve import check_key_name, read_key_file, write_key_files
from neds_rt.errors import BadInput, StartError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CONTEXT = b"neds bundle manifest 1\n"  # a signature made for something else does not fit here
_END = b"-----END PUBLIC KEY-----"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The member `signature`."""

    algorithm: Literal["ed25519"]
    public_key: str  # 32 bytes in hexadecimal: which key to try, not whom to trust
    signature: str  # 64 bytes


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the member `signature` for the bytes of a manifest."""
    found = Signature("ed25519", key.public_key().public_bytes_raw().hex(),
                      key.sign(CONTEXT + manifest).hex())
    return msgspec.json.encode(found) + b"\n"


def check_signature(manifest: bytes, member: bytes | None, trust: str, where: object) -> None:
    """Raise `BadInput` unless a key in the file `trust` has signed the bytes of the manifest."""
    keys = read_trusted(trust)
    if member is None:
        raise BadInput(where, SIGNATURE, "none", f"one by a key in {trust} (neds-rt sign)")
    try:
        found = msgspec.json.decode(member, type=Signature)
        signature, named = bytes.fromhex(found.signature), bytes.fromhex(found.public_key)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(where, SIGNATURE, error, "what neds-rt sign writes") from None
    if named not in keys:
        found_key = f"one by key {named.hex()[:12]}…"
        raise BadInput(where, SIGNATURE, found_key, f"one by a key in {trust}")
    try:
        keys[named].verify(signature, CONTEXT + manifest)
    except _cryptography().exceptions.InvalidSignature:
        raise BadInput(where, SIGNATURE, "one that does not fit the manifest",
                       "the signature of these bytes") from None


def sign_bundle(path: Path, key: Ed25519PrivateKey) -> None:
    """Sign the bundle at `path`, replacing an older signature. Raises `BadInput`.

    The bundle is read and verified first: what is signed is what a reader would accept.
    """
    read_bundle(path)
    files = bundle_files.read_files(path)
    files[SIGNATURE] = sign(files[MANIFEST], key)
    bundle_files.write_files(path, files)


def write_signing_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key pair; writes `NAME.pub.pem` and `NAME.pem` (mode 0600) and returns both paths.

    Raises `BadInput` as `curve.write_key_pair` does.
    """
    check_key_name(name)
    cryptography = _cryptography()
    key = cryptography.ed25519.Ed25519PrivateKey.generate()
    form = cryptography.serialization
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM,
                                           form.PublicFormat.SubjectPublicKeyInfo)
    return write_key_files(folder / f"{name}.pub.pem", public, folder / f"{name}.pem", secret)


def read_signing_key(path: str) -> Ed25519PrivateKey:
    """Return the secret key in a PEM file. Raises `BadInput`, also when others can read it."""
    cryptography = _cryptography()
    data = read_key_file(path, secret=True)
    try:
        key = cryptography.serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, cryptography.exceptions.UnsupportedAlgorithm):
        key = None
    if not isinstance(key, cryptography.ed25519.Ed25519PrivateKey):
        raise BadInput(path, "key", "none", "an Ed25519 secret key, PEM without password")
    found: Ed25519PrivateKey = key
    return found


def read_trusted(path: str) -> dict[bytes, Any]:
    """Return the public keys of a PEM file by their 32 bytes. Raises `BadInput` for none."""
    cryptography = _cryptography()
    keys = {}
    for block in read_key_file(path).split(_END)[:-1]:
        try:
            key = cryptography.serialization.load_pem_public_key(block + _END + b"\n")
        except (ValueError, cryptography.exceptions.UnsupportedAlgorithm):
            key = None
        if not isinstance(key, cryptography.ed25519.Ed25519PublicKey):
            raise BadInput(path, "key", "another kind", "Ed25519 public keys, PEM")
        keys[key.public_bytes_raw()] = key
    if not keys:
        raise BadInput(path, "key", "none", "an Ed25519 public key, PEM")
    return keys


class _Modules(NamedTuple):
    exceptions: Any
    serialization: Any
    ed25519: Any


def _cryptography() -> _Modules:
    """Return the modules that are used here. Raises `StartError` without the package."""
    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise StartError("signatures need cryptography: pip install 'neds[sign]'") from error
    return _Modules(exceptions, serialization, ed25519)
