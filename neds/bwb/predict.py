"""What a model fitted to a recording predicts in the benchmark's windows.

The input of a window are the spikes of at most 20 s before its end, in bins counted from that end
backwards, and no behaviour. The streaming form sees, for each bin, what came before it; the window
form sees its whole window. Rates are read at hidden bins, where they are trained
(`neds.spike_tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from neds.bwb.files import Tensors, encode_ids
from neds.bwb.source import Source
from neds.bwb.tasks import BIN_S, CONTEXT_S, FORECAST_BINS, RATE_HZ, TARGET_BINS, TARGET_S, Task
from neds.bwb.windows import Truth, counts_before, scaled, spike_truth, truth_of
from neds.checkpoint import SessionState
from neds.config import ModelConfig
from neds.evaluate import to_units
from neds.model import Neds
from neds.spike_tasks import EVERY
from neds_rt.errors import BadInput

Floats = NDArray[np.floating]
BATCH_BINS = 8192  # bins a forward pass
SEGMENT = 0.5  # share of the input that windows of one pass of co-smoothing span, at most
LEAST_LICK_HZ = 0.1


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model of one recording's session, and how many bins it is shown."""

    model: Neds
    state: SessionState
    source: Source
    bins: int

    @classmethod
    def of(cls, model: Neds, state: SessionState, source: Source, context_s: float) -> Decoder:
        """A decoder with the input that `input_bins` says."""
        return cls(model, state, source, input_bins(model.config, context_s))

    def place(self, name: str) -> int | None:
        """Index of a behaviour, None for one that the model does not decode."""
        return next((m for m, b in enumerate(self.state.behaviours) if b.name == name), None)

    def inputs(
        self, stops: NDArray[np.float64], bins: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """(rows of `stops`, counts (n, t, N)) batch by batch; t < bins where a recording starts."""
        room = np.floor((stops - self.source.domain[0, 0] + 1e-6) / BIN_S).astype(np.int64)
        length = np.minimum(bins, room)
        for t in np.unique(length):
            rows = np.flatnonzero(length == t)
            size = max(1, BATCH_BINS // int(t))
            for i in range(0, len(rows), size):
                chosen = rows[i : i + size]
                yield chosen, counts_before(self.source, stops[chosen], int(t))

    def forward(
        self, counts: NDArray[np.uint8], hide: NDArray[np.bool_]
    ) -> tuple[Floats, list[Floats]]:
        """Log rates (n, t, N) and outputs (n, t, k) from counts (n, t, N); `hide` (t,) bins."""
        n, t, _ = counts.shape
        model, device = self.model, self.model.device
        behaviours = self.state.behaviours
        model.eval()
        with torch.inference_mode():
            log_rates, outputs = model(
                [self.state.session], torch.from_numpy(counts).to(device).float(),
                [torch.zeros(n, t, b.spec.n_outputs, device=device) for b in behaviours],
                torch.from_numpy(hide).to(device).expand(n, t),
                torch.ones(n, len(behaviours), t, dtype=torch.bool, device=device),
            )
            units = [to_units(b, o.cpu().float()).numpy()
                     for b, o in zip(behaviours, outputs, strict=True)]
            return log_rates.cpu().float().numpy(), units


def input_bins(config: ModelConfig, context_s: float) -> int:
    """Bins of input: `context_s` for the streaming form; the window form sees its own window.

    Raises `BadInput` for less than the second that is scored, and more than 20 s.
    """
    stream = config.form == "stream"
    bins = round(context_s / BIN_S) if stream else config.window
    if not TARGET_BINS <= bins <= CONTEXT_S / BIN_S:
        raise BadInput("--context" if stream else "model.window", "bins", bins,
                       f"{TARGET_BINS} to {CONTEXT_S / BIN_S:g} bins of 20 ms")
    return bins


def decode(decoder: Decoder, stops: NDArray[np.float64], bins: int) -> list[Floats]:
    """Every behaviour in the last `bins` bins before `stops` (n,), in its units (n, bins, k)."""
    found = [np.full((len(stops), bins, b.spec.n_outputs), np.nan, np.float32)
             for b in decoder.state.behaviours]
    for rows, counts in decoder.inputs(stops, decoder.bins):
        outputs = decoder.forward(counts, np.zeros(counts.shape[1], bool))[1]
        for whole, part in zip(found, outputs, strict=True):
            whole[rows, bins - min(bins, part.shape[1]):] = part[:, -bins:]
    return found


def predict_behaviour(decoder: Decoder, tasks: list[Task]) -> dict[str, Tensors]:
    """What the files of TS1 hold, {task id: tensors}; tasks with the same windows share a pass."""
    result: dict[str, Tensors] = {}
    decoded: dict[bytes, list[Floats]] = {}

    def at(truth: Truth) -> list[Floats]:
        key = truth.span.tobytes()
        if key not in decoded:
            decoded[key] = decode(decoder, truth.span[:, 1], TARGET_BINS)
        return decoded[key]

    for task in tasks:
        m = decoder.place(task.name)
        if m is None:
            continue
        truth = truth_of(decoder.source, task, "test")
        outputs = at(truth)[m]
        if task.kind == "label":
            predictions = _decision(outputs, _shares(decoder.source, task))[:, None]
        elif task.kind == "rate":
            trained = truth_of(decoder.source, task, "train")
            readout = fit_log_rate(_sampled(trained, at(trained)[m]), trained.values)
            predictions = readout.log_rate(_sampled(truth, outputs))[..., None]
        else:
            predictions = scaled(decoder.source, task, _sampled(truth, outputs))[..., None]
        result[task.id] = {"predictions": predictions.astype(np.float32), "trial_id": truth.trial}
        if task.kind != "label":
            result[task.id]["timestamps"] = truth.times - truth.span[:, :1]
    return result


def _decision(probabilities: Floats, shares: Floats) -> Floats:
    """Logits (n, C): mean log probability over a window's bins, the classes' shares taken out.

    The score is balanced accuracy, which weighs classes equally; the model was trained with the
    shares as they are.
    """
    return np.asarray(np.log(np.maximum(probabilities, 1e-6)).mean(1) - np.log(shares))


def _shares(source: Source, task: Task) -> Floats:
    codes = truth_of(source, task, "train").values[:, 0]
    counts = np.bincount(codes, minlength=task.dim) + 1.0  # one more, for classes never seen
    return np.asarray(counts / counts.sum())


def _sampled(truth: Truth, outputs: Floats) -> Floats:
    """Outputs (n, 50, 1), which are those of bins' ends, at the times (n, 50) of the truth."""
    ends = BIN_S * np.arange(1, TARGET_BINS + 1)
    rows = [np.interp(times - start, ends, row[:, 0])
            for times, start, row in zip(truth.times, truth.span[:, 0], outputs, strict=True)]
    return np.array(rows).reshape(len(outputs), TARGET_BINS)


@dataclass(frozen=True)
class LogRate:
    """Log counts a sample from a decoded rate in Hz: offset + slope * log of it."""

    offset: float
    slope: float

    def log_rate(self, rate_hz: Floats) -> Floats:
        """Log of the expected count in a sample of 20 ms, the shape of `rate_hz`."""
        return np.asarray(self.offset + self.slope * _log_hz(rate_hz))


def _log_hz(rate_hz: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(rate_hz.astype(np.float64), LEAST_LICK_HZ)))


def fit_log_rate(rate_hz: Floats, counts: Floats) -> LogRate:
    """The readout with the best Poisson likelihood of `counts`, by Newton's method.

    Where the training windows have no counts at all, a rate that is small throughout.
    """
    x = np.stack([np.ones(rate_hz.size), _log_hz(rate_hz).ravel()], 1)
    y = counts.ravel().astype(np.float64)
    if not y.sum():
        return LogRate(float(np.log(LEAST_LICK_HZ / RATE_HZ)), 0.0)
    weights = np.array([np.log(y.mean()), 0.0])
    for _ in range(50):
        rate = np.exp(np.clip(x @ weights, -20, 5))
        hessian = (x * rate[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (y - rate) - 1e-3 * weights)
        weights += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return LogRate(float(weights[0]), float(weights[1]))


def predict_spikes(decoder: Decoder, task: Task) -> Tensors:
    """What the file of a task of TS2 holds."""
    asked = spike_truth(decoder.source, task, "test")
    predict = _forecast if task.name == "forecasting" else _co_smooth
    rates = predict(decoder, asked.start, asked.interval, asked.units)
    return {"predictions": rates.astype(np.float16), "window_timestamps": asked.start,
            "unit_ids": encode_ids(decoder.source.id[asked.units])}


def _forecast(
    decoder: Decoder, start: NDArray[np.float64], interval: NDArray[np.int64],
    units: NDArray[np.int64],
) -> Floats:
    """Log rates (n, 5, N) at the end of windows, whose last five bins are hidden.

    Each window is a pass of its own, so it sees the model's window and no more.
    """
    result = np.zeros((len(start), FORECAST_BINS, len(units)), np.float32)
    bins = min(decoder.bins, max(TARGET_BINS, decoder.model.config.window))
    for rows, counts in decoder.inputs(start + TARGET_S, bins):
        hide = np.arange(counts.shape[1]) >= counts.shape[1] - FORECAST_BINS
        result[rows] = decoder.forward(counts, hide)[0][:, -FORECAST_BINS:]
    return result


def _co_smooth(
    decoder: Decoder, start: NDArray[np.float64], interval: NDArray[np.int64],
    units: NDArray[np.int64],
) -> Floats:
    """Log rates (n, 50, k) of units whose spikes are taken out of the input.

    Windows of one trial and phase share a pass. In three passes each bin is hidden once.
    """
    result = np.zeros((len(start), TARGET_BINS, len(units)), np.float32)
    groups = _segments(start, interval, max(TARGET_S, SEGMENT * decoder.bins * BIN_S))
    if decoder.model.config.form == "window":  # sees what comes later, so a window at a time
        groups = [np.array([row]) for row in range(len(start))]
    stops = np.array([start[rows[-1]] + TARGET_S for rows in groups])
    for chosen, counts in decoder.inputs(stops, decoder.bins):
        counts[:, :, units] = 0
        bins = counts.shape[1]
        rates = np.zeros((*counts.shape[:2], len(units)), np.float32)
        for phase in range(EVERY):
            hide = np.arange(bins) % EVERY == phase
            rates[:, hide] = decoder.forward(counts, hide)[0][:, hide][..., units]
        for own, group in zip(rates, chosen, strict=True):
            for row in groups[group]:
                before = round((start[groups[group][-1]] - start[row]) / BIN_S)
                result[row] = own[bins - before - TARGET_BINS : bins - before]
    return result


def _segments(
    start: NDArray[np.float64], interval: NDArray[np.int64], most_s: float
) -> list[NDArray[np.int64]]:
    """Rows of windows of one trial whose bins fall together, which span at most `most_s`."""
    groups: list[list[int]] = []
    for row in range(len(start)):
        first = groups[-1][0] if groups else row
        ahead = (start[row] - start[first]) / BIN_S
        same = interval[row] == interval[first] and abs(ahead - round(ahead)) < 1e-4
        if groups and same and start[row] - start[first] + TARGET_S <= most_s + 1e-6:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [np.array(group) for group in groups]
