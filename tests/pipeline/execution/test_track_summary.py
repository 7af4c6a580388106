"""The figures about tracks in the clips table, on tracks small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.execution.track_summary import motion, summarise_tracks, visible_fraction
from shards.clip import Tracks

WIDTH, HEIGHT = 30, 40
"""Pixels; the diagonal is 50."""


def two_anchors() -> Tracks:
    """Three points over three frames from anchors 0 and 2; each moves along (3, 4), 5 px per step.

    Steps from the anchor position, by frame, invisible ones in parentheses:
    anchor 0: 0 1 2 -> 10 px,  0 (10) 1 -> 5 px,  0 0 0 -> 0 px
    anchor 2: 3 0 0 -> 15 px,  2 4 0 -> 20 px,    8 1 0 -> 40 px
    """
    steps = np.array([[[0, 0, 0], [1, 10, 0], [2, 1, 0]], [[3, 2, 8], [0, 4, 1], [0, 0, 0]]])
    positions = np.array([7, 9]) + steps[..., None] * np.array([3, 4])
    visibility = np.full((2, 3, 3), 128)  # the lowest probability that counts as visible
    visibility[0, 1, 1] = 127
    return Tracks(
        np.array([0, 2], np.int32),
        positions.astype(np.float32),
        visibility.astype(np.uint8),
        np.full((2, 3, 3), 255, np.uint8),
    )


def test_motion_is_the_median_of_the_largest_visible_distances() -> None:
    # The largest distances are 0, 5, 10, 15, 20 and 40 px: the median is 12.5 px, a quarter of 50.
    assert motion(two_anchors(), WIDTH, HEIGHT) == pytest.approx(0.25)


def test_points_that_are_never_visible_do_not_move() -> None:
    hidden = two_anchors()
    hidden.visibility[:] = 127
    assert motion(hidden, WIDTH, HEIGHT) == 0.0


def test_the_visible_fraction_is_a_mean_probability() -> None:
    tracks = two_anchors()
    tracks.visibility[:] = 255
    assert visible_fraction(tracks) == 1.0
    tracks.visibility[0] = 51  # 0.2 for one anchor and 1.0 for the other
    assert visible_fraction(tracks) == pytest.approx(0.6)


def test_frames_that_were_not_tracked_do_not_lower_the_visible_fraction() -> None:
    """Forward, three frames are tracked from anchor 0 and one from anchor 2."""
    tracks = two_anchors()
    tracks.visibility[:] = 0
    tracks.visibility[0, :2] = tracks.visibility[1, 2] = 255
    assert visible_fraction(tracks, "forward") == pytest.approx(3 / 4)
    assert visible_fraction(tracks) == pytest.approx(3 / 6)


def test_a_summary_names_the_anchors_and_counts_points_per_anchor() -> None:
    summary = summarise_tracks(two_anchors(), WIDTH, HEIGHT)
    assert (summary.anchors, summary.points) == ((0, 2), 3)
    assert summary.motion == pytest.approx(0.25)
    assert summary.visible_fraction == pytest.approx((17 * 128 + 127) / 18 / 255)
