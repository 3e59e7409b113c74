"""The files of a bundle as bytes: read from a directory or a zip file, written as a whole."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from neds_rt.errors import BadInput

MAX_FILES = 1000
MAX_TOTAL_BYTES = 4 << 30

# What zipfile raises on files that are damaged, encrypted or of an unknown method.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, MemoryError,
)


def check_name(where: object, name: str) -> None:
    """Raise `BadInput` unless `name` is a plain relative path such as `plans/a.plan`."""
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and ":" not in name
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise BadInput(where, "file name", ascii(name), "a relative path without '..'")


def read_files(path: Path) -> dict[str, bytes]:
    """Return name -> content of every file below a directory or in a zip file.

    Nothing is extracted. Raises `BadInput` for a missing path, names that point elsewhere,
    duplicate names, damaged or oversized content.
    """
    try:
        if path.is_dir():
            return _read_directory(path)
        if not path.is_file():
            raise BadInput(path, "bundle", "no such file or directory", "a model bundle")
    except OSError as error:
        raise BadInput(path, "bundle", error, "readable files") from None
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, path)
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
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if any(part.startswith(".") for part in PurePosixPath(name).parts) or file.is_dir():
            continue  # hidden files are a file manager's, not the bundle's
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise BadInput(path, name, "a special file", "a regular file")
        total += file.stat().st_size
        _check_size(path, total, len(files) + 1)
        files[name] = file.read_bytes()
    return files


def _read_zip(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    members = [info for info in archive.infolist() if not info.is_dir()]
    _check_size(path, sum(info.file_size for info in members), len(members))
    files: dict[str, bytes] = {}
    for info in members:
        check_name(path, info.filename)
        if info.filename in files:
            raise BadInput(path, info.filename, "two files of this name", "one")
        with archive.open(info) as member:
            # One byte more than declared: a member that inflates to more is refused, not read.
            data = member.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise BadInput(path, info.filename, f"{len(data)} bytes", f"{info.file_size} bytes")
        files[info.filename] = data
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
