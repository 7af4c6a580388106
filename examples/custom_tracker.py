"""A tracker of your own, used without a change to pretrack: python examples/custom_tracker.py CONFIG [key=value ...]

Dense optical flow (Farneback's, in OpenCV) serves as the example: every point follows the flow from frame to frame, both ways from
its anchor. A config names it as any other tracker:

    tracks: {tracker: farneback, grid: 16, anchors: [0, 8, 16]}
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
from pipeline.trackers.protocol import TrackerSettings
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import inside


class Farneback(TrackerSettings):
    """Settings of the tracker. All of them, `version` too, decide whether stored tracks are still those wanted."""

    tracker: Literal["farneback"]
    """Which tracker follows the points."""
    version: Literal[1] = 1
    """Raised by hand when the code's results change, so that old tracks are made again."""
    window: int = Field(15, ge=5)
    """Side of the window that the flow is averaged over, in pixels."""

    def load(self) -> FarnebackTracker:
        """The tracker itself; called once in every worker. A network would be loaded here."""
        return FarnebackTracker(self.window)


class FarnebackTracker:
    """Follows points along dense flow. What leaves the frame counts as lost from then on."""

    def __init__(self, window: int) -> None:
        self._window = window

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """See `pipeline.trackers.protocol.Tracker.track`: clips [T, H, W, 3] of one shape, queries [N, 2] → tracks of each clip."""
        return [self._track(frames, anchors, queries) for frames in clips]

    def _track(
        self, frames: NDArray[np.uint8], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> Tracks:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        t, (height, width) = len(greys), greys[0].shape
        positions = np.empty((len(anchors), t, len(queries), 2), np.float32)
        visible = np.full(positions.shape[:3], 255, np.uint8)
        for row, anchor in enumerate(anchors):
            positions[row, anchor] = queries
            for path in (range(anchor, t), range(anchor, -1, -1)):
                for here, there in pairwise(path):
                    points = positions[row, here]
                    flow = cv2.calcOpticalFlowFarneback(
                        greys[here], greys[there], None, 0.5, 3, self._window, 3, 5, 1.1, 0
                    )  # type: ignore[call-overload]
                    x, y = np.rint(points).astype(int).T
                    step = flow[y.clip(0, height - 1), x.clip(0, width - 1)]
                    seen = (visible[row, here] > 0) & inside(points, width, height)
                    positions[row, there] = np.where(seen[:, None], points + step, points)
                    visible[row, there] = np.where(
                        seen & inside(positions[row, there], width, height), 255, 0
                    )
        return Tracks(np.asarray(anchors, np.int32), positions, visible, visible.copy())


class Build(BuildSettings):
    """A build's settings in which `tracker: farneback` is known too."""

    tracks: Annotated[AnyTrackerSettings | Farneback, Field(discriminator="tracker")]  # type: ignore[assignment]
    """Which tracker follows which points."""


if __name__ == "__main__":
    try:
        built = build(load_settings(Build, Path(sys.argv[1]), sys.argv[2:]), Progress())
        print(f"{built.made} shards made, {built.kept} kept: {built.snapshot.folder}")
    except PretrackError as error:
        sys.exit(f"pretrack: {error}")
