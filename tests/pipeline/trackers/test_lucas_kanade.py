"""Track frames with known motion by Lucas-Kanade, and work its probabilities out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.trackers.lucas_kanade import LucasKanadeSettings, LucasKanadeTracker
from pipeline.trackers.protocol import leave_untracked
from shards.clip import Directions
from shards.geometry import grid_points, inside
from tests.helpers.clips import make_clip
from tests.helpers.panning import STEP, panning_frames, texture

SIZE = (160, 120)
FRAMES = np.stack(panning_frames(seed=1, frames=12))
QUERIES = grid_points(8, *SIZE)
INFO = make_clip().info


def truth(anchor: int) -> np.ndarray:
    """Return true positions [T, N, 2] of points that lie on the grid in the anchor frame."""
    steps = np.arange(len(FRAMES))[:, None, None] - anchor
    return QUERIES + steps * np.array(STEP)


@pytest.mark.parametrize("anchor", [0, 5, 11])
def test_points_are_tracked_both_ways(anchor: int) -> None:
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


@pytest.mark.parametrize("directions", ["forward", "backward"])
def test_one_direction_equals_that_direction_of_both(directions: Directions) -> None:
    anchors = [0, 5, 11]
    both = LucasKanadeSettings().load().track([FRAMES], [INFO], anchors, QUERIES)[0]
    settings = LucasKanadeSettings(directions=directions)
    one = settings.load().track([FRAMES], [INFO], anchors, QUERIES)[0]
    expected = leave_untracked(both, directions)
    for name in ("anchors", "positions", "visibility", "confidence"):
        np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))


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


class KnownErrors(LucasKanadeTracker):
    """The tracker with optical flow that moves points by 1 px and has given errors per step.

    A step is (forward-backward error in px, grey difference, found, found again).
    """

    def __init__(self, steps: list[tuple[float, float, bool, bool]], **settings: float) -> None:
        super().__init__(LucasKanadeSettings.model_validate(settings))
        self.flows = iter(
            [
                flow
                for error, difference, found, found_again in steps
                for flow in ((1.0, found, difference), (error - 1.0, found_again, 0.0))
            ]
        )

    def _flow(self, current: Any, following: Any, start: Any) -> Any:
        move, found, difference = next(self.flows)
        n = len(start)
        return start + np.array([move, 0], np.float32), np.full(n, found), np.full(n, difference)


def probabilities(
    steps: list[tuple[float, float, bool, bool]], x: float = 50.0, **settings: float
) -> tuple[list[int], list[int]]:
    """Return (visibility, confidence) of one point in each frame, tracked from the first frame."""
    frames = np.zeros((len(steps) + 1, *SIZE[::-1], 3), np.uint8)
    queries = np.array([[x, 60.0]], np.float32)
    tracks = KnownErrors(steps, **settings).track([frames], [INFO], [0], queries)[0]
    return tracks.visibility[0, :, 0].tolist(), tracks.confidence[0, :, 0].tolist()


def test_visibility_is_the_worst_step_and_confidence_the_product_of_steps() -> None:
    """With error_px = 1, errors of 0.5, 2 and 0.5 px give p = 1 / (1 + e^2) = 0.8, 0.2 and 0.8."""
    visibility, confidence = probabilities([(e, 0, True, True) for e in (0.5, 2, 0.5)])
    assert visibility == [255, 204, 51, 51]
    assert confidence == [255, 204, 41, 33]  # 0.8, 0.16 and 0.128 of 255


@pytest.mark.parametrize(
    ("error", "difference", "settings", "p"),
    [
        (1.0, 0.0, {}, 1 / 2),
        (2.0, 0.0, {"error_px": 4.0}, 1 / (1 + 1 / 4)),
        (0.0, 15.0, {}, 1 / 2),
        (0.0, 30.0, {}, 1 / 17),
        (0.0, 10.0, {"difference": 20.0}, 1 / (1 + 1 / 16)),
        (1.0, 15.0, {}, 1 / 3),
    ],
)
def test_a_step_at_both_thresholds_has_the_probability_of_the_formula(
    error: float, difference: float, settings: dict[str, float], p: float
) -> None:
    visibility, confidence = probabilities([(error, difference, True, True)], **settings)
    assert visibility[1] == confidence[1] == round(p * 255)


@pytest.mark.parametrize(
    ("step", "x"),
    [
        ((0, 0, False, True), 50.0),  # lost forward
        ((0, 0, True, False), 50.0),  # lost on the way back
        ((0, 0, True, True), SIZE[0] - 1.0),  # moves out of the frame
    ],
)
def test_a_point_that_was_lost_once_stays_lost(
    step: tuple[float, float, bool, bool], x: float
) -> None:
    fine = (0.0, 0.0, True, True)
    assert probabilities([step, fine], x) == ([255, 0, 0], [255, 0, 0])
    assert probabilities([fine, fine])[0] == [255, 255, 255]


@pytest.mark.parametrize(("difference", "visibility"), [(15.0, 128), (30.0, 240)])
def test_a_scene_that_brightens_by_15_grey_levels_is_as_visible_as_the_setting_says(
    difference: float, visibility: int
) -> None:
    """Nothing moves, so the forward-backward error is 0: p = 1 / (1 + (15 / difference)^4).

    The tracker lowers the difference a little by moving points by a fraction of a pixel.
    """
    frame = np.clip(texture(3, *SIZE), 0, 240)
    queries = np.array([[60.0, 60.0], [80.0, 50.0]], np.float32)
    settings = LucasKanadeSettings(difference=difference)
    tracks = settings.load().track([np.stack([frame, frame + 15])], [INFO], [0], queries)[0]
    assert np.abs(tracks.visibility[0, 1].astype(int) - visibility).max() <= 16
