"""The process that runs a sweep's trials: messages in, one JSON line each, and answers out.

A trial may exhaust memory, crash the interpreter or be killed; so it runs in a process of its own,
and the study goes on. One process takes many trials: imports and recordings are loaded once.

    setup   {"sessions", "config", "gap_bins", "rebin", "threads", "device"}
            answer {"ready": number of sessions, "drops": report} or {"refused": text}
    trial   {"config", "seeds"}
            answers {"report": [step, score]}, each answered by {"prune": bool}, then one of
            {"scores": [...]}, {"pruned": true}, {"failed": text}
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import IO, Any


class Pruned(Exception):
    """Raised out of training when the study says that a trial is not worth ending."""


class Line:
    """Messages over two streams; the end of the input ends the process."""

    def __init__(self, source: IO[str], sink: IO[str]) -> None:
        self.source, self.sink = source, sink

    def read(self) -> dict[str, Any]:
        """The next message."""
        text = self.source.readline()
        if not text:
            sys.exit(0)
        message: dict[str, Any] = json.loads(text)
        return message

    def send(self, **message: Any) -> None:
        """Send a message at once."""
        self.sink.write(json.dumps(message) + "\n")
        self.sink.flush()


def serve(line: Line) -> None:
    """Set up, then run trial after trial."""
    import torch

    from neds.config import RunConfig
    from neds.drops import load_recordings
    from neds_rt.errors import NedsError

    setup = line.read()
    torch.set_num_threads(setup["threads"])
    try:
        recordings, _, report = load_recordings(
            setup["sessions"], _converted(setup["config"], RunConfig), setup["rebin"], fit=False,
            gap_bins=setup["gap_bins"])
    except NedsError as error:
        line.send(refused=str(error))
        return
    line.send(ready=len(recordings), drops=report.as_json())
    while True:
        trial = line.read()
        try:
            scores = run_trial(line, _converted(trial["config"], RunConfig), recordings,
                               trial["seeds"], setup["device"])
        except Pruned:
            line.send(pruned=True)
        except Exception as error:  # whatever a trial dies of is that trial's failure alone
            line.send(failed=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        else:
            line.send(scores=scores)


def run_trial(
    line: Line, config: Any, recordings: list[Any], seeds: list[int], device: str
) -> list[float]:
    """Best validation score of each seed; the first seed's validations are reported on the way."""
    import msgspec

    from neds.train import train
    from neds_rt.errors import BadInput

    def ask(step: int, score: float | None) -> None:
        if score is None:
            return
        line.send(report=[step, score])
        if line.read()["prune"]:
            raise Pruned

    scores: list[float] = []
    for seed in seeds:
        knobs = msgspec.structs.replace(config.train, seed=seed)
        result = train(msgspec.structs.replace(config, train=knobs), recordings, progress=False,
                       device=device, report=None if scores else ask)
        if result.best_score is None:
            raise BadInput("validation", "score", "none", "a behaviour known on a validation part")
        scores.append(result.best_score)
    return scores


def _converted(tree: Any, kind: Any) -> Any:
    import msgspec

    return msgspec.convert(tree, kind)


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone, also in the middle of a trial."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Serve on standard input and output; whatever else prints goes to standard error."""
    _end_with_parent()
    with os.fdopen(os.dup(1), "w") as sink:
        os.dup2(2, 1)
        serve(Line(sys.stdin, sink))
    return 0


if __name__ == "__main__":
    sys.exit(main())
