"""Many recordings into the session store: in parallel, resumable, whatever single ones do.

Every source is read by itself, in a process of its own where there are several at a time, and its
session moved into place as soon as it is whole. A session file names the SHA-256 of its source, the
reader with its arguments and our version; a source whose session is there with all of these the
same is not read again. So a run that was killed goes on with the same command.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from neds.data.dropped import KEY, Drop, DropReport
from neds.data.reader import Reader, files_sha256
from neds.data.store import provenance, read_facts, session_path, write_session
from neds_rt.errors import BadInput, NedsError, StartError

Row = dict[str, Any]
STAGING = ".prepare-"


@dataclass(frozen=True)
class Job:
    """How sources are read: the reader's name, what makes it ("module:function"), its options."""

    reader: str
    maker: str
    preset: str | None = None
    words: tuple[str, ...] = ()

    def made(self) -> Reader:
        """The reader. Raises `BadInput` for options it does not have."""
        module, _, name = self.maker.partition(":")
        reader: Reader = getattr(import_module(module), name)(self.preset, list(self.words))
        return reader

    def arguments(self) -> dict[str, Any]:
        """The reader's options as session files keep them."""
        return {"preset": self.preset, "map": list(self.words)}


@dataclass
class Outcome:
    """Rows of sessions that are there now (`skipped`: were there before) and of failed sources."""

    done: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)

    def report(self) -> DropReport:
        """Everything left out: failed sources as sessions, and what readers left out of others."""
        report = DropReport()
        for row in self.failed:
            report.add("session", Path(row["source"]).name, row["source"], row["error"])
        for row in self.done:
            report.drops += [Drop(**entry) for entry in row["dropped"]]
        return report


def prepare_one(source: str, job: Job, known: dict[str, str], target: str) -> Row:
    """Read one source and write its session as `target`: its row, or {"error": text}.

    known: fingerprint -> session file that is there already; such a row has `skipped`. Whatever a
    reader raises is an error of this source alone, but for a `StartError`: that row has `ends`.
    """
    try:
        reader = job.made()
        digest = files_sha256(_present(source, reader.files(source)))
        origin = provenance(job.reader, job.arguments(), Path(source).name, digest)
        there = known.get(_fingerprint(origin))
        if there is not None:
            return {**_row(source, there), "skipped": True}
        write_session(reader.read(source), target, provenance=origin)
        return {**_row(source, target), "skipped": False}
    except NedsError as error:
        return {"error": str(error), "ends": isinstance(error, StartError)}
    except Exception as error:  # one bad session never ends a run of hundreds
        text = f"{source}: {type(error).__name__}: {error}"
        return {"error": " ".join(text.split())[:500]}


def _present(source: str, files: list[Path]) -> list[Path]:
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise BadInput(source, "file", "nothing there", "a recording of this reader's format")
    return files


def _row(source: str, path: str) -> Row:
    facts = read_facts(path)
    dropped = facts.pop("metadata").get(KEY, [])
    return {**facts, "path": path, "source": source, "dropped": dropped}


def _fingerprint(origin: dict[str, Any]) -> str:
    return json.dumps([origin["sha256"], origin["reader"], origin["arguments"],
                       origin["versions"]["neds"]], sort_keys=True)


def finished(out: Path) -> dict[str, str]:
    """Fingerprint -> path of every session in a store folder; unreadable files are none."""
    known = {}
    for path in sorted(out.glob("*.h5")):
        try:
            known[_fingerprint(read_facts(path)["metadata"]["provenance"])] = str(path)
        except (BadInput, KeyError, TypeError):
            continue
    return known


Results = Iterator[tuple[int, Row]]


