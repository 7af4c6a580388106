"""Paired comparisons: 95 % intervals, p-values, and Holm's correction for several metrics.

The mean of paired differences is tested over groups of items (a video's clips) that are independent
of each other. Two tests are made, and the result is the more careful of both: the larger p-value,
and the interval that covers both intervals.

- The sign-flip test: without a difference, every group's sum might as well have the other sign.
  Exact for symmetric differences, also heavy-tailed ones. Its interval, by inversion, lies between
  quantiles of the means over random subsets of the groups (Hartigan, Using subsample values as
  typical values, JASA 1969).
- The bootstrap-t: the studentised mean of resampled groups (Hall, The Bootstrap and Edgeworth
  Expansion, 1992, 3.2). Skewed differences are its strength.

`python -m benchmarks.intervals` simulates how often they find a difference where there is none.

Legend of shapes: R comparisons, G groups, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 3999
"""Subsets and resamples drawn. With the observed values they are 4,000, so that one part in
`_TAIL` of them is a whole number."""
LEVEL = 0.05
"""A difference with a p-value above this is not distinguishable from 0."""
_TAIL = 40  # one part in 40 on each side leaves the central 95 %
_ENUMERATED = 12  # groups up to which all subsets are taken; there are 2^12
_AT_ONCE = 50  # comparisons whose resamples fit a core's cache
_BLOCK = 2_000_000  # weights converted to float64 at once
_LEAST_ERROR = 0.1
"""Least standard error of a resample, in that of the data. A resample of equal values has none,
and would make intervals infinite."""
MIN_GROUPS = 6
"""Fewest groups that get an interval.

The signs of fewer all agree by chance more often than one time in twenty (2 / 2^5 = 0.06).
"""

Better = Literal["higher", "lower", ""]
"""Which way a metric improves; "" for one that is neither good nor bad by itself."""
Verdict = Literal[
    "better", "worse", "higher", "lower", "not distinguishable from 0", "too few to tell"
]


@dataclass(frozen=True)
class Difference:
    """A model's mean less the base's, over the items that both have, with its 95 % interval.

    base, model: the two means
    count:       number of items
    groups:      number of independent groups that the items are in
    interval:    None for fewer than MIN_GROUPS groups
    verdict:     what follows from `p_holm`, or from `p` where there is no correction, in words
    p:           two-sided p-value of this metric alone; None where there is no interval
    p_holm:      p-value corrected for the metrics it is shown with; None before `corrected`
    """

    base: float
    model: float
    count: int
    groups: int
    interval: tuple[float, float] | None
    verdict: Verdict
    p: float | None = None
    p_holm: float | None = None

    @property
    def gain(self) -> float:
        """Model less base."""
        return self.model - self.base

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the gain."""
        return asdict(self) | {"gain": self.gain}


def difference(
    base: Sequence[float] | Floats,
    model: Sequence[float] | Floats,
    better: Better,
    groups: Sequence[Hashable] | None = None,
) -> Difference:
    """Compare the values of two models on the same items; always with the same resamples.

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
    members = [numbers[label] for label in labels]
    sums = np.bincount(members, weights=gains)
    found = compare_means(sums[None].astype(np.float64), np.bincount(members))
    low, high, p = float(found.low[0]), float(found.high[0]), float(found.p[0])
    verdict = _verdict(p, model_mean - base_mean, better)
    return Difference(base_mean, model_mean, count, independent, (low, high), verdict, p)


def mean_interval(
    values: Sequence[float] | Floats, groups: Sequence[Hashable] | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of values, NaN left out; None for too few groups."""
    return difference(np.zeros(len(values)), values, "", groups).interval


def corrected(
    differences: Mapping[str, Difference], better: Mapping[str, Better]
) -> dict[str, Difference]:
    """Correct the p-values of metrics that are shown together, and base the verdicts on them.

    Holm's method: the chance of one verdict or more without any difference is at most LEVEL,
    however the metrics depend on each other.

    better: which way each metric improves
    """
    tested = {name: d.p for name, d in differences.items() if d.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        name: replace(
            d, p_holm=adjusted[name], verdict=_verdict(adjusted[name], d.gain, better[name])
        )
        if name in adjusted
        else d
        for name, d in differences.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, A simple sequentially rejective test, 1979)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _verdict(p: float, gain: float, better: Better) -> Verdict:
    """Put a p-value and a direction into words."""
    if p > LEVEL:
        return "not distinguishable from 0"
    direction: Literal["higher", "lower"] = "higher" if gain > 0 else "lower"
    if not better:
        return direction
    return "better" if direction == better else "worse"


@dataclass(frozen=True, eq=False)
class Estimates:
    """Bounds of 95 % intervals and two-sided p-values of R comparisons: [R] each.

    An interval leaves out 0 if and only if its p-value is at most LEVEL.
    """

    low: Floats
    high: Floats
    p: Floats


