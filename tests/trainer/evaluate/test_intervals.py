"""Differences come with intervals that mean something, and with words that do not say more."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluate.intervals import Better, compare_means, corrected, difference, holm


def test_differences_and_what_they_say() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0, 1, 40)
    spread = random.normal(0, 0.02, 40)
    more, less = (
        difference(base, base + 0.1 + spread, "higher"),
        difference(base, base - 0.1 + spread, "higher"),
    )
    assert (more.verdict, less.verdict) == ("better", "worse")
    assert more.gain == pytest.approx(0.1, abs=0.02)
    assert more.interval is not None
    assert more.interval[0] < more.gain < more.interval[1]
    assert more.interval[1] - more.interval[0] == pytest.approx(
        2 * 1.96 * 0.02 / math.sqrt(40), rel=0.3
    )  # paired: base cancels
    assert difference(base, base + 0.1 + spread, "lower").verdict == "worse"
    assert difference(base, base + 0.1 + spread, "").verdict == "higher"
    assert difference(base, base, "higher").verdict == "not distinguishable from 0"
    assert (
        difference(base, base + spread - spread.mean(), "higher").verdict
        == "not distinguishable from 0"
    )
    gappy = difference([0.1, math.nan, 0.2, *base], [0.3, 0.5, math.nan, *base], "higher")
    assert gappy.count == 41
    assert gappy.gain == pytest.approx(0.2 / 41)


def test_nothing_is_said_of_a_handful() -> None:
    for count in range(6):
        few = difference([0.1] * count, [0.9] * count, "higher")
        assert (few.count, few.groups, few.interval) == (count, count, None)
        assert few.verdict == "too few to tell"
    assert difference([0.1] * 6, [0.9] * 6, "higher").verdict == "better"
    none = difference([0.1, math.nan], [math.nan, 0.9], "higher")
    assert math.isnan(none.base)
    assert math.isnan(none.model)


def test_no_difference_is_found_in_more_than_6_of_100_cases() -> None:
    """At 6, 8, 20 and 50 groups, also with skewed and heavy-tailed differences."""
    draws: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
        "normal": lambda random, shape: random.normal(size=shape),
        "heavy tails": lambda random, shape: random.standard_t(3, size=shape),
        "skewed": lambda random, shape: random.exponential(size=shape) - 1,
    }
    found = {}
    for name, draw in draws.items():
        for groups in (6, 8, 20, 50):
            sums = draw(np.random.default_rng(3), (600, groups))
            estimates = compare_means(sums, np.ones(groups))
            left_out = (estimates.low > 0) | (estimates.high < 0)
            assert (left_out == (estimates.p <= 0.05)).all(), (name, groups)
            found[name, groups] = 100 * left_out.mean()
    assert max(found.values()) <= 6, found
    assert min(found.values()) > 0.5, found  # careful, but not blind


def test_of_groups_that_share_what_they_gain_no_more_is_found() -> None:
    """Videos of one to five clips; what a clip gains is its video's."""
    sizes = np.tile([1, 2, 3, 4, 5], 4)
    gains = np.random.default_rng(4).normal(size=(600, 20))
    estimates = compare_means(gains * sizes, sizes)
    assert (estimates.p <= 0.05).mean() <= 0.06
    # Every clip taken as independent: the same means, and far too narrow intervals.
    alone = compare_means(np.repeat(gains, sizes, axis=1), np.ones(sizes.sum()))
    assert (alone.p <= 0.05).mean() > 0.2


def every_outcome(sums: list[float], sizes: list[int]) -> tuple[float, float, float]:
    """The interval and p-value of 6 groups, by going through all signs and all resamples."""
    total, items = sum(sums), sum(sizes)
    subsets = [s for n in range(1, 7) for s in combinations(range(6), n)]
    means = sorted(sum(sums[i] for i in s) / sum(sizes[i] for i in s) for s in subsets)
    flips = [sum(v * e for v, e in zip(sums, s, strict=True)) for s in product((1, -1), repeat=6)]
    p = sum(abs(flipped) >= abs(total) - 1e-12 for flipped in flips) / len(flips)
    rest = [v - total / items * n for v, n in zip(sums, sizes, strict=True)]
    error = math.sqrt(sum(e * e for e in rest)) / items
    studentised = []
    for drawn in product(range(6), repeat=6):
        size = sum(sizes[i] for i in drawn)
        shift = sum(rest[i] for i in drawn) / size
        spread = math.sqrt(sum((rest[i] - shift * sizes[i]) ** 2 for i in drawn)) / size
        studentised.append(shift / max(spread, error / 10))
    low, high = (float(end) for end in np.quantile(studentised, [0.025, 0.975]))
    observed = total / items / error
    below = sum(value <= observed for value in studentised) / len(studentised)
    return (
        min(means[0], total / items - high * error),
        max(means[-1], total / items - low * error),
        max(p, 2 * min(below, 1 - below)),
    )


