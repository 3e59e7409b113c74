"""The files of a bundle as bytes: read from a directory or a zip file, written as a whole.

A bundle may come from anywhere, so that nothing about it is believed: how many members there are,
how large they become, what they are called and what they are is limited before memory is taken.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from neds_rt.errors import BadInput

MAX_FILES = 1000
MAX_ENTRIES = 10_000  # directories and a file manager's hidden files included
MAX_DEPTH = 32
MAX_NAME = 1000
MAX_TOTAL_BYTES = 2_000_000_000  # a zip file of this size needs no zip64 records
# Weights hardly shrink; deflate makes a thousandth of zeros. Small files may be what they like.
MAX_RATIO, FREE_BYTES = 100, 16 << 20
MAX_LISTING_BYTES = 1 << 20  # of a zip file: a thousand members have a tenth of it

# What zipfile raises on files that are damaged, encrypted or of an unknown method.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, MemoryError,
)


def check_name(where: object, name: str) -> None:
    """Raise `BadInput` unless `name` is a plain relative path such as `plans/a.plan`."""
    parts = name.split("/")
    plain = len(name) <= MAX_NAME and name.isprintable() and not set(name) & set("\\:")
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise BadInput(where, "file name", ascii(name[:200]), "a relative path without '..'")


def read_files(path: Path) -> dict[str, bytes]:
    """Return name -> content of every file below a directory or in a zip file.

    Nothing is extracted. Raises `BadInput` for a missing path, names that point elsewhere,
    duplicate names, links and other special files, damaged or oversized content.
    """
    try:
        if path.is_dir():
            return _read_directory(path)
        if not path.is_file():
            raise BadInput(path, "bundle", "no such file or directory", "a model bundle")
    except OSError as error:
        raise BadInput(path, "bundle", error, "readable files") from None
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_listing(path, file, size)
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive, path, size)
    except _ZIP_ERRORS as error:
        raise BadInput(path, "zip file", error, "a bundle (a directory or a zip)") from None


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` to `path`: zipped if it ends in `.neds`, else as a directory.

    Written under a temporary name beside the target, then renamed. Raises `BadInput` when the
    target is something other than a bundle or cannot be written.
    """
    as_zip = path.suffix == ".neds"
    if path.is_dir() and (as_zip or not _may_replace(path)):
        raise BadInput(path, "target", "an existing directory", "a new name or an older bundle")
    if not as_zip and path.exists() and not path.is_dir():
        raise BadInput(path, "target", "an existing file", "a name ending in .neds or a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if as_zip:
            _write_zip(path, files)
        else:
            _write_directory(path, files)
    except OSError as error:
        raise BadInput(path, "target", error, "a writable place") from None


def _read_directory(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for name, file in sorted(_walk(path)):
        check_name(path, name)
        # Whatever it was when it was listed: what is opened now is no link, and is looked at again.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with os.fdopen(os.open(file, flags | getattr(os, "O_BINARY", 0)), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadInput(path, name, "a special file", "a regular file")
            total += found.st_size
            _check_size(path, total, len(files) + 1)
            data = opened.read(found.st_size + 1)
        if len(data) != found.st_size:
            raise BadInput(path, name, "a file that changes", f"{found.st_size} bytes")
        files[name] = data
    return files


def _walk(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and place of all that is no directory; hidden ones are a file manager's."""
    folders = [("", str(path), 0)]
    entries = 0
    while folders:
        prefix, folder, depth = folders.pop()
        if depth > MAX_DEPTH:
            raise BadInput(path, ascii(prefix[:200]), f"{depth} folders deep", "a bundle")
        with os.scandir(folder) as listing:
            for entry in listing:
                entries += 1
                if entries > MAX_ENTRIES:
                    raise BadInput(path, "files", f"more than {MAX_ENTRIES}", "a bundle")
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    raise BadInput(path, ascii(prefix + entry.name), "a link", "a regular file")
                if entry.is_dir():
                    folders.append((f"{prefix}{entry.name}/", entry.path, depth + 1))
                else:
                    yield prefix + entry.name, entry.path


def _check_listing(path: Path, file: BinaryIO, size: int) -> None:
    """Raise `BadInput` unless the zip file's list of members is of a size to be read.

    `zipfile` makes an object of every entry before it can be asked how many there are. It looks for
    the record that ends the file first, and for zip64's locator before it.
    """
    end = struct.Struct("<4s4H2LH")
    locator = 20
    file.seek(max(0, size - end.size - locator))
    tail = file.read(end.size + locator)
    if len(tail) < end.size or tail[-end.size :][:4] != b"PK\5\6":
        raise BadInput(path, "zip file", "no list of members at its end", "a zip without comment")
    *_, entries, listing_bytes, _, comment = end.unpack(tail[-end.size :])
    if comment or tail[: -end.size].startswith(b"PK\6\7"):
        raise BadInput(path, "zip file", "a comment or zip64 records", "a zip file without them")
    if entries > MAX_FILES or listing_bytes > MAX_LISTING_BYTES:
        found = f"{entries} members listed in {listing_bytes} bytes"
        raise BadInput(path, "zip file", found, f"at most {MAX_FILES} members")
    file.seek(0)


def _read_zip(archive: zipfile.ZipFile, path: Path, size: int) -> dict[str, bytes]:
    listed = archive.infolist()
    total = sum(info.file_size for info in listed)
    _check_size(path, total, len(listed))
    # Of the whole file: members may share their compressed bytes.
    if total > max(FREE_BYTES, MAX_RATIO * size):
        found = f"{total} bytes in a file of {size}"
        raise BadInput(path, "zip file", found, f"at most {MAX_RATIO} times its size")
    files: dict[str, bytes] = {}
    for info in listed:
        name = info.filename
        check_name(path, name.removesuffix("/"))
        if info.is_dir():
            continue
        if name in files:
            raise BadInput(path, name, "two files of this name", "one")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BadInput(path, name, "a link or another special file", "a regular file")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadInput(path, name, f"compression {info.compress_type}", "deflate, or none")
        with archive.open(info) as member:
            # One byte more than declared: a member that inflates to more is refused, not read.
            data = member.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise BadInput(path, name, f"{len(data)} bytes", f"{info.file_size} bytes")
        files[name] = data
    return files


def _check_size(path: Path, total: int, n_files: int) -> None:
    if total > MAX_TOTAL_BYTES:
        raise BadInput(path, "size", f"{total} bytes", f"at most {MAX_TOTAL_BYTES} in all")
    if n_files > MAX_FILES:
        raise BadInput(path, "files", n_files, f"at most {MAX_FILES}")


def _may_replace(path: Path) -> bool:
    return (path / "manifest.json").is_file() or not any(path.iterdir())


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # no clock: equal bytes
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, data in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():  # a directory cannot be replaced in one call unless it is empty
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