def compare_means(sums: Floats, sizes: NDArray[Any]) -> Estimates:
    """Test whether means over items are 0, in R comparisons over the same groups.

    sums:  [R, G], the sum of the items' differences in each group
    sizes: [G], the number of items in each group
    """
    low, high, p = np.empty((3, len(sums)))
    for start in range(0, len(sums), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        flipped, resampled = _sign_flips(sums[part], sizes), _bootstrap_t(sums[part], sizes)
        np.minimum(flipped.low, resampled.low, out=low[part])
        np.maximum(flipped.high, resampled.high, out=high[part])
        np.maximum(flipped.p, resampled.p, out=p[part])
    return Estimates(low, high, p)


def _sign_flips(sums: Floats, sizes: NDArray[Any]) -> Estimates:
    """Test by flipping the signs of groups.

    With the signs of the groups of a subset flipped, the total of the differences from a mean m is
    at least as large as without if and only if the mean over the subset is at most m. So the
    interval ends at quantiles of the subsets' means. The empty subset, nothing flipped, counts as
    being on both sides of every m.
    """
    subsets = _subsets(sums.shape[1])
    means = _weighted_sums(subsets, sums) / _weighted_sums(subsets, sizes[None])
    # What is 0 but for rounding is on both sides of 0.
    means[np.abs(means) <= 1e-12 * np.abs(sums / sizes).max(axis=1, keepdims=True)] = 0.0
    rank = (means.shape[1] + 1) // _TAIL
    ends = np.partition(means, [rank - 1, means.shape[1] - rank], axis=1)
    return Estimates(
        low=ends[:, rank - 1], high=ends[:, means.shape[1] - rank], p=_two_sided(means, 0.0)
    )


def _bootstrap_t(sums: Floats, sizes: NDArray[Any]) -> Estimates:
    """Test by the distribution of the studentised mean in resamples of groups.

    The standard error is that of a ratio of sums, so that groups of any size are allowed. Where all
    groups have the same mean there is none, and the interval is that mean.
    """
    means = sums.sum(axis=1, keepdims=True) / sizes.sum()
    rest = sums - means * sizes
    error = np.sqrt((rest**2).sum(axis=1, keepdims=True)) / sizes.sum()
    agreed = error[:, 0] <= 1e-12 * np.abs(sums / sizes).max(axis=1)
    error[agreed] = 1.0
    counts = _resamples(sums.shape[1])
    items, square_sizes = _weighted_sums(counts, np.stack([sizes, np.square(sizes)]))
    factors = np.concatenate([rest, rest**2, rest * sizes])
    shift, squares, products = np.split(_weighted_sums(counts, factors), 3)
    shift /= items
    # The sum over resampled groups of (rest - shift * size)^2.
    squares -= 2 * shift * products
    squares += shift**2 * square_sizes
    errors = np.maximum(np.sqrt(np.maximum(squares, 0)) / items, _LEAST_ERROR * error)
    studentised = np.divide(shift, errors, out=shift)
    rank = (RESAMPLES + 1) // _TAIL
    ends = np.partition(studentised, [rank - 1, RESAMPLES - rank], axis=1)
    low, high = means - ends[:, [RESAMPLES - rank]] * error, means - ends[:, [rank - 1]] * error
    p = _two_sided(studentised, means / error)
    return Estimates(
        low=np.where(agreed, means[:, 0], low[:, 0]),
        high=np.where(agreed, means[:, 0], high[:, 0]),
        p=np.where(agreed, 0.0, p),
    )


def _two_sided(values: Floats, observed: Floats | float) -> Floats:
    """Return twice the smaller part of values [R, B] on one side of `observed`, that included."""
    below, above = ((values <= observed).sum(axis=1), (values >= observed).sum(axis=1))
    return np.minimum(1.0, 2 * (1 + np.minimum(below, above)) / (1 + values.shape[1]))


def _weighted_sums(weights: NDArray[np.uint8], values: NDArray[Any]) -> Floats:
    """Return sums of values [R, G] with weights [G, B]: [R, B].

    Not by BLAS, whose threads wait for each other on busy machines and round as their number says.
    """
    rows = np.asarray(values, np.float64)
    blocks = np.array_split(weights, -(-weights.size // _BLOCK), axis=1)
    sums = [np.einsum("rg,gb->rb", rows, block.astype(np.float64)) for block in blocks]
    return np.concatenate(sums, axis=1)


@lru_cache(maxsize=8)
def _subsets(groups: int) -> NDArray[np.uint8]:
    """Return subsets of the groups, without the empty one: 0 or 1 [G, B]. All if they are few."""
    if groups <= _ENUMERATED:
        numbers = np.arange(1, 2**groups)
        return ((numbers >> np.arange(groups)[:, None]) & 1).astype(np.uint8)
    drawn = np.random.default_rng(0).integers(0, 2, (groups, RESAMPLES), np.uint8)
    return drawn[:, drawn.any(axis=0)]


@lru_cache(maxsize=8)
def _resamples(groups: int) -> NDArray[np.uint8]:
    """Return how often each group is in a resample of as many groups: [G, B]."""
    random = np.random.default_rng(0)
    counts = np.empty((RESAMPLES, groups), np.uint8)
    for row in counts:
        row[:] = np.bincount(random.integers(groups, size=groups), minlength=groups)
    return np.ascontiguousarray(counts.T)
