"""CoTracker3 as a tracker of a build: how many clips it takes at once, and what it stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.cotracker3.tracking import PredictedTracks
from pipeline.trackers.cotracker3 import CoTracker3Settings, CoTracker3Tracker, _stored_tracks


@pytest.mark.parametrize(
    ("anchors", "points", "expected"),
    [
        (3, 256, 7),  # 4 GiB / (24 frames * 8 MB * 3) = 7.46
        (1, 64, 22),  # the maps alone: 4 GiB / (24 * 8 MB) = 22.37
        (100, 256, 0),  # not even one clip fits
    ],
)
def test_as_many_clips_are_tracked_at_once_as_fit_the_memory(
    anchors: int, points: int, expected: int
) -> None:
    settings = CoTracker3Settings(tracker="cotracker3", weights="random_offline", device="cpu")
    tracker = CoTracker3Tracker(settings)
    clip = np.zeros((24, 48, 64, 3), np.uint8)
    assert tracker._clips_at_once(clip, anchors, points) == 0, "on a CPU, one clip at a time"
    tracker._memory = 4 << 30
    assert tracker._clips_at_once(clip, anchors, points) == expected


def test_tracks_are_stored_as_bytes_and_near_the_frame() -> None:
    """The second of two clips is stored: 64 pixels wide and 48 high."""
    positions = torch.tensor([[-65.0, 97.0], [129.0, 20.25]]).view(1, 1, 2, 1, 2)
    both = torch.cat([torch.zeros_like(positions), positions])
    probabilities = torch.tensor([0.4, 0.998]).view(1, 1, 2, 1)
    visibility = torch.cat([torch.zeros_like(probabilities), probabilities])
    predicted = PredictedTracks(both, visibility, 1 - visibility)
    tracks = _stored_tracks(predicted, 1, (5,), (64, 48))
    assert tracks.anchors.tolist() == [5]
    assert tracks.positions.tolist() == [[[[-64.0, 96.0]], [[128.0, 20.25]]]]
    assert tracks.visibility.tolist() == [[[102], [254]]]
    assert tracks.confidence.tolist() == [[[153], [1]]]
