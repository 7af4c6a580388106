"""Use a tracker of your own without changing pretrack.

    python examples/custom_tracker.py CONFIG [key=value ...]

The example tracks points with dense optical flow (Farneback's, in OpenCV): each point follows the
flow from frame to frame, forward and backward from its anchor frame. A config names it like any
other tracker:

    tracks: {tracker: farneback, grid: 16, anchors: [0, 16, 32]}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from manifests.settings import load_settings
from pipeline.config import AnyTrackerSettings, BuildSettings
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.trackers.protocol import TrackerSettings, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import inside


class Farneback(TrackerSettings):
    """Settings of the tracker. Changing any of them, `version` included, re-tracks all clips."""

    tracker: Literal["farneback"]
    """The tracker's name in a config."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""
    window: int = Field(15, ge=5)
    """Side of the window that the flow is averaged over, in pixels."""

    def load(self) -> FarnebackTracker:
        """Make the tracker. Called once per worker; a network would be loaded here."""
        return FarnebackTracker(self)


class FarnebackTracker:
    """Track points along dense optical flow. A point that leaves the frame stays lost."""

    def __init__(self, settings: Farneback) -> None:
        self._window, self._directions = settings.window, settings.directions

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Track the queries [N, 2] from each anchor frame through each clip [T, H, W, 3].

        `pipeline.trackers.protocol.Tracker.track` describes the arguments.
        """
        tracked = [self._track(frames, anchors, queries) for frames in clips]
        return [leave_untracked(tracks, self._directions) for tracks in tracked]

    def _track(
        self, frames: NDArray[np.uint8], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> Tracks:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        t, (height, width) = len(greys), greys[0].shape
        positions = np.empty((len(anchors), t, len(queries), 2), np.float32)
        visibility = np.full(positions.shape[:3], 255, np.uint8)
        for row, anchor in enumerate(anchors):
            positions[row, anchor] = queries
            for order in (range(anchor, t), range(anchor, -1, -1)):  # forward, then backward
                for current, following in pairwise(order):
                    points = positions[row, current]
                    flow = cv2.calcOpticalFlowFarneback(
                        greys[current], greys[following], None, 0.5, 3, self._window, 3, 5, 1.1, 0
                    )  # type: ignore[call-overload]
                    # Move each point by the flow at its pixel; lost points stay where they are.
                    x, y = np.rint(points).astype(int).T
                    step = flow[y.clip(0, height - 1), x.clip(0, width - 1)]
                    visible = (visibility[row, current] > 0) & inside(points, width, height)
                    moved = np.where(visible[:, None], points + step, points)
                    positions[row, following] = moved
                    visibility[row, following] = np.where(
                        visible & inside(moved, width, height), 255, 0
                    )
        # Flow gives no confidence of its own: store the visibility as confidence too.
        return Tracks(np.asarray(anchors, np.int32), positions, visibility, visibility.copy())


AnyTracker = Annotated[AnyTrackerSettings | Farneback, Field(discriminator="tracker")]


class Build(BuildSettings):
    """The settings of a build, with `tracker: farneback` as one more choice."""

    tracks: AnyTracker  # type: ignore[assignment]
    """The tracker and its settings."""


if __name__ == "__main__":
    try:
        built = build(load_settings(Build, Path(sys.argv[1]), sys.argv[2:]), Progress())
        print(f"{built.made} shards made, {built.kept} kept: {built.snapshot.folder}")
    except PretrackError as error:
        sys.exit(f"pretrack: {error}")
