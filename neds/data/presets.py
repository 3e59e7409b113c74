"""Presets of the reader `arrays` for known sets of recordings.

A preset is a mapping in `mappings/*.toml` and, where arrays must first be made from others, a
function from the archive's arrays to those and the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neds.data.arrays import Arrays, grid, load_archive, read_arrays
from neds.data.checks import as_floats, naming, positive
from neds.data.mapping import load_mapping, parse_mapping
from neds.data.reader import Reader, one_file
from neds.data.session import Session
from neds_rt.errors import BadInput

FOLDER = Path(__file__).parent / "mappings"
Derived = tuple[str, Arrays]  # the name of a mapping, and the arrays it reads


def arrays_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Return what reads archives, with a preset or with the words of `--map`.

    Raises `BadInput` for both, neither, or a mapping that is none.
    """
    if bool(preset) == bool(words):
        raise BadInput("arrays reader", "options", "both" if preset else "neither",
                       "--preset or --map")
    if preset:
        return Reader(read=lambda source: read_preset(Path(source), preset), files=one_file)
    mapping = parse_mapping(words)
    return Reader(read=lambda source: read_arrays(Path(source), mapping), files=one_file)


def read_preset(path: Path, preset: str) -> Session:
    """Read one archive with a preset, a key of `PRESETS`. Raises `BadInput`."""
    if preset not in PRESETS:
        raise BadInput("--preset", "name", repr(preset), f"one of {', '.join(PRESETS)}")
    arrays = load_archive(path)
    with naming(path):
        try:
            name, arrays = PRESETS[preset](arrays)
        except KeyError as error:
            expected = f"an archive of the {preset} set"
            raise BadInput(path, "array", f"no {error}", expected) from error
        except (ValueError, IndexError, TypeError) as error:
            raise BadInput(path, "arrays", error, f"shapes as in the {preset} set") from error
    return read_arrays(path, load_mapping(FOLDER / f"{name}.toml"), arrays)


MARKS = {"indy": "finger_velocity_cm_s", "steinmetz": "brain_area", "place-cells": "position_xy"}
"""An array that only archives of this preset have."""


def guess_preset(path: Path) -> str:
    """Return the preset whose mark an archive bears; raises `BadInput` when it bears none."""
    names = load_archive(path)
    for preset, mark in MARKS.items():
        if mark in names:
            return preset
    raise BadInput(path, "arrays", ", ".join(sorted(names))[:100],
                   f"one of {', '.join(MARKS.values())}, or --preset")


def _as_it_is(mapping: str) -> Callable[[Arrays], Derived]:
    return lambda arrays: (mapping, arrays)


def _steinmetz(arrays: Arrays) -> Derived:
    """Add each trial's borders on the bin grid, the stimulus side and the response.

    Side: the sign of right minus left contrast, 0 (unknown) where they are equal. Response: on
    correct trials the side of the higher contrast, or none where nothing was shown; NaN where it
    does not follow, on wrong trials and between equal contrasts.
    """
    starts = as_floats("bin_start_s", arrays["bin_start_s"], 2)
    size = positive("bin_size_s", float(arrays["bin_size_s"]))
    bins, offset = grid(starts.reshape(-1), size)
    first = bins.reshape(starts.shape)[:, 0]
    left, right = arrays["contrast_left"], arrays["contrast_right"]
    side = np.sign(right - left).astype(np.float64)
    follows = (arrays["feedback"] > 0) & ((side != 0) | ((left == 0) & (right == 0)))
    return "steinmetz", arrays | {
        "trial_start": offset + first * size,
        "trial_end": offset + (first + starts.shape[1]) * size,
        "trial_side": side,
        "trial_response": np.where(follows, side, np.nan),
    }


def _ibl(arrays: Arrays) -> Derived:
    if "prestim_counts" in arrays:
        return _ibl_prestim(arrays)
    if "wheel_velocity" not in arrays or "trials_trial_start" not in arrays:
        raise BadInput("archive", "content", "spikes and trials of different sessions",
                       "one session with spikes, trials and behaviour; name what you want of this "
                       "archive with --map")
    return _ibl_spikes(arrays)


def _ibl_spikes(arrays: Arrays) -> Derived:
    """Unfold the windows around each trial into time series that are unknown between them."""
    start, end = arrays["trials_trial_start"], arrays["trials_trial_end"]
    wheel = arrays["wheel_velocity"]
    times = start[:, None] + np.arange(wheel.shape[1]) * float(arrays["wheel_bin_size_s"])
    # A last NaN just after each window ends it: nothing is interpolated to the next trial.
    closing = times[:, -1:] + 1e-3
    choice = arrays["trials_choice"]
    pieces = _pieces(start, end, arrays["spike_times_s"])
    return "ibl-spikes", arrays | {
        "trace_wheel": np.c_[wheel, np.full(len(wheel), np.nan)].ravel(),
        "trace_times": np.c_[times, closing].ravel(),
        "label_choice": np.c_[choice, np.full(len(choice), np.nan)].ravel(),
        "label_times": np.c_[start, end].ravel(),
        "piece_start": pieces[:, 0],
        "piece_end": pieces[:, 1],
    }


def _pieces(
    start: NDArray[np.float64], end: NDArray[np.float64], spikes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return where the recording exists: trials joined where spikes fill the time between them."""
    between = np.searchsorted(spikes, start[1:]) - np.searchsorted(spikes, end[:-1])
    pause = start[1:] - end[:-1]
    cut = np.flatnonzero(between < 0.1 * pause * len(spikes) / np.ptp(spikes)) + 1
    return np.stack([start[np.r_[0, cut]], end[np.r_[cut, len(start)] - 1]], axis=1)


def _ibl_prestim(arrays: Arrays) -> Derived:
    """Keep trials with a known stimulus time, and average the traces over their count window."""
    stimulus = arrays["trials_stimOn_times"]
    known = np.isfinite(stimulus)
    window = arrays["prestim_window_s"]
    step = float(arrays["behaviour_bin_size_s"])
    first, last = np.rint((window - float(arrays["behaviour_start_offset_s"])) / step).astype(int)
    kept = {name: a[known] for name, a in arrays.items() if a.ndim and len(a) == len(known)}
    return "ibl-prestim", arrays | kept | {
        "pre_start": stimulus[known] + window[0],
        "pre_size": np.array(round(float(window[1] - window[0]), 6)),
        "pre_wheel": kept["wheeling"][:, first:last].mean(axis=1),
        "pre_whisker": kept["whisking_r"][:, first:last].mean(axis=1),
    }


PRESETS: dict[str, Callable[[Arrays], Derived]] = {
    "indy": _as_it_is("indy"),
    "place-cells": _as_it_is("place-cells"),
    "steinmetz": _steinmetz,
    "ibl-sample": _ibl,
}
