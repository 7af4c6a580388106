"""How sure a difference is: paired bootstrap over what the figures are taken on (clips, or pairs of images)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEAST = 6
"""Items that an interval takes: the signs of fewer agree by chance more often than once in twenty, which no resampling sees."""

Better = Literal["higher", "lower", ""]
"""Which way a figure improves; "" for one that is no merit by itself."""


@dataclass(frozen=True)
class Difference:
    """A model's mean figure less the base's, over the `count` items that both have, and its 95 % interval.

    The interval is None for fewer than LEAST items. `verdict` says in words what follows from it.
    """

    base: float
    model: float
    count: int
    interval: tuple[float, float] | None
    verdict: Literal["better", "worse", "higher", "lower", "not distinguishable from 0", "too few to tell"]

    @property
    def gain(self) -> float:
        """Model less base."""
        return self.model - self.base


def difference(
    base: Sequence[float] | NDArray[np.float64], model: Sequence[float] | NDArray[np.float64], better: Better
) -> Difference:
    """Compares two lists of figures of the same items: 95 % percentile bootstrap of the mean difference, with a fixed seed.

    An item without a figure (NaN) in either does not count.
    """
    pairs = np.array([base, model], dtype=np.float64).T
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if not len(pairs):
        return Difference(float("nan"), float("nan"), 0, None, "too few to tell")
    first, second = (float(mean) for mean in pairs.mean(axis=0))
    if len(pairs) < LEAST:
        return Difference(first, second, len(pairs), None, "too few to tell")
    low, high = interval(pairs[:, 1] - pairs[:, 0])
    if low <= 0 <= high:
        return Difference(first, second, len(pairs), (low, high), "not distinguishable from 0")
    way: Literal["higher", "lower"] = "higher" if low > 0 else "lower"
    verdict: Literal["better", "worse", "higher", "lower"] = way if not better else "better" if way == better else "worse"
    return Difference(first, second, len(pairs), (low, high), verdict)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the means of resampled values [n] lie in it."""
    random = np.random.default_rng(0)
    # In parts, so that thousands of values do not need gigabytes.
    parts = [values[random.integers(len(values), size=(RESAMPLES // 10, len(values)))].mean(axis=1) for _ in range(10)]
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return float(low), float(high)
