"""A linear probe from unit features to labels, cross-validated, with chance by label shuffling.

The probe is multinomial logistic regression with balanced class weights on z-scored features.
Scaling and regularisation are chosen on training units alone: C by an inner cross-validation. (The
paper used a linear SVM in 5 folds and does not say how C was chosen; the two differ little, and a
shuffle needs hundreds of fits, which logistic regression does ten times faster.)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neds.metrics import balanced_accuracy

COSTS = (1e-3, 1e-2, 1e-1, 1.0)
INNER_FOLDS = 3

Features = NDArray[np.floating]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of a task's units: rows to fit on, rows to predict, and the animal predicted."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    animal: str


@dataclass(frozen=True, eq=False)
class Task:
    """Units to label: rows (U,) into the table, labels (U,) as codes, group (U,), folds.

    Folds hold positions within the task. Units of one `group` (a channel of a probe) are in one
    fold, since a neuron recorded twice would otherwise be known from its copy. `left_out` says why
    animals or regions are not in it.
    """

    rows: NDArray[np.int64]
    labels: Labels
    group: NDArray[np.int64]
    animal: NDArray[np.str_]
    folds: list[Fold]
    left_out: list[str]


@dataclass(frozen=True)
class ProbeScore:
    """Scores of one task: means over animals, per animal, recall and confusion over all units."""

    balanced_accuracy: float
    accuracy: float
    by_animal: dict[str, dict[str, float]]
    confusion: NDArray[np.int64]  # (K, K): rows are true regions, columns predicted ones


def fit_predict(x: Features, y: Labels, test: Features, cost: float) -> Labels:
    """Codes predicted for `test` (n, D) by a probe fitted on `x` (U, D), `y` (U,).

    Features are z-scored with the mean and sd of `x`. With a single class to fit on, that class.
    """
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) < 2:
        return np.full(len(test), y[0], np.int64)
    mean, sd = x.mean(0), x.std(0)
    sd = np.where(sd > 1e-12, sd, 1.0)
    probe = LogisticRegression(C=cost, class_weight="balanced", max_iter=200, tol=1e-3)
    # Thousands of small fits, in which checking the arguments would take half of the time.
    with warnings.catch_warnings(), config_context(assume_finite=True,
                                                   skip_parameter_validation=True):
        warnings.simplefilter("ignore")  # a fit that stops at max_iter is good enough here
        probe.fit((x - mean) / sd, y)
        return np.asarray(probe.predict((test - mean) / sd), np.int64)


def choose_cost(x: Features, y: Labels, group: NDArray[np.int64], seed: int) -> float:
    """The C of COSTS with the best balanced accuracy in an inner cross-validation."""
    splits = stratified(y, group, INNER_FOLDS, seed)
    best, chosen = -1.0, COSTS[0]
    for cost in COSTS:
        predicted = np.full(len(y), -1, np.int64)
        for train, test in splits:
            predicted[test] = fit_predict(x[train], y[train], x[test], cost)
        score = balanced_accuracy(y, predicted)
        if score > best + 1e-9:  # of equals the most regularised
            best, chosen = score, cost
    return chosen


def stratified(
    y: Labels, group: NDArray[np.int64], folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Folds of (training, test) positions, labels in equal shares, groups never divided."""
    from sklearn.model_selection import StratifiedGroupKFold

    cut = StratifiedGroupKFold(min(folds, len(np.unique(group))), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label in fewer groups than folds is simply not in all
        splits = list(cut.split(y[:, None], y, group))
    return [(np.asarray(a, np.int64), np.asarray(b, np.int64)) for a, b in splits if len(b)]


def predict_task(x: Features, task: Task, labels: Labels, costs: Sequence[float]) -> Labels:
    """Held-back prediction for every unit (U,) of a task, with one C a fold; -1 if never tested."""
    own = x[task.rows]
    predicted = np.full(len(labels), -1, np.int64)
    for fold, cost in zip(task.folds, costs, strict=True):
        predicted[fold.test] = fit_predict(own[fold.train], labels[fold.train], own[fold.test],
                                           cost)
    return predicted


def task_costs(x: Features, task: Task, seed: int) -> list[float]:
    """C for each fold, chosen on its training units."""
    own = x[task.rows]
    return [choose_cost(own[f.train], task.labels[f.train], task.group[f.train], seed)
            for f in task.folds]


def score_task(task: Task, labels: Labels, predicted: Labels, n_labels: int) -> ProbeScore:
    """Scores of held-back predictions; units that no fold tests are left out."""
    tested = predicted >= 0
    by_animal = {}
    for animal in np.unique(task.animal[tested]):
        of = tested & (task.animal == animal)
        by_animal[str(animal)] = {
            "balanced_accuracy": balanced_accuracy(labels[of], predicted[of]),
            "accuracy": float(np.mean(labels[of] == predicted[of])),
            "units": int(of.sum()),
        }
    confusion = np.zeros((n_labels, n_labels), np.int64)
    np.add.at(confusion, (labels[tested], predicted[tested]), 1)
    means = {name: float(np.mean([scores[name] for scores in by_animal.values()]))
             for name in ("balanced_accuracy", "accuracy")}
    return ProbeScore(means["balanced_accuracy"], means["accuracy"], by_animal, confusion)


def shuffled_scores(
    x: Features, task: Task, costs: Sequence[float], n_labels: int, shuffles: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Balanced accuracy and accuracy (shuffles,) of probes fitted to labels shuffled per animal.

    Each animal keeps its numbers of units per region; folds and C stay those of the true labels.
    """
    rng = np.random.default_rng(seed)
    balanced, plain = np.empty(shuffles), np.empty(shuffles)
    for i in range(shuffles):
        labels = task.labels.copy()
        for animal in np.unique(task.animal):
            of = np.flatnonzero(task.animal == animal)
            labels[of] = labels[rng.permutation(of)]
        score = score_task(task, labels, predict_task(x, task, labels, costs), n_labels)
        balanced[i], plain[i] = score.balanced_accuracy, score.accuracy
    return balanced, plain


def p_value(found: float, chance: NDArray[np.float64]) -> float:
    """Share of shuffles at least as good as `found`, itself counted as one (so never 0)."""
    return float((1 + np.sum(chance >= found - 1e-12)) / (1 + len(chance)))