def test_resamples_find_what_all_possible_ones_would() -> None:
    sums, sizes = [-0.2, 0.3, 0.9, 0.5, 1.2, -0.1], [1, 2, 3, 1, 4, 1]
    low, high, p = every_outcome(sums, sizes)
    found = compare_means(np.array([sums]), np.array(sizes))
    assert found.low[0] == pytest.approx(low, abs=0.07 * (high - low))
    assert found.high[0] == pytest.approx(high, abs=0.07 * (high - low))
    assert found.p[0] == pytest.approx(p, abs=0.02)


def test_six_groups_of_one_sign_have_the_least_possible_p_value() -> None:
    """2 of 64 patterns of signs are as extreme; the sign-flip interval reaches from end to end."""
    gains = [0.1, 0.3, 0.2, 0.5, 0.15, 0.4]
    found = difference([0.0] * 6, gains, "higher")
    assert found.p == 2 / 64
    assert found.interval is not None
    assert 0 < found.interval[0] <= 0.1
    assert found.interval[1] >= 0.5
    assert difference([0.0] * 6, [-0.001, *gains[1:]], "higher").p == 2 * 2 / 64
    assert difference([0.0] * 8, [0.1] * 8, "higher").p == 2 / 256
    assert difference([0.0] * 8, [0.1] * 8, "higher").interval == pytest.approx((0.1, 0.1))


def test_sums_that_cancel_are_no_difference() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floating point."""
    found = difference([0.0] * 7, [0.1, 0.2, -0.3, 0.0, 0.0, 0.0, 0.0], "higher")
    assert found.p == 1
    assert found.verdict == "not distinguishable from 0"


def test_results_are_the_same_every_time() -> None:
    gains = np.random.default_rng(1).normal(0.1, 1, 30)
    assert difference(0 * gains, gains, "higher") == difference(0 * gains, gains, "higher")


def test_metrics_that_are_shown_together_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []
    base = np.zeros(8)
    clear, once, few = (
        difference(base, np.full(8, 0.1), "higher"),
        difference(base, np.array([0.3, 0.2, 0.4, 0.25, 0.35, 0.3, 0.28, -0.01]), "higher"),
        difference(base[:5], np.full(5, 0.1), "higher"),
    )
    assert (clear.p, once.p) == (2 / 256, 4 / 256)
    better: dict[str, Better] = {"clear": "higher", "once": "lower", "few": "", "more": ""}
    found = corrected({"clear": clear, "once": once, "few": few}, better)
    assert (found["clear"].p_holm, found["once"].p_holm) == (4 / 256, 4 / 256)
    assert (found["clear"].verdict, found["once"].verdict) == ("better", "worse")
    assert found["few"] == few  # not tested, so not counted
    many = corrected({str(i): clear for i in range(7)}, {str(i): "higher" for i in range(7)})
    assert {d.verdict for d in many.values()} == {"not distinguishable from 0"}
    assert {(d.p, d.p_holm, d.interval) for d in many.values()} == {
        (2 / 256, 14 / 256, clear.interval)
    }


def test_more_of_the_same_video_does_not_make_a_difference_surer() -> None:
    random = np.random.default_rng(2)
    base, gains, videos = (
        random.uniform(0, 1, 12),
        random.normal(0.1, 0.2, 12),
        [f"video {i}" for i in range(12)],
    )
    once = difference(base, base + gains, "higher", videos)
    often = difference(
        np.repeat(base, 5),
        np.repeat(base + gains, 5),
        "higher",
        [video for video in videos for _ in range(5)],
    )
    assert once == difference(
        base, base + gains, "higher"
    )  # a clip of each: as if nothing were said of videos
    assert once.interval is not None
    assert often.interval == pytest.approx(once.interval)
    assert (often.count, often.groups, often.verdict) == (60, 12, once.verdict)
    assert (
        difference([0.1] * 60, [0.9] * 60, "higher", [i % 5 for i in range(60)]).verdict
        == "too few to tell"
    )


def test_means_are_over_items_and_not_over_groups() -> None:
    found = difference([0, 0, 0, 0], [1, 1, 1, 0], "higher", ["a", "a", "a", "b"])
    assert (found.base, found.model, found.count, found.groups) == (0, 0.75, 4, 2)
    labels = [i // 2 for i in range(12)]  # six videos of two clips
    gains = [0.0, 0.2] * 5 + [1.0, 1.0]
    found = difference([0.0] * 12, gains, "higher", labels)
    assert found.p == 2 / 64
    assert found.interval is not None
    assert 0 < found.interval[0] <= 0.1  # the mean of a video, not a clip's
    assert found.interval[1] >= 1.0


def test_a_lower_error_is_better() -> None:
    """Which of the two values is whose, and which way is better, decide the verdict together."""
    lower = difference([0.75] * 8, [0.25] * 8, "lower")
    assert lower.to_json() == {
        "base": 0.75,
        "model": 0.25,
        "count": 8,
        "groups": 8,
        "interval": (-0.5, -0.5),
        "verdict": "better",
        "p": 2 / 256,
        "p_holm": None,
        "gain": -0.5,
    }
    assert difference([0.75] * 8, [0.25] * 8, "higher").verdict == "worse"
    assert difference([0.75] * 8, [0.25] * 8, "").verdict == "lower"
