"""How sure a difference is: paired bootstrap over what the figures are taken on (clips, or pairs of images).

Items that are not independent, such as clips of one video, are drawn together (the cluster bootstrap: Field & Welsh, Bootstrapping
clustered data, JRSS B 2007).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEAST = 6
"""Groups that an interval takes: signs of fewer agree by chance more often than once in twenty, which no resampling sees."""

Better = Literal["higher", "lower", ""]
"""Which way a figure improves; "" for one that is no merit by itself."""


@dataclass(frozen=True)
class Difference:
    """A model's mean figure less the base's, over the `count` items that both have, and its 95 % interval.

    The items are of so many `groups`, which are independent; for fewer than LEAST the interval is None. `verdict` says in words
    what follows from it.
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
        """All of it, with the gain."""
        return asdict(self) | {"gain": self.gain}


def difference(
    base: Sequence[float] | NDArray[np.float64],
    model: Sequence[float] | NDArray[np.float64],
    better: Better,
    groups: Sequence[Hashable] | None = None,
) -> Difference:
    """Compares two lists of figures of the same items: 95 % percentile bootstrap of the mean difference, with a fixed seed.

    `groups` says of each item which group it is in; without it each is one by itself. An item without a figure (NaN) in either list
    does not count.
    """
    pairs = np.array([base, model], dtype=np.float64).T
    known = [bool(row.all()) for row in np.isfinite(pairs)]
    kept = list(compress(range(len(pairs)) if groups is None else groups, known))
    if not kept:
        return Difference(float("nan"), float("nan"), 0, 0, None, "too few to tell")
    first, second = (float(mean) for mean in pairs[known].mean(axis=0))
    numbers = {group: number for number, group in enumerate(dict.fromkeys(kept))}
    if len(numbers) < LEAST:
        return Difference(first, second, len(kept), len(numbers), None, "too few to tell")
    low, high = interval(pairs[known, 1] - pairs[known, 0], [numbers[group] for group in kept])
    if low <= 0 <= high:
        return Difference(
            first, second, len(kept), len(numbers), (low, high), "not distinguishable from 0"
        )
    way: Literal["higher", "lower"] = "higher" if low > 0 else "lower"
    verdict: Literal["better", "worse", "higher", "lower"] = (
        way if not better else "better" if way == better else "worse"
    )
    return Difference(first, second, len(kept), len(numbers), (low, high), verdict)


def interval(values: NDArray[np.float64], groups: Sequence[int]) -> tuple[float, float]:
    """95 % of the means of resampled values [n] lie in it. Value i is of group `groups[i]`, from 0 on; whole groups are drawn."""
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    random = np.random.default_rng(0)
    means = []
    for _ in range(10):  # in parts, so that thousands of groups do not need gigabytes
        drawn = random.integers(len(sums), size=(RESAMPLES // 10, len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
