"""Work out by hand the figures that benchmarks print beside their times."""

from __future__ import annotations

import torch

from benchmarks.cotracker3 import deviation
from benchmarks.exactness import largest_differences
from pipeline.network_trackers.predicted_tracks import PredictedTracks


def test_the_deviation_of_tracks_is_a_distance_in_pixels_and_a_share_of_visibility() -> None:
    """Of four positions three are 5 px away and one is exact; one of four visibilities differs."""
    positions = torch.zeros(1, 1, 4, 1, 2)
    moved = positions.clone()
    moved[0, 0, :3, 0] = torch.tensor([3.0, 4.0])
    visibility = torch.full((1, 1, 4, 1), 0.6)
    hidden = visibility.clone()
    hidden[0, 0, 0, 0] = 0.5
    text = deviation(
        PredictedTracks(positions, visibility, visibility),
        PredictedTracks(moved, hidden, visibility),
    )
    assert text == (
        "median distance 5.0000 px, 99 % below 5.0000 px, visibility differs for 25.000%"
    )


def test_differences_of_gradients_are_relative_to_the_largest_reference_gradient() -> None:
    rows = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    values, gradients = largest_differences(lambda x: 3 * x, lambda x: 2 * x + 0.25, rows)
    assert values == 2.25  # 3 * -2 differs from 2 * -2 + 0.25 by 2.25, 3 from 2.25 by 0.75
    assert abs(gradients - 0.5) < 1e-12  # (3 - 2) / 2
