"""Intervals over crossed seeds and sequences are those of the formulas, and hold what they say."""

from __future__ import annotations

import numpy as np
from scipy.stats import t as student_t

from benchmarks.ablation.crossed import crossed_difference


def test_mean_squares_and_degrees_of_freedom_are_those_worked_out_by_hand() -> None:
    """Rows differ by 1 step, columns by 10, and nothing else: A = 2 * 3.5, B = 6 * 50, R = 0.

    The variance of the mean is (7 + 300) / 12, with 307^2 / (7^2 / 5 + 300^2 / 1) degrees of
    freedom.
    """
    table = np.arange(6.0)[:, None] + np.array([0.0, 10.0]) + 1
    found = crossed_difference(table)
    assert found.mean == 8.5
    assert (found.sequences, found.seeds) == (6, 2)
    error, freedom = (307 / 12) ** 0.5, 307**2 / (49 / 5 + 90_000)
    reach = student_t.ppf(0.975, freedom) * error
    assert found.interval is not None
    assert np.allclose(found.interval, (8.5 - reach, 8.5 + reach))
    assert np.isclose(found.p, 2 * student_t.sf(8.5 / error, freedom))


def test_what_is_left_of_sequences_and_seeds_is_subtracted_once() -> None:
    """As before, and ±1 that averages out over rows and over columns: R = 12 / 5."""
    rest = np.tile([1.0, -1.0], 3)[:, None] * np.array([1.0, -1.0])
    found = crossed_difference(np.arange(6.0)[:, None] + np.array([0.0, 10.0]) + 1 + rest)
    variance = 7 + 300 - 2.4
    error, freedom = (variance / 12) ** 0.5, variance**2 / (49 / 5 + 90_000 + 2.4**2 / 5)
    reach = student_t.ppf(0.975, freedom) * error
    assert found.interval is not None
    assert np.allclose(found.interval, (8.5 - reach, 8.5 + reach), rtol=1e-9)
    assert np.isclose(found.p, 2 * student_t.sf(8.5 / error, freedom), rtol=1e-9)


def test_seeds_that_do_not_differ_leave_an_interval_over_sequences() -> None:
    """Of eight values with mean 1, half 0 and half 2: the t-test or the tests that assume less."""
    values = np.tile([0.0, 2.0], 4)
    once, twice = (crossed_difference(np.repeat(values[:, None], k, axis=1)) for k in (1, 2))
    assert once.interval == twice.interval
    assert once.interval is not None
    reach = student_t.ppf(0.975, 7) * np.std(values, ddof=1) / 8**0.5
    assert once.interval[0] <= 1 - reach
    assert once.interval[1] >= 1 + reach


def test_sequences_without_points_are_left_out_and_few_have_no_interval() -> None:
    table = np.arange(12.0).reshape(6, 2)
    table[2, 1] = np.nan
    found = crossed_difference(table)
    assert found.mean == np.delete(table, 2, axis=0).mean()
    assert (found.sequences, found.interval) == (5, None)
    assert np.isnan(found.p)


def test_false_positives_are_as_rare_as_promised_also_where_seeds_differ() -> None:
    random = np.random.default_rng(0)
    for seed_effect in (0.0, 0.5, 2.0):
        found = 0
        for _ in range(100):
            sequences = random.exponential(size=(30, 1)) - 1
            seeds = seed_effect * random.normal(size=(1, 3))
            rest = random.normal(size=(30, 3))
            found += crossed_difference(sequences + seeds + rest).p <= 0.05
        assert found <= 10  # at a rate of 5 % more are found one time in 85
