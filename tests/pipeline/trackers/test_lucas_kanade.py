"""The Lucas-Kanade tracker on frames whose true motion is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from shards.geometry import grid_points, inside
from tests.helpers.clips import make_clip
from tests.helpers.panning import STEP, panning_frames, texture

SIZE = (160, 120)
FRAMES = np.stack(panning_frames(seed=1, frames=12))
QUERIES = grid_points(8, *SIZE)
INFO = make_clip().info


def truth(anchor: int) -> np.ndarray:
    """True positions [T, N, 2] of points that lie on the grid in the anchor frame."""
    steps = np.arange(len(FRAMES))[:, None, None] - anchor
    return QUERIES + steps * np.array(STEP)


@pytest.mark.parametrize("anchor", [0, 5, 11])
def test_points_are_followed_both_ways(anchor: int) -> None:
    tracks = LucasKanadeSettings().load().track([FRAMES], [INFO], [anchor], QUERIES)[0]
    seen = (
        inside(truth(anchor), *SIZE)
        & inside(truth(anchor), SIZE[0] - 12, SIZE[1] - 12)
        & (truth(anchor) > 12).all(-1)
    )
    error = np.linalg.norm(tracks.positions[0] - truth(anchor), axis=-1)
    assert seen.sum() > 300
    assert np.median(error[seen]) < 0.05
    assert (error[seen] < 0.5).mean() > 0.97
    assert (tracks.visibility[0][seen] > 127).mean() > 0.97


def test_the_anchor_frame_holds_the_queries_visible_and_certain() -> None:
    tracks = LucasKanadeSettings().load().track([FRAMES], [INFO], [0, 5], QUERIES)[0]
    assert tracks.anchors.tolist() == [0, 5]
    assert tracks.positions.shape == (2, 12, 64, 2)
    for row, anchor in enumerate((0, 5)):
        assert (tracks.positions[row, anchor] == QUERIES).all()
        assert (tracks.visibility[row, anchor] == 255).all()
        assert (tracks.confidence[row, anchor] == 255).all()


def test_points_that_leave_the_frame_are_not_visible() -> None:
    tracks = LucasKanadeSettings().load().track([FRAMES], [INFO], [0], QUERIES)[0]
    gone = ~inside(truth(0) + 2, *SIZE)[-1] & ~inside(truth(0) - 2, *SIZE)[-1]
    assert gone.sum() >= 8
    assert (tracks.visibility[0, -1][gone] < 128).all()


def test_points_behind_something_are_not_visible_and_stay_lost() -> None:
    frames = np.stack([texture(3, *SIZE)] * 9)
    frames[3:6, 30:90, 40:120] = texture(4, 80, 60)
    queries = grid_points(16, *SIZE)
    tracks = LucasKanadeSettings().load().track([frames], [INFO], [0], queries)[0]
    hidden = (
        (queries[:, 0] > 48) & (queries[:, 0] < 112) & (queries[:, 1] > 38) & (queries[:, 1] < 82)
    )
    free = (queries[:, 0] < 22) | (queries[:, 0] > 138)
    assert hidden.sum() >= 20
    assert (tracks.visibility[0, 4][hidden] > 128).mean() < 0.2
    assert (tracks.visibility[0, 8][hidden] > 128).mean() < 0.2
    assert (tracks.visibility[0, 8][free] > 200).all()
    assert np.abs(tracks.positions[0, 8][free] - queries[free]).max() < 0.1


def test_confidence_never_rises_away_from_the_anchor() -> None:
    tracks = LucasKanadeSettings().load().track([FRAMES], [INFO], [6], QUERIES)[0]
    for values in (tracks.confidence[0].astype(int), tracks.visibility[0].astype(int)):
        assert (np.diff(values[6:], axis=0) <= 0).all()
        assert (np.diff(values[:7], axis=0) >= 0).all()


def test_the_same_frames_give_the_same_tracks() -> None:
    one, two = (
        LucasKanadeSettings().load().track([FRAMES], [INFO], [0, 4], QUERIES)[0] for _ in range(2)
    )
    assert (one.positions == two.positions).all()
    assert (one.visibility == two.visibility).all()
