"""What NEDS is held against, in the same run on the same split: ridge on lagged counts, and a GRU.

Both see the training part (the ridge strength and the number of GRU steps are chosen on the
validation part) and predict the rows asked for, causally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from neds.batches import draw_rows
from neds.dataset import Recording
from neds.evaluate import to_units
from neds.metrics import score
from neds.modalities import KINDS
from neds_rt.errors import BadInput

Floats = NDArray[np.float64]
RIDGE_STRENGTHS = (1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class GruConfig:
    """A one-layer GRU decoder of the size and training length of the model beside it."""

    hidden: int = 128
    steps: int = 1000
    batch: int = 16
    bins: int = 100
    learning_rate: float = 2e-3
    dropout: float = 0.3
    unit_dropout: float = 0.2
    validate_every: int = 50
    seed: int = 0


def ridge(recording: Recording, behaviour: int, lags: int = 10) -> NDArray[np.float32]:
    """Ridge from the counts of the last `lags` bins to a behaviour; predictions for every row.

    Returns (T, n_outputs) in behaviour units; categorical targets are one-hot. The strength is
    chosen on the validation part, the weights are fitted on training and validation together.
    """
    state = recording.state.behaviours[behaviour]
    x = lagged(recording, lags)
    y = recording.encoded[behaviour].double().numpy()
    known = recording.known[behaviour].numpy()
    train, val = _rows(recording, "train", known), _rows(recording, "val", known)
    truth = recording.values[state.name]

    fit = ridge_solver(x[train], y[train])

    def validation(strength: float) -> float:
        predicted = to_units(state, torch.from_numpy(x[val] @ fit(strength))).numpy()
        value = score(state.kind, truth[val], predicted)[KINDS[state.kind].metrics[0]]
        return -np.inf if np.isnan(value) else value

    best = max(RIDGE_STRENGTHS, key=validation)
    both = np.concatenate([train, val])
    weights = ridge_solver(x[both], y[both])(best)
    return to_units(state, torch.from_numpy(x @ weights)).float().numpy()


def lagged(recording: Recording, lags: int) -> Floats:
    """Counts of each row's bin and the `lags - 1` before it, and a one: (T, N lags + 1)."""
    counts = recording.counts.double().numpy()
    x = np.zeros((len(counts), counts.shape[1] * lags + 1))
    for first, stop in recording.runs.tolist():
        for lag in range(min(lags, stop - first)):
            columns = slice(lag * counts.shape[1], (lag + 1) * counts.shape[1])
            x[first + lag : stop, columns] = counts[first : stop - lag]
    x[:, -1] = 1.0
    return x


def ridge_solver(x: Floats, y: Floats) -> Callable[[float], Floats]:
    """Ridge of y (n, k) on x (n, p) whose last column is the constant, which is not shrunk.

    Returns strength -> weights (p, k). With fewer rows than columns the dual form is solved, which
    gives the same weights: w = Xc' (Xc Xc' + strength I)^-1 yc with centred Xc and yc.
    """
    if len(x) >= x.shape[1]:
        gram, cross = x.T @ x, x.T @ y

        def primal(strength: float) -> Floats:
            shrunk = gram.copy()
            shrunk[np.diag_indices(len(gram) - 1)] += strength
            return np.asarray(np.linalg.solve(shrunk, cross), np.float64)

        return primal
    mean_x, mean_y = x[:, :-1].mean(0), y.mean(0)
    centred = x[:, :-1] - mean_x
    kernel = centred @ centred.T

    def dual(strength: float) -> Floats:
        shrunk = kernel + strength * np.eye(len(kernel))
        weights = centred.T @ np.linalg.solve(shrunk, y - mean_y)
        return np.vstack([weights, mean_y - mean_x @ weights])

    return dual


def _rows(recording: Recording, part: str, known: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = recording.rows(part)
    return rows[known[rows]]


class GruDecoder(nn.Module):
    """counts -> sqrt -> linear -> GRU -> linear, all behaviours at once."""

    def __init__(self, n_units: int, n_outputs: int, config: GruConfig) -> None:
        super().__init__()
        self.into = nn.Linear(n_units, config.hidden)
        self.gru = nn.GRU(config.hidden, config.hidden, batch_first=True)
        self.out = nn.Linear(config.hidden, n_outputs)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, counts: Tensor) -> Tensor:
        """counts (B, T, N) to outputs (B, T, n_outputs)."""
        hidden, _ = self.gru(self.dropout(self.into(counts.sqrt())))
        outputs: Tensor = self.out(self.dropout(hidden))
        return outputs


def train_gru(recording: Recording, config: GruConfig) -> GruDecoder:
    """Train with AdamW and a one-cycle rate; keep the weights best on the validation part.

    Raises `BadInput` for a recording without behaviours: there is nothing to decode.
    """
    if not recording.encoded:
        raise BadInput(recording.state.session, "behaviours", "none", "some for the GRU to decode")
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    widths = [e.shape[1] for e in recording.encoded]
    net = GruDecoder(recording.counts.shape[1], sum(widths), config)
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=0.1
    )
    best, weights = -np.inf, {k: v.clone() for k, v in net.state_dict().items()}
    for step in range(1, config.steps + 1):
        rows, there = draw_rows(recording, config.batch, config.bins, generator)
        net.train()
        counts = recording.counts[rows].float()
        kept = torch.rand(len(rows), 1, counts.shape[2], generator=generator)
        counts = counts * (kept >= config.unit_dropout) / (1 - config.unit_dropout) ** 2
        outputs = net(counts).split(widths, -1)
        loss = torch.zeros(())
        for m, behaviour in enumerate(recording.state.behaviours):
            asked = recording.known[m][rows] & there
            if not asked.any():
                continue
            target, output = recording.encoded[m][rows][asked], outputs[m][asked]
            if behaviour.kind == "categorical":
                loss = loss + F.cross_entropy(output, target.argmax(-1))
            else:
                loss = loss + F.mse_loss(output, target)
        optimiser.zero_grad()
        if loss.requires_grad:  # not so if no behaviour of this batch was known
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % config.validate_every == 0 or step == config.steps:
            value = _validation(net, recording)
            if value is None or value > best:  # with nothing to choose by, the newest are kept
                best = best if value is None else value
                weights = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(weights)
    return net.eval()


def gru_part(net: GruDecoder, recording: Recording, part: str) -> list[NDArray[np.float32]]:
    """Predictions of every behaviour over a part, each run from a zero state."""
    widths = [e.shape[1] for e in recording.encoded]
    net.eval()
    with torch.inference_mode():
        outputs = torch.cat(
            [net(recording.counts[None, a:b].float())[0] for a, b in recording.runs_within(part)]
        ).split(widths, -1)
    return [
        to_units(b, o).numpy() for b, o in zip(recording.state.behaviours, outputs, strict=True)
    ]


def _validation(net: GruDecoder, recording: Recording) -> float | None:
    values = []
    for b, predicted in zip(
        recording.state.behaviours, gru_part(net, recording, "val"), strict=True
    ):
        truth = np.concatenate(
            [recording.values[b.name][i:j] for i, j in recording.runs_within("val")]
        )
        values.append(score(b.kind, truth, predicted)[KINDS[b.kind].metrics[0]])
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else None
