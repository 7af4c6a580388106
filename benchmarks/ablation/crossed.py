"""Differences of two arms over sequences and seeds, which are both samples: crossed intervals.

Averaging over sequences alone would say how the arms differ *for these seeds*, and averaging over
seeds alone how they differ *on these sequences*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from trainer.evaluate.intervals import MIN_GROUPS, compare_means


@dataclass(frozen=True)
class CrossedDifference:
    """The mean of a table of differences [sequences, seeds], with its 95 % interval.

    interval: None if there are too few sequences
    p:        of the hypothesis that the mean over all sequences and seeds is 0; NaN likewise
    """

    mean: float
    sequences: int
    seeds: int
    interval: tuple[float, float] | None
    p: float


def crossed_difference(differences: NDArray[np.float64]) -> CrossedDifference:
    """Estimate the mean of differences [S, K], of K seeds on S sequences, as both vary.

    Rows with a NaN are left out. The model has random effects of sequences, of seeds and a rest
    (two-way analysis of variance without replication). With mean squares A, B and R of the three,
    the mean's variance is (A + B - R) / (S K), and Satterthwaite's approximation (1946) gives its
    degrees of freedom. Where seeds differ less than the rest does, so that B < R, it is A / (S K).
    With one seed the interval says nothing about others.

    Sequences' means over seeds are also tested as `trainer.evaluate.intervals` does, which assumes
    no normal distribution, and the result is the more careful of both.
    """
    table = differences[np.isfinite(differences).all(axis=1)]
    sequences, seeds = table.shape
    mean = float(table.mean()) if table.size else math.nan
    if sequences < MIN_GROUPS:
        return CrossedDifference(mean, sequences, seeds, None, math.nan)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    of_rows = float(seeds * rows.var(ddof=1))
    variance, freedom = of_rows, float(sequences - 1)
    if seeds > 1:
        rest_freedom = (sequences - 1) * (seeds - 1)
        rest = float(((table - rows[:, None] - columns + mean) ** 2).sum()) / rest_freedom
        of_columns = float(sequences * columns.var(ddof=1))
        if of_columns > rest:
            variance = of_rows + of_columns - rest
            parts = (
                of_rows**2 / (sequences - 1) + of_columns**2 / (seeds - 1) + rest**2 / rest_freedom
            )
            freedom = variance**2 / parts
    error = math.sqrt(variance / table.size)
    reach = float(student_t.ppf(0.975, freedom)) * error
    p = 2 * float(student_t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    of_rows_alone = compare_means(rows[None], np.ones(sequences))
    return CrossedDifference(
        mean=mean,
        sequences=sequences,
        seeds=seeds,
        interval=(
            min(mean - reach, float(of_rows_alone.low[0])),
            max(mean + reach, float(of_rows_alone.high[0])),
        ),
        p=max(p, float(of_rows_alone.p[0])),
    )
