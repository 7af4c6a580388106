"""CoTracker3 as a tracker of a build: how many clips it takes at once, and what it stores."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from pipeline.network_trackers.predicted_tracks import PredictedTracks
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.network_tracker import stored_tracks


@pytest.mark.parametrize(
    ("frames", "precision", "expected"),
    [
        # Half of 4 GiB, over frames of 16320 x 128 numbers and two stored frames of 48 x 64 pixels:
        (24, "fast", 21),  # 2147483648 / (24 * (2 * 9216 + 2 * 2088960)) = 21.32
        (48, "fast", 10),
        (24, "exact", 10),  # 2147483648 / (24 * (2 * 9216 + 4 * 2088960)) = 10.68
        (600, "fast", 0),  # not even one clip fits
    ],
)
def test_as_many_clips_are_tracked_at_once_as_fit_the_memory(
    frames: int, precision: Literal["fast", "exact"], expected: int
) -> None:
    settings = CoTracker3Settings(
        tracker="cotracker3", weights="random_offline", device="cpu", precision=precision
    )
    tracker = settings.load()
    clip = np.zeros((frames, 48, 64, 3), np.uint8)
    assert tracker._clips_at_once(clip) == 0, "on a CPU, one clip at a time"
    tracker._memory = 4 << 30
    assert tracker._clips_at_once(clip) == expected


def test_tracks_are_stored_as_bytes_and_near_the_frame() -> None:
    """The second of two clips is stored: 64 pixels wide and 48 high."""
    positions = torch.tensor([[-65.0, 97.0], [129.0, 20.25]]).view(1, 1, 2, 1, 2)
    both = torch.cat([torch.zeros_like(positions), positions])
    probabilities = torch.tensor([0.4, 0.998]).view(1, 1, 2, 1)
    visibility = torch.cat([torch.zeros_like(probabilities), probabilities])
    predicted = PredictedTracks(both, visibility, 1 - visibility)
    tracks = stored_tracks(predicted, 1, (5,), (64, 48))
    assert tracks.anchors.tolist() == [5]
    assert tracks.positions.tolist() == [[[[-64.0, 96.0]], [[128.0, 20.25]]]]
    assert tracks.visibility.tolist() == [[[102], [254]]]
    assert tracks.confidence.tolist() == [[[153], [1]]]
