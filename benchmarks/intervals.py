"""How often comparisons find a difference where there is none: `python -m benchmarks.intervals`.

Simulates paired differences with mean 0 over independent groups and counts the 95 % intervals that
leave out 0: of the percentile bootstrap over groups, which evaluations used before, of Student's t,
and of `trainer.evaluate.intervals`. Then how much wider its intervals are than Student's, and how
often each finds a difference of 2.8 standard deviations of the mean. Nothing protects against
failures that are too rare to be in the sample: the last rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.intervals import compare_means

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

GROUPS = (6, 8, 20, 50)
STUDENT = {6: 2.571, 8: 2.365, 20: 2.093, 50: 2.010}
"""The quantile of 97.5 % of Student's t, by number of groups."""
_BATCH = 250  # comparisons at once: their resamples fit into memory
_PERCENTILE_RESAMPLES = 2000

DRAWS: dict[str, Draw] = {
    "normal": lambda random, shape: random.normal(size=shape),
    "heavy tails: Student's t, 3 degrees of freedom": lambda random, shape: random.standard_t(
        3, size=shape
    ),
    "heavy tails: Laplace": lambda random, shape: random.laplace(size=shape),
    "skewed: gamma, skewness 1.4": lambda random, shape: random.gamma(2, size=shape) - 2,
    "skewed: exponential, skewness 2": lambda random, shape: random.exponential(size=shape) - 1,
    "hits of 20 points, two models alike": lambda random, shape: (
        (random.binomial(20, 0.8, shape) - random.binomial(20, 0.8, shape)) / 20
    ),
    "very skewed: log-normal, skewness 6.2": lambda random, shape: (
        random.lognormal(size=shape) - math.exp(0.5)
    ),
    "rare failures: -0.9 in one of ten, otherwise +0.1": lambda random, shape: np.where(
        random.random(shape) < 0.1, -0.9, 0.1
    ),
}
"""Differences of groups of one item, with mean 0. What no comparison survives comes last."""


def uneven(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Draw sums of 1 to 5 items that share most of a skewed difference: sums and sizes."""
    sizes = 1.0 + np.arange(shape[1]) % 5
    shared = random.exponential(size=shape) - 1
    sums = sizes * shared + np.sqrt(sizes) * random.normal(0, 0.2, shape)
    return np.asarray(sums, np.float64), np.asarray(sizes, np.float64)


def excluded(low: Floats, high: Floats) -> float:
    """Return the percentage of intervals that leave out 0."""
    return 100 * float(((low > 0) | (high < 0)).mean())


def percentile_bootstrap(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return the intervals [R] of the means, as evaluations computed them before."""
    groups = len(sizes)
    random = np.random.default_rng(0)
    counts = random.multinomial(groups, [1 / groups] * groups, _PERCENTILE_RESAMPLES).T.astype(
        np.float64
    )
    means = sums @ counts / (sizes @ counts)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    return low, high


def student(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return Student's intervals [R] of the means; groups of several sizes as a ratio."""
    groups = len(sizes)
    means = sums.sum(axis=1) / sizes.sum()
    rest = sums - means[:, None] * sizes
    errors = np.sqrt((rest**2).sum(axis=1) * groups / (groups - 1)) / sizes.sum()
    half = STUDENT[groups] * errors
    return means - half, means + half


def row(name: str, sums: Floats, sizes: Floats) -> str:
    """Simulate one distribution and number of groups; return its row of the table."""
    batches = np.array_split(sums, -(-len(sums) // _BATCH))
    before = np.hstack([percentile_bootstrap(batch, sizes) for batch in batches])
    t = np.hstack([student(batch, sizes) for batch in batches])
    found = compare_means(sums, sizes)
    after = np.array([found.low, found.high])
    wider = float(np.median(after[1] - after[0]) / np.median(t[1] - t[0]))
    # An interval leaves out 0 after a shift of all values if and only if it leaves out -shift.
    spread = sums.sum(axis=1).std() / sizes.sum()
    shift = 2.8 * spread
    power = [excluded(low + shift, high + shift) for low, high in (t, after)]
    cells = [f"{excluded(*bounds):.1f}" for bounds in (before, t, after)]
    cells += [f"{wider:.2f}", *(f"{part:.0f}" for part in power)]
    return f"| {name} | {len(sizes)} | {' | '.join(cells)} |"


def rows(samples: int) -> Iterator[str]:
    """Yield the rows of the table."""
    for name, draw in DRAWS.items():
        for groups in GROUPS:
            sums = draw(np.random.default_rng(groups), (samples, groups))
            yield row(name, sums, np.ones(groups))
        if name.startswith("skewed: exponential"):
            for groups in GROUPS:
                sums, sizes = uneven(np.random.default_rng(groups), (samples, groups))
                yield row("the same, in groups of 1 to 5 items", sums, sizes)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervals")
    parser.add_argument("--samples", type=int, default=10_000, help="comparisons per row")
    samples = parser.parse_args().samples
    heads = ["differences", "groups", "percentile bootstrap (before), %", "Student's t, %"]
    heads += ["now, %", "width, in Student's", "found: Student's t, %", "found: now, %"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for line in rows(samples):
        print(line, flush=True)


if __name__ == "__main__":
    main()
