"""The files of the benchmark: predictions as its scorer reads them, and truth to score them by.

    PREDICTIONS/LABEL/TASK/RECORDING/seed_N.safetensors     TS3 without the recording
    TRUTH/TASK/RECORDING/ground_truth.safetensors           likewise

    TS1  `predictions` (n, 50, 1), or logits (n, 1, C), float32; `trial_id` (n,); `timestamps`
         truth: `values`, `trial_id`, and `mask` where samples can be unsure
    TS2  `predictions` (n, bins, units) log rates a bin, float16; `window_timestamps` (n,) float64,
         seconds; `unit_ids`         truth: `targets`, `window_timestamps`
    TS3  `pred_proba` (units, 10), `entity_ids`         truth: `targets`, `entity_ids`

Ids are text in a uint8 matrix, a row each, filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from neds.bwb.source import Source
from neds.bwb.tasks import BIN_S, COSMOS, VERSION, Task
from neds.bwb.windows import spike_truth, truth_of
from neds.data.whole import whole_file
from neds_rt.errors import BadInput

Tensors = dict[str, NDArray[Any]]
TRUTH = "ground_truth.safetensors"


def prediction_path(folder: Path, label: str, task: Task, recording: str, seed: int) -> Path:
    """Where the scorer looks for a file of predictions; `recording` is empty for TS3."""
    return folder / label / task.id / recording / f"seed_{seed}.safetensors"


def truth_path(folder: Path, task: Task, recording: str) -> Path:
    """Where the scorer looks for the truth."""
    return folder / task.id / recording / TRUTH


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file, whole or not at all. Raises `BadInput`."""
    rows = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with whole_file(path, "a safetensors file") as name:
        save_file(rows, name, metadata={k: str(v) for k, v in metadata.items()})


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `BadInput`."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BadInput(path, "file", error, "a safetensors file of predictions") from error


def about(
    source: Source | None, task: Task, label: str, seed: int, context_s: float = 0.0
) -> dict[str, Any]:
    """The metadata of a file of predictions, all that the benchmark's own writer adds."""
    facts: dict[str, Any] = {"label": label, "task": task.id, "seed": seed,
                             "ibl_bwb_eval_version": VERSION}
    if source is not None:
        facts |= {"unit_filtering": source.build, "dataset_version": source.version}
        if task.suite != "ts3":
            facts["recording_id"] = source.recording
    if task.suite == "ts2":
        facts |= {"context_window": context_s, "bin_size": BIN_S}
    if task.suite == "ts3":
        facts["label_names"] = ",".join(COSMOS)
    return facts


def encode_ids(ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.uint8]:
    """Ids as a matrix (n, longest) of ASCII bytes. Raises `BadInput` for an id that is none."""
    rows = [str(name).encode("ascii", "replace") for name in ids]
    if not rows or not all(rows) or any(b"?" in row for row in rows):
        raise BadInput("ids", "text", "none, empty, or not ASCII", "ids of ASCII characters")
    width = max(map(len, rows))
    return np.array([list(row.ljust(width, b"\0")) for row in rows], np.uint8)


def decode_ids(matrix: NDArray[np.uint8]) -> list[str]:
    """The ids of such a matrix."""
    return [bytes(row).rstrip(b"\0").decode("ascii") for row in matrix]


def write_truth(folder: Path, sources: Iterable[Source], tasks: Sequence[Task]) -> list[Path]:
    """Write the truth of the test parts of recordings; returns the files.

    What a recording cannot be asked is left out; TS3 is one file over all recordings.
    """
    paths = []
    ids: list[str] = []
    codes = [np.zeros(0, np.int64)]
    for source in sources:
        for task in tasks:
            if task.suite != "ts3" and not source.lacks(task):
                paths.append(truth_path(folder, task, source.recording))
                write_tensors(paths[-1], truth_tensors(source, task),
                              {"task": task.id, "recording_id": source.recording})
        rows, own = labelled_units(source)
        ids += source.id[rows].tolist()
        codes.append(own)
    for task in tasks:
        if task.suite == "ts3" and ids:
            paths.append(truth_path(folder, task, ""))
            write_tensors(paths[-1], {"entity_ids": encode_ids(ids),
                                      "targets": np.concatenate(codes)},
                          {"task": task.id, "label_names": ",".join(COSMOS)})
    return paths


def truth_tensors(source: Source, task: Task) -> Tensors:
    """What the file of truth of one recording holds."""
    if task.suite == "ts2":
        asked = spike_truth(source, task, "test")
        return {"targets": asked.targets, "window_timestamps": asked.start,
                "unit_ids": encode_ids(source.id[asked.units])}
    truth = truth_of(source, task, "test")
    if task.kind == "label":
        return {"values": truth.values, "trial_id": truth.trial}
    tensors = {"values": truth.values[..., None], "trial_id": truth.trial,
               "timestamps": truth.times}
    return tensors if truth.sure is None else {**tensors, "mask": truth.sure}


def labelled_units(source: Source) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and codes of the units in one of the ten regions."""
    code = np.array([COSMOS.index(r) if r in COSMOS else -1 for r in source.region], np.int64)
    rows = np.flatnonzero(code >= 0)
    return rows, code[rows]
