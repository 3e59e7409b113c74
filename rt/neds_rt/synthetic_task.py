"""What a synthetic animal does: a visual decision task in the manner of the IBL's, step by step.

Trials follow each other without a pause, each drawn whole and in order from one generator, so a
session does not depend on how much of it is asked for at a time. One step is 20 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP_S = 0.02
"""Length of one step: rates and behaviours are constant within it."""

FEATURES = ("wheel_left", "wheel_right", "whisker", "stimulus_left", "stimulus_right", "choice",
            "block", "feedback", "noise0", "noise1", "noise2", "drift0", "drift1")
"""What firing rates can depend on, in the order of the feature columns."""

NOISE_TAU_S = (0.15, 0.4, 0.3, 0.5, 1.0, 120.0, 300.0)  # wheel, whisker, three shared, two slow
CONTRASTS = (1.0, 0.25, 0.125, 0.0625, 0.0)
BLOCKS = (0.5, 0.2, 0.8)  # probability of a stimulus on the left; a session starts with the first
TRIAL_COLUMNS = ("intervals_0", "intervals_1", "stimOn_times", "goCue_times",
                 "firstMovement_times", "response_times", "feedback_times", "choice",
                 "feedbackType", "contrastLeft", "contrastRight", "probabilityLeft")


class Steps(NamedTuple):
    """Behaviour of consecutive steps: features (n, 13); wheel, whisker, choice, block (n,).

    wheel in rad/s, signed; whisker motion energy in arbitrary units; choice a code (0 = -1,
    1 = +1, NaN outside stimulus to end of trial); block a code (0, 1, 2 for 0.2, 0.5, 0.8).
    """

    features: NDArray[np.float32]
    wheel: NDArray[np.float32]
    whisker: NDArray[np.float32]
    choice: NDArray[np.float32]
    block: NDArray[np.float32]


@dataclass(frozen=True)
class _Trial:
    """Event times in seconds from the trial's start, and what happened."""

    stim_on: float
    moved: float
    responded: float
    stop: float
    choice: int
    correct: bool
    left: float  # contrast on the left, NaN when the stimulus is on the right
    right: float
    p_left: float


class Task:
    """An endless run of trials, one `next_trial` at a time."""

    def __init__(self, seed: int, animal_seed: int) -> None:
        self._draw = np.random.default_rng([animal_seed, seed, 1])
        self._noise = np.random.default_rng([animal_seed, seed, 2])
        decay = np.exp(-STEP_S / np.array(NOISE_TAU_S))
        self._decay, self._kick = decay, np.sqrt(1 - decay**2)
        self._state = self._noise.standard_normal(len(decay))
        self._left_in_block = 0
        self._p_left = 0.0
        self.step = 0

    def next_trial(self) -> tuple[Steps, dict[str, float]]:
        """Return the steps of the next trial and its row of the trials table (seconds)."""
        trial = self._draw_trial()
        n = round(trial.stop / STEP_S)
        start = self.step * STEP_S
        self.step += n
        row = (start, start + trial.stop, start + trial.stim_on, start + trial.stim_on + 0.001,
               start + trial.moved, start + trial.responded, start + trial.responded + 0.001,
               trial.choice, 1 if trial.correct else -1, trial.left, trial.right, trial.p_left)
        return self._steps(trial, n), dict(zip(TRIAL_COLUMNS, map(float, row), strict=True))

    def _draw_trial(self) -> _Trial:
        draw = self._draw
        if self._left_in_block == 0:
            other = [p for p in BLOCKS if p != self._p_left]
            self._p_left = BLOCKS[0] if self._p_left == 0 else float(draw.choice(other))
            self._left_in_block = int(draw.integers(12, 31))
        self._left_in_block -= 1
        on_left = draw.random() < self._p_left
        contrast = float(draw.choice(CONTRASTS))
        evidence = (1 if on_left else -1) * 3.5 * np.sqrt(contrast) + 2.0 * (self._p_left - 0.5)
        choice = 1 if draw.random() < 1 / (1 + np.exp(-1.5 * evidence)) else -1
        correct = (choice == 1) == on_left
        stim_on = draw.uniform(0.45, 0.75)
        moved = stim_on + 0.12 + draw.lognormal(np.log(0.18), 0.4) * (1.5 - 0.5 * contrast)
        responded = moved + draw.uniform(0.25, 0.5)
        stop = np.ceil((responded + (0.9 if correct else 1.6)) / STEP_S) * STEP_S
        return _Trial(stim_on, moved, responded, float(stop), choice, correct,
                      contrast if on_left else np.nan, np.nan if on_left else contrast,
                      self._p_left)

    def _steps(self, trial: _Trial, n: int) -> Steps:
        end = np.arange(1.0, n + 1) * STEP_S  # a step's values are those at its end
        noise = self._walk(n)
        wheel = self._wheel(trial, end) + 0.3 * noise[:, 0]
        whisker = (0.35 * np.exp(0.5 * noise[:, 1]) + 0.3 * np.abs(wheel)
                   + 0.8 * _decaying(end - trial.responded, 0.25))
        deciding = (end >= trial.stim_on).astype(float)
        contrast = np.nan_to_num([trial.left, trial.right])
        shown = _decaying(end - trial.stim_on - 0.12, 0.35)
        code = np.where(deciding > 0, (trial.choice + 1) / 2, np.nan)
        block = np.full(n, {0.2: 0.0, 0.5: 1.0, 0.8: 2.0}[trial.p_left])
        turn = wheel / (1 + np.abs(wheel) / 4)
        features = np.stack([
            np.maximum(turn, 0), np.maximum(-turn, 0), whisker - 0.7,
            np.sqrt(contrast[0]) * shown, np.sqrt(contrast[1]) * shown,
            trial.choice * deciding, block - 1,
            (1 if trial.correct else -1) * _decaying(end - trial.responded - 0.12, 0.5),
        ], axis=1)
        features = np.concatenate([features, noise[:, 2:]], axis=1).astype(np.float32)
        return Steps(features, *(a.astype(np.float32) for a in (wheel, whisker, code, block)))

    def _wheel(self, trial: _Trial, end: NDArray[np.float64]) -> NDArray[np.float64]:
        """Velocity: one turn of the wheel for the answer, then a few of no meaning."""
        draw = self._draw
        n_other = int(draw.integers(1, 4))
        centre = np.r_[trial.moved + 0.12, draw.uniform(0.0, trial.stop, n_other)]
        height = np.r_[trial.choice * draw.lognormal(np.log(3.5), 0.3),
                       draw.standard_normal(n_other) * 2.0]
        width = np.r_[0.09, draw.uniform(0.08, 0.2, n_other)]
        bumps = np.exp(-0.5 * ((end[:, None] - centre) / width) ** 2)
        # Every movement fades at the trial's border, so that trials join without a jump.
        fade = np.clip(np.minimum(end, trial.stop - end) / 0.1, 0, 1)
        return np.asarray((bumps @ height) * fade)

    def _walk(self, n: int) -> NDArray[np.float64]:
        """Return (n, 7): unit-variance processes that forget with the time constants above."""
        out = self._noise.standard_normal((n, len(self._decay))) * self._kick
        state = self._state
        for row in out:
            state = state * self._decay + row
            row[:] = state
        self._state = state
        return np.asarray(out)


def _decaying(since: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """1 at the event, decaying with `tau`; 0 before it."""
    return np.asarray(np.exp(-np.maximum(since, 0) / tau) * (since >= 0))