def prepare(
    sources: Sequence[str], job: Job, out: Path, *, jobs: int = 1, again: bool = False,
    ray: Any = None, watch: Callable[[Results], Results] = iter,
) -> Outcome:
    """Bring the sessions of all sources into the folder `out`; rows come in the sources' order.

    jobs: how many at a time on this machine (one: in this process); ray: a connected module ray
    that does it instead. again: read those too that are there. watch: wraps the results, to show
    progress. Two sources of one session: the first in order is kept, the other one failed. Raises
    `BadInput` for options that the reader refuses and a folder that cannot be written, `StartError`
    where the reader lacks what all sources need, such as a network: sessions that are done stay.
    """
    job.made()
    known = {} if again else finished(out)
    rows: dict[int, Row] = {}
    owner: dict[str, int] = {}
    with _staging(out) as staging:
        calls = [(source, job, known, f"{staging}/{i}.h5") for i, source in enumerate(sources)]
        for i, row in watch(_results(calls, jobs, ray)):
            if row.get("ends"):
                raise StartError(row["error"])
            rows[i] = _settled(i, row, calls[i], out, owner, rows)
    outcome = Outcome()
    for i, source in enumerate(sources):
        if "error" in rows[i]:
            outcome.failed.append({"source": source, "error": rows[i]["error"]})
        else:
            outcome.done.append(rows[i])
    return outcome


def _settled(
    i: int, row: Row, call: tuple[Any, ...], out: Path, owner: dict[str, int], rows: dict[int, Row]
) -> Row:
    """Put a session in its place unless a source before it has the name; returns its row."""
    if "error" in row:
        return row
    name = row["session"]
    other = owner.get(name)
    if other is not None and (other < i or row["skipped"]):  # what was there is overwritten
        return _taken(call[0], name)
    if other is not None:
        rows[other] = _taken(rows[other]["source"], name)
    owner[name] = i
    if row["skipped"]:
        return row
    try:
        target = session_path(out, name)
        if target.exists() and os.path.exists(call[0]) and target.samefile(call[0]):
            raise BadInput(call[0], "--out", out, "another folder than the source's own")
        os.replace(call[-1], target)
    except BadInput as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{call[0]}: {error}"}
    return {**row, "path": str(target)}


def _taken(source: str, name: str) -> Row:
    error = BadInput(source, "session", name, "a name no other file of this run has")
    return {"error": str(error)}


def _results(calls: list[tuple[Any, ...]], jobs: int, ray: Any) -> Results:
    """Rows as they are ready, with the number of their call."""
    if ray is not None:
        from neds.cluster import map_files

        for i, row in enumerate(map_files(ray, prepare_one, calls)):
            if isinstance(row, Exception):
                row = {"error": f"{calls[i][0]}: task lost: {type(row).__name__}"}
            yield i, row
    elif jobs == 1:
        for i, call in enumerate(calls):
            yield i, prepare_one(*call)
    else:
        yield from _in_processes(calls, jobs)


def _in_processes(calls: list[tuple[Any, ...]], jobs: int) -> Results:
    """Rows from `jobs` processes; one that dies takes its session alone with it."""
    free: SimpleQueue[Worker] = SimpleQueue()
    workers = [Worker() for _ in range(min(jobs, len(calls)))]
    for worker in workers:
        free.put(worker)

    def task(call: tuple[Any, ...]) -> Row:
        worker = free.get()
        try:
            return worker.run(call)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers) or 1) as pool:
        number = {pool.submit(task, call): i for i, call in enumerate(calls)}
        try:
            for future in as_completed(number):
                yield number[future], future.result()
        finally:  # the caller may stop early, by Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()


class Worker:
    """A process that prepares one source after the other, started anew where it died."""

    def __init__(self) -> None:
        self.process: Any = None
        self.pipe: Any = None

    def run(self, call: tuple[Any, ...]) -> Row:
        """The row of one call; an error row where the process ended without one."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(call)
            row: Row = self.pipe.recv()
            return row
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.process = None
            return {"error": f"{call[0]}: its process ended with code {code} (out of memory?)"}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()


def _serve(pipe: Any) -> None:
    while True:
        try:
            call = pipe.recv()
        except EOFError:
            return
        pipe.send(prepare_one(*call))


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder inside `out` for unfinished files; those of runs that died here are removed."""
    here = f"{STAGING}{socket.gethostname()}-"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob(f"{here}*"):
            if not _alive(old.name.removeprefix(here).partition("-")[0]):
                shutil.rmtree(old, ignore_errors=True)
        folder = tempfile.mkdtemp(dir=out.absolute(), prefix=f"{here}{os.getpid()}-")
    except OSError as error:
        raise BadInput(out, "folder", error.strerror, "a folder that can be written") from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    if os.name != "posix" or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
