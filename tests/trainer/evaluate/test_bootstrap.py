"""Differences come with intervals that mean something, and with words that do not say more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.evaluate.bootstrap import difference, interval


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


def test_intervals_are_the_same_every_time_and_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0, 1, (100, 30))
    alone = range(30)
    held = [low < 0 < high for low, high in (interval(drawn, alone) for drawn in values)]
    assert 0.85 < np.mean(held) < 1
    assert interval(values[0], alone) == interval(values[0], alone)


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


def test_intervals_of_alike_items_hold_the_truth_as_often_as_they_say() -> None:
    """Videos of one to five clips; what a clip gains is mostly its video's."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(30), random.integers(1, 6, 30))
    values = random.normal(0, 1, (100, 30))[:, groups] + random.normal(0, 0.2, (100, len(groups)))
    held = [low < 0 < high for low, high in (interval(drawn, groups.tolist()) for drawn in values)]
    taken_alone = [
        low < 0 < high for low, high in (interval(drawn, range(len(groups))) for drawn in values)
    ]
    assert 0.85 < np.mean(held) < 1
    assert np.mean(taken_alone) < 0.8


def test_the_interval_is_the_middle_95_per_cent() -> None:
    """Half of 36 values are 1, so the number of ones in a resample is binomial.

    At most 11 of 36 have a probability of 1.4 %, at most 12 one of 3.3 %.
    """
    values = np.array([0.0, 1.0] * 18)
    assert interval(values, range(36)) == pytest.approx((12 / 36, 24 / 36))
    assert interval(np.ones(7), range(7)) == (1, 1)


def test_means_are_over_items_and_not_over_groups() -> None:
    """One group of two groups has three of the four items; both are drawn half of the time."""
    low, high = interval(np.array([1.0, 1.0, 1.0, 0.0]), [0, 0, 0, 1])
    assert (low, high) == (0, 1)
    found = difference([0, 0, 0, 0], [1, 1, 1, 0], "higher", ["a", "a", "a", "b"])
    assert (found.base, found.model, found.count, found.groups) == (0, 0.75, 4, 2)
    sizes = [1] * 20 + [3] * 20
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    values = np.array([float(group >= 20) for group in groups])
    low, high = interval(values, groups)  # 3 k / (40 + 2 k) for k = 14 and 26 of the large groups
    assert (low, high) == pytest.approx((3 * 14 / 68, 3 * 26 / 92))


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
        "gain": -0.5,
    }
    assert difference([0.75] * 8, [0.25] * 8, "higher").verdict == "worse"
    assert difference([0.75] * 8, [0.25] * 8, "").verdict == "lower"
