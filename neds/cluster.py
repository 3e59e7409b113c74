"""Work on a Ray cluster: trials of a sweep, and functions over many files.

Paths are those of a file system that every node sees, and `neds` is installed on every node. Ray
is imported when it is used (extra `cluster`).
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from neds.sweep_process import LocalWorker, WorkerDied
from neds_rt.errors import BadInput, StartError


@contextmanager
def cluster(address: str, cpus: int | None = None) -> Iterator[Any]:
    """Connect to Ray at `address`, or start it on this machine for "local" with `cpus` slots.

    Yields the module `ray`. Raises `BadInput` where it is not installed, `StartError` where no
    cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput("--ray", "ray", "not installed", 'pip install "neds[cluster]"') from error
    options: dict[str, Any] = {"address": address, "log_to_driver": False,
                               "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False}
    _check_listens(address)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise StartError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Raise `StartError` at once where nothing answers at host:port; Ray would try for minutes.

    Ray takes a loopback address to mean this machine, so any of its addresses will do.
    """
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon or not port.isdecimal():
        return
    hosts = [host, *((socket.gethostname(),) if host in ("127.0.0.1", "localhost") else ())]
    reason = ""
    for name in hosts:
        try:
            with socket.create_connection((name, int(port)), timeout=5):
                return
        except (OSError, OverflowError) as error:
            reason = str(error)
    raise StartError(f"--ray {address}: {reason}")


class RemoteWorker:
    """A trial process somewhere on the cluster, behind an actor that passes messages on.

    The actor's node starts `neds.sweep_worker` as a local study would, so a trial that crashes
    ends that process alone; the loss of a whole node is noticed as the loss of the actor.
    """

    def __init__(self, ray: Any, threads: int, gpus: float = 0) -> None:
        self.ray = ray
        actor = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0)(_Passing)
        self.actor = actor.remote(threads)

    def exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """See `neds.sweep_process.Worker`."""
        text = None if message is None else json.dumps(message)
        try:
            done, answer = self.ray.get(self.actor.exchange.remote(text))
        except self.ray.exceptions.RayError as error:
            raise WorkerDied(" ".join(str(error).split())[:200]) from error
        if done:
            raise WorkerDied(answer)
        received: dict[str, Any] = json.loads(answer)
        return received

    def stop(self) -> None:
        """See `neds.sweep_process.Worker`; the trial process ends when its actor is gone."""
        self.ray.kill(self.actor)

    def close(self) -> None:
        """See `neds.sweep_process.Worker`."""
        self.stop()


class _Passing:
    """The actor: one local trial process, spoken to in JSON text."""

    def __init__(self, threads: int) -> None:
        self.worker = LocalWorker(threads)

    def exchange(self, text: str | None) -> tuple[bool, str]:
        """(False, answer), or (True, how the process ended)."""
        try:
            answer = self.worker.exchange(None if text is None else json.loads(text))
        except WorkerDied as error:
            return True, str(error)
        return False, json.dumps(answer)


def map_files(
    ray: Any, function: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]]
) -> Iterator[dict[str, Any] | Exception]:
    """Run `function(*call)` for every call on the cluster; yields results in the order of calls.

    A call whose task was lost, with its node or process, yields the error in place of a result.
    What `function` raises itself is lost with its task too: let it return what went wrong.
    """
    task = ray.remote(num_cpus=1, max_retries=1)(function)
    for pending in [task.remote(*call) for call in calls]:
        try:
            yield ray.get(pending)
        except ray.exceptions.RayError as error:
            yield error
