"""Multi-session decoders trained by gradient: GRU, perceptron, NDT, reduced-rank regression.

One recipe trains them all: batches that mix sessions, unit dropout, AdamW with a one-cycle rate,
the weights best on the validation parts. What a short pilot training can tell (one map out or one
per session; the rank of `rrr`) is chosen by it on the validation parts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from neds.baselines import Budget, Fitted
from neds.baselines.layout import (
    Output,
    Sampler,
    SessionRows,
    layout,
    loss_of,
    scaling,
    session_rows,
)
from neds.baselines.nets import SessionNet, Sizes
from neds.baselines.rows import (
    Floats,
    PerSession,
    Run,
    headline,
    in_units,
    mean_known,
    n_rows,
    unfitted,
)
from neds.dataset import Recording

CHUNK = 2048  # bins that pass a core with a finite past at once, when predicting
PILOT = 0.25  # of the steps, for each candidate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a net is trained. Steps are counted in passes over the training rows."""

    sizes: Sizes
    epochs: float = 40
    least_steps: int = 1000
    most_steps: int = 8000
    batch: int = 32
    bins: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    unit_dropout: float = 0.2
    validations: int = 25
    ranks: tuple[int, ...] = ()


RECIPES = {
    "gru": Recipe(sizes=Sizes(width=192, layers=2, dropout=0.3)),
    "mlp": Recipe(sizes=Sizes(width=128, lags=15, dropout=0.3), learning_rate=1e-3),
    "ndt": Recipe(sizes=Sizes(width=128, layers=4, window=30, dropout=0.2)),
    "rrr": Recipe(sizes=Sizes(width=8, lags=15, dropout=0.0), learning_rate=5e-3,
                  unit_dropout=0.1, ranks=(4, 8, 16, 32)),
}


def for_budget(recipe: Recipe, budget: Budget) -> Recipe:
    """The recipe, or a small version of it."""
    if budget == "full":
        return recipe
    sizes = replace(recipe.sizes, width=min(recipe.sizes.width, 48),
                    layers=min(recipe.sizes.layers, 2))
    return replace(recipe, sizes=sizes, epochs=recipe.epochs / 8, least_steps=150, batch=16,
                   validations=5, ranks=recipe.ranks[:1])


def fit(
    recordings: list[Recording], *, seed: int, device: str, budget: Budget, progress: bool,
    core: str, alone: bool = False,
) -> Fitted:
    """Fit one net over all sessions, or one `alone` per session. See `neds.baselines.fit`."""
    if alone:
        start = partial(fit, device=device, budget=budget, progress=progress, core=core)
        return PerSession(lambda r, s: start([r], seed=s),
                          {r.state.session: start([r], seed=seed) for r in recordings})
    recipe = for_budget(RECIPES[core], budget)
    if len(recordings) == 1:  # as many updates from half the sequences: less to learn from
        recipe = replace(recipe, batch=min(recipe.batch, 16))
    outputs = layout(recordings)
    data = [session_rows(r, outputs, device) for r in recordings]
    steps = total_steps(recipe, data)
    best: tuple[float, Sizes, bool] | None = None
    options = candidates(core, recipe, len(data), budget)
    for sizes, own_out in options if len(options) > 1 else ():
        net = make_net(core, sizes, data, outputs, own_out, seed)
        value = train(net, data, outputs, recipe, round(PILOT * steps), seed, progress)
        if best is None or value > best[0]:
            best = (value, sizes, own_out)
    sizes, own_out = best[1:] if best is not None else options[0]
    net = make_net(core, sizes, data, outputs, own_out, seed)
    train(net, data, outputs, recipe, steps, seed, progress)
    return Sequences(net, outputs, [d.recording for d in data], budget)


def candidates(core: str, recipe: Recipe, sessions: int, budget: Budget
               ) -> list[tuple[Sizes, bool]]:
    """(sizes, one map out per session) to choose between."""
    if core == "rrr":
        return [(replace(recipe.sizes, width=rank), False) for rank in recipe.ranks]
    if sessions == 1 or budget == "quick":
        return [(recipe.sizes, False)]
    return [(recipe.sizes, False), (recipe.sizes, True)]


def make_net(core: str, sizes: Sizes, data: list[SessionRows], outputs: list[Output],
             own_out: bool, seed: int) -> SessionNet:
    """A fresh net on the device of the data, seeded without touching the global generator."""
    units = [d.counts.shape[1] for d in data]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SessionNet(core, sizes, units, outputs[-1].columns.stop, own_out)
    return net.to(data[0].counts.device)


def total_steps(recipe: Recipe, data: list[SessionRows]) -> int:
    """Steps of the recipe's epochs over the training rows of all sessions, within its bounds."""
    windows = sum(n_rows(d.fit_on) for d in data) / recipe.bins
    steps = round(recipe.epochs * windows / recipe.batch)
    return min(max(steps, recipe.least_steps), recipe.most_steps)


