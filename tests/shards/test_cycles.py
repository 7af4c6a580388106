"""Errors of following points from one anchor to another and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards.clip import Tracks
from shards.cycles import cycle_errors
from tests.helpers.clips import grey_clip


def judged(tracks: Tracks) -> NDArray[np.float32]:
    """Return the errors that are known, by anchor, other anchor and point."""
    errors = cycle_errors(tracks)
    return errors[np.isfinite(errors)]


def test_points_that_come_home_have_no_error_and_others_have_theirs() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    errors = judged(tracks)
    assert len(errors) > 10
    assert errors.max() < 1e-3
    strayed = tracks.positions.copy()
    strayed[1, 0] += (3.0, -4.0)  # what starts at frame 4 is at frame 0 where it does not belong
    back = judged(replace(tracks, positions=strayed))
    np.testing.assert_allclose(back[: len(back) // 2], 5.0, atol=1e-3)
    one = Tracks(
        tracks.anchors[:1], tracks.positions[:1], tracks.visibility[:1], tracks.confidence[:1]
    )
    assert len(judged(one)) == 0


def test_a_cycle_error_is_interpolated_between_the_four_tracks_around_a_point() -> None:
    """Two anchors of 2x2 points: the second grid moves each corner by another amount."""
    first = np.array([[10, 10], [30, 10], [10, 30], [30, 30]], np.float32)
    second = np.array([[0, 0], [40, 0], [0, 40], [40, 40]], np.float32)
    positions = np.empty((2, 2, 4, 2), np.float32)
    positions[0] = first  # followed from frame 0 to frame 1, it stands still
    positions[1, 1] = second
    positions[1, 0] = second + np.array([[4, 0], [8, 0], [0, 0], [0, 16]])
    visible = np.full((2, 2, 4), 255, np.uint8)
    tracks = Tracks(np.array([0, 1], np.int32), positions, visible, visible)
    # (10, 10) is a quarter of the cell away from its first corner: weights 9, 3, 3, 1 sixteenths
    dx = [(9 * 4 + 3 * 8) / 16, (3 * 4 + 9 * 8) / 16, (3 * 4 + 8) / 16, (4 + 3 * 8) / 16]
    dy = [16 / 16, 3 * 16 / 16, 3 * 16 / 16, 9 * 16 / 16]
    # of the second grid, no point lies within the cell of the first one
    np.testing.assert_allclose(judged(tracks), np.hypot(dx, dy), rtol=1e-6)
    visible[1, 0, 2] = 127  # one of the four tracks is hidden where the way back ends
    assert len(judged(tracks)) == 0
    visible[1, 0, 2] = 128
    visible[0, 1, :3] = 0  # three points are hidden where they turn
    np.testing.assert_allclose(judged(tracks), [np.hypot(dx[3], dy[3])], rtol=1e-6)


def test_a_way_back_needs_the_four_tracks_around_a_point() -> None:
    """Points in every cell, on the border and outside a grid of 3x3 that is not evenly spaced."""
    visible = np.full((2, 2, 9), 255, np.uint8)
    positions = np.empty((2, 2, 9, 2), np.float32)
    tracks = Tracks(np.array([0, 1], np.int32), positions, visible, visible)
    # far away, so that no point of the other grid comes back into this one
    start = np.array([(x, y) for y in (100, 101, 102) for x in (100, 101, 102)])
    positions[0, 0] = start
    positions[1, 1] = [(x, y) for y in (8, 16, 48) for x in (4, 44, 64)]
    back = np.array([[8, 16, 0], [0, 24, 40], [32, 0, 8]])
    positions[1, 0] = positions[1, 1] + np.stack([back.ravel(), back.T.ravel()], axis=-1)
    # where a point turns, its cell (row, column), and its displacement on the way back
    points = [
        ((24, 10), (0, 0), (12.0, 8.0)),  # 1/2 and 1/4 into the cell
        ((49, 12), (0, 1), (20.0, 13.0)),  # 1/4 and 1/2
        ((34, 40), (1, 0), (10.5, 28.0)),  # 3/4 and 3/4
        ((54, 24), (1, 1), (25.0, 15.0)),  # 1/2 and 1/4
        ((44, 16), (1, 1), (24.0, 24.0)),
        ((4, 8), (0, 0), (8.0, 8.0)),
    ]
    outside = [(64, 20), (20, 48), (3, 20)]  # the last column and row belong to no cell
    positions[0, 1] = [turn for turn, _, _ in points] + outside
    ends = np.array([np.add(turn, way) for turn, _, way in points])
    errors = np.linalg.norm(ends - start[: len(points)], axis=-1)
    np.testing.assert_allclose(judged(tracks), errors, rtol=1e-6)
    cells = np.array([cell for _, cell, _ in points])
    hidden = visible[1, 0].reshape(3, 3)
    for corner in np.ndindex(3, 3):
        hidden[corner] = 127
        known = ((corner - cells < 0) | (corner - cells > 1)).any(axis=1)
        np.testing.assert_allclose(judged(tracks), errors[known], rtol=1e-6)
        hidden[corner] = 255


def test_hidden_points_are_not_judged() -> None:
    tracks = grey_clip("any", grid=5, step=(2.0, 1.0)).tracks
    hidden = np.zeros_like(tracks.visibility)
    assert len(judged(replace(tracks, visibility=hidden))) == 0
