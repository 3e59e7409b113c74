"""Who may talk to a socket: CURVE key files, allow-lists, and what a command was told of them.

Keys are 32 bytes, written as 40 characters of Z85. A pair lies in ZeroMQ's own certificate format,
`NAME.key` (public, to be given away) and `NAME.key_secret` (both halves, mode 0600), as czmq and
`zmq.auth` write and read it. The side that binds is CURVE's server: it needs its own secret key and
the public keys that it lets in. The side that connects needs its own secret key and the public key
of whoever it wants to talk to, so neither end can be impersonated.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from neds_rt.errors import BadInput

MAX_FILE_BYTES = 1 << 20
MAX_KEY_FILES = 10_000  # in a folder that is an allow-list
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_FIELD = re.compile(rb'\s*(public-key|secret-key)\s*=\s*"([^"]*)"\s*')
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_PUBLIC = "# ZeroMQ CURVE public certificate: give it to those who should know you\n"
_SECRET = "# ZeroMQ CURVE secret certificate: keep it to yourself and its mode at 0600\n"


@dataclass(frozen=True)
class KeyPair:
    """Both halves in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Access:
    """What a command was told about who may talk to it; the default is this machine, no keys.

    CURVE is used where the other side's keys are given: `allowed` where a socket binds, `servers`
    where one connects. Loopback addresses need neither; others need them, or `insecure`.
    """

    insecure: bool = False
    own: KeyPair | None = None
    allowed: frozenset[bytes] | None = None  # clients' public keys, where this side binds
    servers: Mapping[str, bytes] = field(default_factory=dict)  # by name; "" is for all others
    allow: str = ""  # where `allowed` was read, to be looked at for changes; empty for nowhere

    def server_of(self, name: str = "") -> bytes | None:
        """Return the public key that whoever is connected to as `name` must prove to have."""
        return self.servers.get(name, self.servers.get(""))


LOCAL = Access()


def read_access(
    *, key: str = "", allow: str = "", server: str | Mapping[str, str] = "", insecure: bool = False
) -> Access:
    """Read what `--curve-key`, `--curve-allow` and `--curve-server` name.

    `server` is a key or a file, or one for each name. Raises `BadInput` for files that cannot be
    read or hold no key, a secret key that others can read, and options that miss their partner.
    """
    given = {"": server} if isinstance(server, str) else dict(server)
    servers = {name: read_public(text) for name, text in given.items() if text}
    if (allow or servers) and not key:
        raise BadInput("--curve-key", "file", "none", "this side's secret key (neds-rt keygen)")
    if key and not (allow or servers):
        expected = "--curve-allow where this side binds, --curve-server where it connects"
        raise BadInput("--curve-key", "other side", "no key of it", expected)
    return Access(
        insecure=insecure,
        own=read_secret(key) if key else None,
        allowed=read_allowed(allow) if allow else None,
        servers=servers,
        allow=allow,
    )


def parse_servers(values: Sequence[str]) -> dict[str, str]:
    """Turn `["KEY", "NAME=KEY", ...]` into a mapping; a key may have `=` in it. For probe names."""
    found: dict[str, str] = {}
    for value in values:
        name, text = "", value
        if not _Z85.fullmatch(os.fsencode(value)) and not Path(value).exists():
            name, equals, text = value.partition("=")
            if not equals:
                name, text = "", value
        if name in found:
            raise BadInput("--curve-server", "name", f"{name or 'none'} twice", "every name once")
        found[name] = text
    return found


