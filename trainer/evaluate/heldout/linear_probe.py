"""Ridge regression from frozen features, cross-validated over groups of clips.

No clip is predicted by a regression that saw another clip of its group.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FOLDS = 5
MIN_GROUPS = 3
"""Groups that a probe needs: to learn from, to choose the strength on, and to predict."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths of the ridge, for features of unit variance."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of features x [D] and targets y [K]: all that a regression needs."""

    count: int
    x: Floats
    y: Floats
    xx: Floats
    xy: Floats

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Moments:
        """Sum over rows: x [n, D], y [n, K]."""
        return cls(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def regressions(self, strengths: Sequence[float]) -> list[Regression]:
        """Solve for every strength of the ridge."""
        count = max(self.count, 1)
        mean_x, mean_y = self.x / count, self.y / count
        covariance = self.xx / count - np.outer(mean_x, mean_x)
        # Features that never vary say nothing, and must not be divided by 0.
        scale = np.sqrt(np.maximum(covariance.diagonal(), 0))
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean_x)), scale, np.inf)
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        aligned = vectors.T @ ((self.xy / count - np.outer(mean_x, mean_y)) / scale[:, None])
        found = []
        for strength in strengths:
            weights = vectors @ (aligned / (np.maximum(values, 0) + strength)[:, None])
            weights /= scale[:, None]
            found.append(Regression(weights, mean_y - mean_x @ weights))
        return found


@dataclass(frozen=True, eq=False)
class Regression:
    """y = x @ weights + bias; weights [D, K], bias [K]."""

    weights: Floats
    bias: Floats

    def predict(self, x: Floats) -> Floats:
        """Predict rows: [n, D] → [n, K]."""
        return x @ self.weights + self.bias


def cross_validated(
    features: Sequence[Floats], targets: Sequence[Floats], groups: Sequence[Hashable]
) -> list[Floats]:
    """Predict the targets of every clip by a regression on clips of other groups.

    features, targets: [n, D] and [n, K] of each clip; rows with NaN targets are not learned from
    groups:            the group of each clip, at least MIN_GROUPS different ones

    Groups are dealt to FOLDS folds. For each fold, the ridge's strength is the best on the next
    fold for regressions on the others; then all but the fold itself are learned from.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    folds = min(FOLDS, len(numbers))
    fold_of = [numbers[group] % folds for group in groups]
    moments = [_moments(features, targets, fold_of, fold) for fold in range(folds)]
    predictions: list[Floats] = [np.zeros(0)] * len(features)
    for fold in range(folds):
        chosen_on = (fold + 1) % folds
        rest = [moments[f] for f in range(folds) if f not in (fold, chosen_on)]
        tried = _total(rest).regressions(STRENGTHS)
        clips = [i for i, f in enumerate(fold_of) if f == chosen_on]
        errors = [
            sum(_squared_error(regression.predict(features[i]), targets[i]) for i in clips)
            for regression in tried
        ]
        strength = STRENGTHS[int(np.argmin(errors))]
        [regression] = _total([*rest, moments[chosen_on]]).regressions([strength])
        for i, f in enumerate(fold_of):
            if f == fold:
                predictions[i] = regression.predict(features[i])
    return predictions


def _moments(
    features: Sequence[Floats], targets: Sequence[Floats], fold_of: Sequence[int], fold: int
) -> Moments:
    parts = []
    for x, y, f in zip(features, targets, fold_of, strict=True):
        if f == fold:
            known = np.isfinite(y).all(axis=1)
            parts.append(Moments.of(x[known].astype(np.float64), y[known]))
    return _total(parts)


def _total(parts: Sequence[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _squared_error(predicted: Floats, targets: Floats) -> float:
    return float(np.nansum((predicted - targets) ** 2))
