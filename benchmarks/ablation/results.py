"""The results of an experiment: means of all arms, and arms less their controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablation.crossed import CrossedDifference, crossed_difference
from benchmarks.ablation.experiment import Experiment
from benchmarks.ablation.scoring import MODEL
from trainer.evaluate.heldout.scoring import CHANCE, RAW, STATIC
from trainer.evaluate.intervals import LEVEL, holm
from trainer.evaluate.results import finite_mean

START = "start"

Scores = dict[str, Any]
"""The scores of one model on the evaluation's clips (`Scorer.score`)."""


@dataclass(frozen=True)
class Comparison:
    """An arm less its control, in one metric.

    corrected: Holm's p-value, over all comparisons in this metric
    """

    arm: str
    control: str
    metric: str
    difference: CrossedDifference
    corrected: float = math.nan

    @property
    def verdict(self) -> str:
        """What follows, in words."""
        if self.difference.interval is None:
            return "too few sequences"
        if self.corrected > LEVEL:
            return "not distinguishable from 0"
        return "higher" if self.difference.mean > 0 else "lower"


@dataclass(frozen=True, eq=False)
class Results:
    """What is known of an experiment that may be under way.

    rates:    the learning rate of each objective
    trials:   objective → rate → mean endpoint on the validation clips
    start:    scores of the weights that arms start from
    arms:     arm → seed → scores after the last step
    curves:   START or an arm → seed → step → scores on the validation clips
    seconds:  arm → seed → seconds of training
    diverged: (arm, seed, why) of runs that have no scores
    """

    experiment: Experiment
    rates: dict[str, float]
    trials: dict[str, dict[float, float]]
    start: Scores
    arms: dict[str, dict[int, Scores]] = field(default_factory=dict)
    curves: dict[str, dict[int, dict[int, Scores]]] = field(default_factory=dict)
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    diverged: list[tuple[str, int, str]] = field(default_factory=list)

    def mean(self, arm: str, metric: str) -> tuple[float, float]:
        """Return the mean of an arm's seeds, and their standard deviation (NaN for one seed)."""
        values = [mean_of(scores, metric) for scores in self.arms.get(arm, {}).values()]
        if not values:
            return math.nan, math.nan
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return float(np.mean(values)), spread

    def baselines(self, metric: str) -> dict[str, float]:
        """Return a metric of the start weights, and of what needs no training."""
        names = {START: MODEL, RAW: RAW, STATIC: STATIC, CHANCE: CHANCE}
        return {name: mean_of(self.start, metric, key) for name, key in names.items()}

    def curve(self, name: str, metric: str) -> list[tuple[float, float]]:
        """Return (step, mean over seeds) of the start's run or an arm; empty without a curve."""
        by_seed = [*self.curves.get(name, {}).values()]
        steps = set.intersection(*(set(scores) for scores in by_seed)) if by_seed else set()
        return [
            (float(step), float(np.mean([mean_of(scores[step], metric) for scores in by_seed])))
            for step in sorted(steps)
        ]

    def comparisons(self, metric: str) -> list[Comparison]:
        """Compare every arm with its control, over the seeds that both have finished."""
        found = []
        for arm, settings in self.experiment.arms.items():
            if settings.control is None:
                continue
            table = self._differences(arm, settings.control, metric)
            if table is not None:
                found.append(Comparison(arm, settings.control, metric, crossed_difference(table)))
        tested = [c for c in found if c.difference.interval is not None]
        corrected = holm([comparison.difference.p for comparison in tested])
        by_arm = {c.arm: p for c, p in zip(tested, corrected, strict=True)}
        return [replace(c, corrected=by_arm.get(c.arm, math.nan)) for c in found]

    def _differences(self, arm: str, control: str, metric: str) -> NDArray[np.float64] | None:
        """Return arm less control [sequences, seeds]; None without a seed that both have."""
        ours, theirs = self.arms.get(arm, {}), self.arms.get(control, {})
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            return None
        columns = [
            of_sequences(ours[seed], metric) - of_sequences(theirs[seed], metric) for seed in seeds
        ]
        return np.stack(columns, axis=1)


def of_sequences(scores: Scores, metric: str, column: str = MODEL) -> NDArray[np.float64]:
    """Return a metric of every sequence [S], NaN where it has no point that counts."""
    values = scores[column][metric].values()
    return np.array([math.nan if value is None else value for value in values])


def mean_of(scores: Scores, metric: str, column: str = MODEL) -> float:
    """Return the mean of a metric over sequences."""
    return finite_mean(of_sequences(scores, metric, column))
