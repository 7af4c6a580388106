"""What all trackers share: clamping, and the settings of the points."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.settings import check_settings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from pipeline.trackers.protocol import clamp_to_frame
from shards.errors import SettingsError


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
