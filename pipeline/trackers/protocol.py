"""What a tracker is. Another one is one new file beside this, and its settings' name in `pipeline.config`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from manifests.settings import Settings
from shards.clip import ClipInfo, Tracks


class Tracker(Protocol):
    """Follows points through a clip. Made once a worker, by its settings' `load()`, and then called for every clip."""

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Follows the same query points from each anchor frame through whole clips, forward and backward.

        clips:   [T, H, W, 3] each, RGB as stored, all of one shape
        infos:   what is known of each clip
        anchors: A frame indices, 0 <= a < T
        queries: [N, 2] (x, y) in pixels of the frame, centres at integers; their position in every anchor frame

        In its own anchor frame a point is at its query, visible and certain.
        """
        ...


def clamp_to_frame(positions: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Positions [..., 2] in pixels of a frame; those of lost points, which may fly off, moved to within a frame's size of it.

    There they are harmless to store: `pretrack verify` takes what is much farther away for damage.
    """
    limit = np.array([width, height], np.float32)
    return np.clip(positions, -limit, 2 * limit)


class TrackerSettings(Settings):
    """Settings that every tracker has."""

    grid: int = Field(16, ge=1, le=128)
    """Points a side: grid x grid points are followed from each anchor frame."""
    anchors: tuple[int, ...] = (0, 8, 16)
    """Frames of a clip from which a grid of points is followed. A clip too short for one of them goes without it."""

    def of_content(self) -> dict[str, Any]:
        """The settings that decide what the tracks are."""
        return self.model_dump(mode="json")

    @field_validator("anchors")
    @classmethod
    def _check_anchors(cls, anchors: tuple[int, ...]) -> tuple[int, ...]:
        if not anchors or list(anchors) != sorted(set(anchors)) or anchors[0] < 0:
            raise ValueError(
                "should be one or more different frame indices in increasing order, such as [0, 8, 16]"
            )
        return anchors
