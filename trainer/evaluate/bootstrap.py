"""Intervals of differences by a paired bootstrap over items (clips, image pairs, photographs).

Items that are not independent, such as clips of one video, are drawn together (the cluster
bootstrap: Field & Welsh, Bootstrapping clustered data, JRSS B 2007).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_PARTS = 10  # resamples are drawn in parts: thousands of groups at once would need gigabytes
MIN_GROUPS = 6
"""Fewest groups that get an interval.

The signs of fewer all agree by chance more often than one time in twenty (2 / 2^5 = 0.06), and
resampling cannot see that.
"""

Better = Literal["higher", "lower", ""]
"""Which way a metric improves; "" for one that is neither good nor bad by itself."""


@dataclass(frozen=True)
class Difference:
    """A model's mean less the base's, over the items that both have, with its 95 % interval.

    base, model: the two means
    count:       number of items
    groups:      number of independent groups that the items are in
    interval:    None for fewer than MIN_GROUPS groups
    verdict:     what follows from the interval, in words
    """

    base: float
    model: float
    count: int
    groups: int
    interval: tuple[float, float] | None
    verdict: Literal[
        "better", "worse", "higher", "lower", "not distinguishable from 0", "too few to tell"
    ]

    @property
    def gain(self) -> float:
        """Model less base."""
        return self.model - self.base

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the gain."""
        return asdict(self) | {"gain": self.gain}


def difference(
    base: Sequence[float] | NDArray[np.float64],
    model: Sequence[float] | NDArray[np.float64],
    better: Better,
    groups: Sequence[Hashable] | None = None,
) -> Difference:
    """Compare the values of two models on the same items; 95 % percentile bootstrap, fixed seed.

    groups: the group of each item; None if every item is independent

    Items without a value (NaN) in either list are left out.
    """
    pairs = np.array([base, model], dtype=np.float64).T
    valid = [bool(row.all()) for row in np.isfinite(pairs)]
    labels = list(compress(range(len(pairs)) if groups is None else groups, valid))
    if not labels:
        return Difference(math.nan, math.nan, 0, 0, None, "too few to tell")
    base_mean, model_mean = (float(mean) for mean in pairs[valid].mean(axis=0))
    # Groups are numbered in the order in which they appear.
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    count, independent = len(labels), len(numbers)
    if independent < MIN_GROUPS:
        return Difference(base_mean, model_mean, count, independent, None, "too few to tell")
    gains = pairs[valid, 1] - pairs[valid, 0]
    low, high = interval(gains, [numbers[label] for label in labels])
    verdict = _verdict(low, high, better)
    return Difference(base_mean, model_mean, count, independent, (low, high), verdict)


def _verdict(
    low: float, high: float, better: Better
) -> Literal["better", "worse", "higher", "lower", "not distinguishable from 0"]:
    """Put an interval of a difference into words. 0 on its border is inside."""
    direction: Literal["higher", "lower"]
    if low > 0:
        direction = "higher"
    elif high < 0:
        direction = "lower"
    else:
        return "not distinguishable from 0"
    if not better:
        return direction
    return "better" if direction == better else "worse"


def interval(values: NDArray[np.float64], groups: Sequence[int]) -> tuple[float, float]:
    """Return the central 95 % of the means of `values` [n], resampled by whole groups.

    groups: group number of each value, from 0 without gaps
    """
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    random = np.random.default_rng(0)
    means = []
    for _ in range(_PARTS):
        drawn = random.integers(len(sums), size=(RESAMPLES // _PARTS, len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