def train(net: SessionNet, data: list[SessionRows], outputs: list[Output], recipe: Recipe,
          steps: int, seed: int, progress: bool) -> float:
    """Train, leave the best weights in the net, return their validation score (-inf for none)."""
    from tqdm import tqdm

    own = {id(p) for p in net.own_parameters()}
    decayed = [p for p in net.parameters() if p.ndim > 1 and id(p) not in own]
    plain = [p for p in net.parameters() if p.ndim <= 1 or id(p) in own]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay},
         {"params": plain, "weight_decay": 0.0}], lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    sampler = Sampler(data, recipe.batch, recipe.bins, seed)
    every = max(1, steps // recipe.validations)
    best, weights = -math.inf, copy.deepcopy(net.state_dict())
    devices = [data[0].counts.device] if data[0].counts.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout
        for step in tqdm(range(1, steps + 1), unit="step", desc=net.kind, disable=not progress):
            update(net, sampler, outputs, recipe.unit_dropout, optimiser)
            schedule.step()
            if step % every == 0 or step == steps:
                value = validation(net, data, outputs)
                if value is None or value > best:  # with nothing to choose by, the newest
                    best = best if value is None else value
                    weights = copy.deepcopy(net.state_dict())
    net.load_state_dict(weights)
    net.eval()
    return best


def update(net: SessionNet, sampler: Sampler, outputs: list[Output], unit_dropout: float,
           optimiser: torch.optim.Optimizer) -> None:
    """One step of the optimiser on one batch."""
    batch = sampler.draw()
    net.train()
    predicted = net(batch.sessions, sampler.dropped(batch.counts, unit_dropout))
    optimiser.zero_grad(set_to_none=True)
    loss_of(predicted, batch, outputs).backward()  # type: ignore[no-untyped-call]
    held = [p for group in optimiser.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(held, 1.0)
    optimiser.step()


def validation(net: SessionNet, data: list[SessionRows], outputs: list[Output]) -> float | None:
    """Mean headline metric over sessions and behaviours on the rows to choose on."""
    values = []
    for s, d in enumerate(data):
        if d.choose_on:
            values += [headline(d.recording, m, d.choose_on, predicted) for m, predicted
                       in enumerate(predict(net, s, d.recording, outputs, d.choose_on))]
    return mean_known(values)


def predict(net: SessionNet, number: int, recording: Recording, outputs: list[Output],
            runs: Sequence[Run]) -> list[Floats]:
    """Predictions of the session with this number, every run from a cold start."""
    raw = raw_outputs(net, number, recording, runs).cpu()
    columns = {o.behaviour.name: o.columns for o in outputs}
    return [in_units(recording, m, raw[:, columns[b.name]], b)
            for m, b in enumerate(scaling(recording, outputs))]


@torch.inference_mode()
def raw_outputs(net: SessionNet, number: int, recording: Recording, runs: Sequence[Run]) -> Tensor:
    """Outputs (rows, K) of the runs in order; runs of one length pass the net together."""
    net.eval()
    device = net.out_bias.device
    by_length: dict[int, list[int]] = {}
    for i, (first, stop) in enumerate(runs):
        by_length.setdefault(stop - first, []).append(i)
    found: dict[int, Tensor] = {}
    for length, members in by_length.items():
        at_once = max(1, CHUNK // length)
        for start in range(0, len(members), at_once):
            some = members[start : start + at_once]
            x = [_embedded(net, number, recording, runs[i], device) for i in some]
            y = net.read_out([number], _through_core(net, torch.stack(x)[None]))
            found |= dict(zip(some, y[0], strict=True))
    return torch.cat([found[i] for i in range(len(runs))]) if runs else torch.zeros(
        0, net.out_bias.shape[1])


def _embedded(net: SessionNet, number: int, recording: Recording, run: Run,
              device: torch.device) -> Tensor:
    pieces = []
    for start in range(run[0], run[1], CHUNK):
        rows = recording.counts[start : min(start + CHUNK, run[1])]
        pieces.append(net.embed([number], rows.to(device).float()[None, None])[0, 0])
    return torch.cat(pieces)


def _through_core(net: SessionNet, x: Tensor) -> Tensor:
    past = net.receptive - 1
    if past < 0 or x.shape[2] <= CHUNK:
        return net.through_core(x)
    pieces = []
    for start in range(0, x.shape[2], CHUNK):
        begin = max(0, start - past)
        pieces.append(net.through_core(x[:, :, begin : start + CHUNK])[:, :, start - begin :])
    return torch.cat(pieces, 2)


class Sequences(Fitted):
    """A trained net and the sessions it knows, by number."""

    def __init__(self, net: SessionNet, outputs: list[Output], recordings: list[Recording],
                 budget: Budget) -> None:
        self.net, self.outputs, self.budget = net, outputs, budget
        self.sessions = {r.state.session: i for i, r in enumerate(recordings)}
        self.units = [r.state.units for r in recordings]

    def decode_part(self, recording: Recording, part: str) -> list[Floats]:
        """See `Fitted.decode_part`."""
        if recording.state.session not in self.sessions:
            raise unfitted(recording, list(self.sessions))
        number = self.sessions[recording.state.session]
        return predict(self.net, number, recording, self.outputs, recording.runs_within(part))

    def adapt(self, recording: Recording, *, seed: int) -> Fitted:
        """See `Fitted.adapt` and `neds.baselines.adaptation`."""
        from neds.baselines.adaptation import adapt

        net = adapt(self.net, self.units, recording, self.outputs, seed, self.budget)
        adapted = Sequences(net, self.outputs, [recording], self.budget)
        adapted.name = self.name
        return adapted
