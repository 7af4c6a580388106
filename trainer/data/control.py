"""Controls of training: samples without what tracks say, and otherwise the same (`data.control`).

A gain of training on tracks is what a model has learned more than the same training on a control.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.errors import SettingsError
from trainer.data.score_rule import ScoreRule
from trainer.data.settings import DataSettings

CONTROLS = {
    "same": "every frame of a sample is its anchor frame, cropped and coloured on its own, and "
    "points stay where they are in it",
    "shuffled": "in every frame but the anchor frame, each point has the track of another point",
}
"""What each control does, in words."""

FrameTracks = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]
"""Positions [T, N, 2], visibility [T, N] and confidence [T, N] in the frames of a sample."""


def check_control(settings: DataSettings, points: int, by_score: ScoreRule) -> None:
    """Raise SettingsError if a control is impossible with clips of this many points or a rule."""
    if settings.control == "shuffled" and points < settings.frames:
        raise SettingsError(
            f"'data.control: shuffled' needs as many points per clip as 'data.frames: "
            f"{settings.frames}', since a point has another track in each frame, and clips have "
            f"{points}: take clips of a denser grid, or fewer frames"
        )
    if settings.control == "same" and by_score.needs_scores:
        raise SettingsError(
            f"'{by_score.setting}' goes by tracks, and 'data.control: same' uses none: leave one "
            "of them out"
        )


def control_tracks(
    tracks: FrameTracks, settings: DataSettings, random: np.random.Generator
) -> FrameTracks:
    """Return the tracks of a sample as its control has them; frame 0 is the anchor frame.

    random: the sample's generator; what it draws later is the same with and without a control
    """
    positions, visibility, confidence = tracks
    if settings.control == "same":
        # All frames are the anchor frame, where its points are visible by definition.
        return positions, np.full_like(visibility, 255), np.full_like(confidence, 255)
    if settings.control == "shuffled":
        frames, points = visibility.shape
        source = _other_points(frames, points, random.spawn(1)[0])
        return (
            np.take_along_axis(positions, source[..., None], axis=1),
            np.take_along_axis(visibility, source, axis=1),
            np.take_along_axis(confidence, source, axis=1),
        )
    return tracks


def _other_points(frames: int, points: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw whose track each point has in each frame: [T, N], with 0..N-1 in row 0.

    Points form a random circle, and in frame t each has the track of the point t places further.
    So with T <= N a point has another track in every frame: no two frames show the same one of it,
    because losses may compare frames other than the anchor frame with each other too.
    """
    circle = random.permutation(points)
    source = np.empty((frames, points), np.int64)
    for frame, row in enumerate(source):
        row[circle] = np.roll(circle, -frame)
    return source
