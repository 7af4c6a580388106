"""Compute the columns of the clips table that describe a clip's tracks."""

from __future__ import annotations

import numpy as np

from manifests.rows import TrackSummary
from shards.clip import VISIBLE_THRESHOLD, Directions, Tracks, tracked_frames

_CERTAIN = 255
"""The stored visibility (uint8) of a point that is certainly visible."""


def summarise_tracks(
    tracks: Tracks, width: int, height: int, directions: Directions = "both"
) -> TrackSummary:
    """Summarise the tracks of a clip whose frames are `width` x `height` pixels.

    directions: those in which its points were tracked
    """
    return TrackSummary(
        anchors=tuple(tracks.anchors.tolist()),
        points=tracks.positions.shape[2],
        visible_fraction=visible_fraction(tracks, directions),
        motion=motion(tracks, width, height),
    )


def visible_fraction(tracks: Tracks, directions: Directions = "both") -> float:
    """Return the mean visibility of all points over all anchors and tracked frames, 0..1."""
    tracked = tracked_frames(tracks.anchors, tracks.positions.shape[1], directions)
    return float(tracks.visibility[tracked].mean()) / _CERTAIN


def motion(tracks: Tracks, width: int, height: int) -> float:
    """Return how far points typically move, as a fraction of the frame's diagonal.

    Median over tracks of the largest distance between a point and its anchor position, over the
    frames in which the point is visible.
    """
    rows = np.arange(len(tracks.anchors))
    # [A, 1, N, 2]: the position of each point in the anchor frame of its row.
    start = tracks.positions[rows, tracks.anchors][:, None]
    distance = np.linalg.norm(tracks.positions - start, axis=-1)
    farthest = np.where(tracks.visibility >= VISIBLE_THRESHOLD, distance, 0.0).max(axis=1)
    return float(np.median(farthest) / np.hypot(width, height))
