"""Pyramidal Lucas-Kanade with a forward-backward check (OpenCV): runs on any CPU, without weights.

Points are tracked from each frame to the next. Each step is then tracked back; the distance between
its start and where it returns to is the step's forward-backward error e, in pixels (Kalal et al.,
Forward-Backward Error, ICPR 2010). An occluder's texture sometimes passes that check, so the mean
grey difference r of the matched windows counts too. They give

    p          = 1 / (1 + (e / error_px)^2 + (r / difference)^4)    probability of a correct step
    visibility = the smallest p since the anchor (a point that was lost once is never found again)
    confidence = the product of all p since the anchor
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame
from shards.clip import ClipInfo, Tracks
from shards.geometry import inside

Grey = NDArray[np.uint8]
Points = NDArray[np.float32]


class LucasKanadeSettings(TrackerSettings):
    """Settings of the Lucas-Kanade tracker."""

    tracker: Literal["lucas_kanade"] = "lucas_kanade"
    """The tracker: pyramidal Lucas-Kanade."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""
    window: int = Field(21, ge=5, le=101)
    """Side of the matched window, in pixels of each pyramid level."""
    levels: int = Field(4, ge=1, le=8)
    """Pyramid levels. Each additional one doubles the largest motion that can be tracked."""
    error_px: float = Field(1.0, gt=0)
    """Forward-backward error, in pixels, at which a step is as likely wrong as right."""
    difference: float = Field(15.0, gt=0)
    """Mean difference of the matched windows, in grey levels (0 to 255), at which a step is as
    likely wrong as right."""

    def load(self) -> LucasKanadeTracker:
        """Make the tracker."""
        return LucasKanadeTracker(self)


class LucasKanadeTracker:
    """Track points with `cv2.calcOpticalFlowPyrLK`. The only state is its settings."""

    def __init__(self, settings: LucasKanadeSettings) -> None:
        self._settings = settings

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Track points through each clip by itself. See `Tracker.track`."""
        return [self._track(frames, anchors, queries) for frames in clips]

    def _track(
        self, frames: NDArray[np.uint8], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> Tracks:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        a, t, n = len(anchors), len(frames), len(queries)
        # Frames of a direction that is not tracked keep these values.
        positions = np.empty((a, t, n, 2), np.float32)
        positions[:] = queries
        visibility, confidence = np.zeros((a, t, n)), np.zeros((a, t, n))
        height, width = greys[0].shape
        directions = self._settings.directions
        for row, anchor in enumerate(anchors):
            visibility[row, anchor] = confidence[row, anchor] = 1
            forward = range(anchor, t if directions != "backward" else anchor)
            backward = range(anchor, -1 if directions != "forward" else anchor, -1)
            for order in (forward, backward):
                for current, following in pairwise(order):
                    points, p = self._step(
                        greys[current], greys[following], positions[row, current], (width, height)
                    )
                    positions[row, following] = points
                    visibility[row, following] = np.minimum(visibility[row, current], p)
                    confidence[row, following] = confidence[row, current] * p
        return Tracks(
            np.asarray(anchors, np.int32), positions, _as_bytes(visibility), _as_bytes(confidence)
        )

    def _step(
        self, current: Grey, following: Grey, start: Points, size: tuple[int, int]
    ) -> tuple[Points, Points]:
        """Track points [N, 2] to the following frame and back.

        Returns their new positions [N, 2] and the probability of a correct step [N], which is 0 for
        points that were lost on the way or left the frame of `size` (width, height).
        """
        end, found, difference = self._flow(current, following, start)
        returned, found_again, _ = self._flow(following, current, end)
        error = np.linalg.norm(returned - start, axis=-1)
        p = 1.0 / (
            1.0
            + (error / self._settings.error_px) ** 2
            + (difference / self._settings.difference) ** 4
        )
        p[~(found & found_again & inside(end, *size))] = 0.0
        return clamp_to_frame(end, *size), p.astype(np.float32)

    def _flow(
        self, current: Grey, following: Grey, start: Points
    ) -> tuple[Points, NDArray[np.bool_], Points]:
        """Track points [N, 2] one way by optical flow.

        Returns their new positions [N, 2], whether they were found [N], and the mean grey
        difference of the matched windows [N]. Points that were not found stay where they were,
        with an infinite difference.
        """
        window = (self._settings.window, self._settings.window)
        # At most 30 iterations per pyramid level, or until a step is shorter than 0.01 pixels.
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
        points = np.ascontiguousarray(start[:, None])
        end, status, difference = cv2.calcOpticalFlowPyrLK(
            current,
            following,
            points,
            None,
            winSize=window,
            maxLevel=self._settings.levels - 1,
            criteria=stop,  # type: ignore[call-overload]
        )
        found = (status[:, 0] == 1) & np.isfinite(end[:, 0]).all(-1)
        return (
            np.where(found[:, None], end[:, 0], start),
            found,
            np.where(found, difference[:, 0], np.inf),
        )


def _as_bytes(probability: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Round probabilities to 8 bits: 0..1 → 0..255."""
    return np.rint(probability * 255).astype(np.uint8)