def write_key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key pair; writes `NAME.key` and `NAME.key_secret` (mode 0600), returns both paths.

    Raises `BadInput` when the name is no plain file name, when either file is there already, or
    when the folder cannot be written.
    """
    import zmq

    check_key_name(name)
    public, secret = zmq.curve_keypair()
    head = f'metadata\n    name = "{name}"\ncurve\n    public-key = "{public.decode()}"\n'
    tail = f'    secret-key = "{secret.decode()}"\n'
    return write_key_files(
        folder / f"{name}.key", (_PUBLIC + head).encode(),
        folder / f"{name}.key_secret", (_SECRET + head + tail).encode(),
    )


def check_key_name(name: str) -> None:
    """Raise `BadInput` unless key files can be called so."""
    if not _NAME.fullmatch(name):
        raise BadInput("--name", "name", ascii(name), "letters, digits, '.', '_' and '-'")


def write_key_files(
    public: Path, public_data: bytes, secret: Path, secret_data: bytes
) -> tuple[Path, Path]:
    """Write both halves of a key; the secret one has mode 0600 from its first moment.

    Returns both paths. Raises `BadInput` when either is there already or cannot be written.
    """
    for path in (public, secret):
        if path.exists() or path.is_symlink():
            raise BadInput(path, "file", "a key that is there already", "a new name (--name)")
    try:
        secret.parent.mkdir(parents=True, exist_ok=True)
        _write_new(secret, secret_data, 0o600)
        _write_new(public, public_data, 0o644)
    except OSError as error:
        raise BadInput(secret.parent, "key", error, "a folder to write new files in") from None
    return public, secret


def read_secret(path: str) -> KeyPair:
    """Return the pair in a `.key_secret` file; raises `BadInput`, also when others can read it."""
    found = _fields(read_key_file(path, secret=True))
    if "secret-key" not in found or "public-key" not in found:
        raise BadInput(path, "secret-key", "none", "a NAME.key_secret file (neds-rt keygen)")
    pair = KeyPair(_checked(path, found["public-key"]), _checked(path, found["secret-key"]))
    if derived_public(pair.secret) != pair.public:
        raise BadInput(path, "public-key", "that of another secret key", "the two halves of a pair")
    return pair


def derived_public(secret: bytes) -> bytes:
    """Return the public half that belongs to a secret one, both in Z85."""
    import zmq

    return zmq.curve_public(secret)


def read_public(text: str) -> bytes:
    """Return a public key, given itself or as the name of its file. Raises `BadInput`."""
    given = os.fsencode(text)  # a file's name may be no text
    if _Z85.fullmatch(given) and not Path(text).exists():
        return given
    found = _fields(read_key_file(text))
    if "public-key" not in found:
        raise BadInput(text, "public-key", "none", "a NAME.key file (neds-rt keygen)")
    return _checked(text, found["public-key"])


def read_allowed(path: str) -> frozenset[bytes]:
    """Return the public keys of an allow-list. Raises `BadInput`, also for an empty one."""
    keys = allowed_keys(path)
    if not keys:
        raise BadInput(path, "keys", "none", "public keys, one a line, or a folder of NAME.key")
    return keys


def allowed_keys(path: str) -> frozenset[bytes]:
    """Return the public keys of an allow-list, perhaps none. Raises `BadInput`.

    A folder allows every `*.key` in it. A file is a certificate, or has one key a line, whatever
    follows the key being its owner's name.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(islice(place.glob("*.key"), MAX_KEY_FILES + 1))
        if len(files) > MAX_KEY_FILES:
            raise BadInput(path, "keys", f"more than {MAX_KEY_FILES} files", "fewer, or one list")
        keys = {read_public(str(file)) for file in files}
    else:
        data = read_key_file(path)
        found = _fields(data)
        if "public-key" in found:
            keys = {_checked(path, found["public-key"])}
        else:
            lines = [line.split() for line in data.splitlines()]
            keys = {_checked(path, words[0]) for words in lines
                    if words and not (words[0].startswith(b"#") and len(words[0]) != 40)}
    return frozenset(keys)


def _fields(data: bytes) -> dict[str, bytes]:
    """Return the keys of a certificate, quotes taken off."""
    matches = [_FIELD.fullmatch(line) for line in data.splitlines()]
    return {match[1].decode(): match[2] for match in matches if match}


def _checked(path: object, key: bytes) -> bytes:
    import zmq.utils.z85

    try:  # 40 characters can stand for more than 32 bytes hold
        good = bool(_Z85.fullmatch(key)) and len(zmq.utils.z85.decode(key)) == 32
    except Exception:  # struct.error, KeyError: whatever that decoder does with them
        good = False
    if not good:
        raise BadInput(path, "key", ascii(key[:50].decode("ascii", "replace")),
                       "40 characters of Z85")
    return key


def read_key_file(path: str, *, secret: bool = False) -> bytes:
    """Return what is in a key file, 1 MiB at most. Raises `BadInput`.

    So it does for a `secret` one that anybody but its owner can read.
    """
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(path[:200], "key file", reason, "a readable file") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(path, "key file", "more than 1 MiB", "a file of keys")
    if secret and os.name == "posix" and mode & 0o077:
        raise BadInput(path, "mode", f"{mode:04o}", "0600: others must not read a secret key")
    return data


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist, with this mode from the start, and sync it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
