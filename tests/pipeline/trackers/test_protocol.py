"""What all trackers share: clamping, and the settings of the points."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.settings import check_settings
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.ground_truth import GroundTruthSettings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import Directions
from shards.errors import SettingsError
from tests.helpers.clips import make_tracks


def test_lost_points_are_stored_at_most_one_frame_size_away() -> None:
    positions = np.array(
        [[-100.5, 60], [-99.5, -51], [99, 49], [200.5, 100.5], [1e9, -1e9]], np.float32
    )
    assert clamp_to_frame(positions, 100, 50).tolist() == [
        [-100.0, 60.0],
        [-99.5, -50.0],
        [99.0, 49.0],
        [200.0, 100.0],
        [200.0, -50.0],
    ]


@pytest.mark.parametrize("anchors", [[], [8, 0], [0, 0], [-1, 3]])
def test_anchors_that_are_not_increasing_frame_indices_are_refused(anchors: list[int]) -> None:
    values = {"tracker": "lucas_kanade", "anchors": anchors}
    with pytest.raises(SettingsError, match="different frame indices in increasing order"):
        check_settings(LucasKanadeSettings, values, "test")


def test_every_setting_of_a_tracker_is_part_of_its_fingerprint() -> None:
    content = LucasKanadeSettings(anchors=(3, 5)).of_content()
    assert content == {
        "tracker": "lucas_kanade",
        "version": 1,
        "grid": 16,
        "anchors": [3, 5],
        "window": 21,
        "levels": 4,
        "error_px": 1.0,
        "difference": 15.0,
    }


@pytest.mark.parametrize(
    "settings",
    [
        LucasKanadeSettings(),
        GroundTruthSettings(tracker="truth"),
        CoTracker3Settings(tracker="cotracker3", weights="random_offline"),
    ],
)
def test_directions_are_part_of_the_fingerprint_only_if_one_is_left_out(
    settings: TrackerSettings,
) -> None:
    """Tracks of earlier versions go both ways and stay up to date."""
    assert "directions" not in settings.of_content()
    one_way = settings.model_copy(update={"directions": "forward"})
    assert one_way.of_content() == {**settings.of_content(), "directions": "forward"}
    assert type(settings).model_validate(one_way.model_dump(mode="json")) == one_way


@pytest.mark.parametrize(
    ("directions", "tracked"),
    [
        ("both", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        ("forward", [[1, 2, 3, 4], [4]]),
        ("backward", [[0, 1], [0, 1, 2, 3, 4]]),
    ],
)
def test_frames_that_are_not_tracked_hold_their_queries_unseen(
    directions: Directions, tracked: list[list[int]]
) -> None:
    before = make_tracks(1, anchors=(1, 4), frames=5, points=3)
    after = leave_untracked(before, directions)
    for row, anchor in enumerate((1, 4)):
        for t in range(5):
            if t in tracked[row]:
                assert (after.positions[row, t] == before.positions[row, t]).all()
                assert (after.visibility[row, t] == before.visibility[row, t]).all()
                assert (after.confidence[row, t] == before.confidence[row, t]).all()
            else:
                assert (after.positions[row, t] == before.positions[row, anchor]).all()
                assert not after.visibility[row, t].any()
                assert not after.confidence[row, t].any()
