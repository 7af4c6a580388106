"""Pyramidal Lucas-Kanade with a forward-backward check (OpenCV): runs on any CPU, without weights.

Points are followed from frame to frame. After each step the point found is followed back; how far it comes home from where it
started is that step's error e, in pixels (Kalal et al., Forward-Backward Error, ICPR 2010). An occluder's texture sometimes passes
that check, so the grey difference r that is left in the matched window counts too. From them

    p          = 1 / (1 + (e / error_px)^2 + (r / difference)^4)      that one step went well
    visibility = the smallest p since the anchor      (a point that was lost once stays lost: nothing here finds it again)
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
    """Which tracker follows the points."""
    version: Literal[1] = 1
    """Raised by hand when the code's results change, so that old tracks are made again."""
    window: int = Field(21, ge=5, le=101)
    """Side of the window that is matched, in pixels of each pyramid level."""
    levels: int = Field(4, ge=1, le=8)
    """Pyramid levels: each doubles the motion that can be followed."""
    error_px: float = Field(1.0, gt=0)
    """Forward-backward error, in pixels, at which a step is as likely wrong as right."""
    difference: float = Field(15.0, gt=0)
    """Mean difference of the matched windows, in grey levels of 255, at which a step is as likely wrong as right."""

    def load(self) -> LucasKanadeTracker:
        """The tracker itself."""
        return LucasKanadeTracker(self)


class LucasKanadeTracker:
    """Follows points with `cv2.calcOpticalFlowPyrLK`. Holds nothing but its settings."""

    def __init__(self, settings: LucasKanadeSettings) -> None:
        self._settings = settings

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """See `Tracker.track`."""
        return [self._track(frames, anchors, queries) for frames in clips]

    def _track(
        self, frames: NDArray[np.uint8], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> Tracks:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        a, t, n = len(anchors), len(frames), len(queries)
        positions = np.empty((a, t, n, 2), np.float32)
        visible, sure = np.ones((a, t, n)), np.ones((a, t, n))
        height, width = greys[0].shape
        for row, anchor in enumerate(anchors):
            positions[row, anchor] = queries
            for path in (range(anchor, t), range(anchor, -1, -1)):
                for here, there in pairwise(path):
                    points, p = self._step(
                        greys[here], greys[there], positions[row, here], (width, height)
                    )
                    positions[row, there] = points
                    visible[row, there] = np.minimum(visible[row, here], p)
                    sure[row, there] = sure[row, here] * p
        return Tracks(np.asarray(anchors, np.int32), positions, _as_bytes(visible), _as_bytes(sure))

    def _step(
        self, here: Grey, there: Grey, start: Points, size: tuple[int, int]
    ) -> tuple[Points, Points]:
        """One frame on and back: where the points [N, 2] went, and how likely that is right [N]."""
        end, went, difference = self._flow(here, there, start)
        home, came, _ = self._flow(there, here, end)
        error = np.linalg.norm(home - start, axis=-1)
        p = 1.0 / (
            1.0
            + (error / self._settings.error_px) ** 2
            + (difference / self._settings.difference) ** 4
        )
        p[~(went & came & inside(end, *size))] = 0.0
        return clamp_to_frame(end, *size), p.astype(np.float32)

    def _flow(
        self, here: Grey, there: Grey, start: Points
    ) -> tuple[Points, NDArray[np.bool_], Points]:
        """Where points [N, 2] went, whether they were found [N], and the mean grey difference of their windows [N]."""
        window = (self._settings.window, self._settings.window)
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
        points = np.ascontiguousarray(start[:, None])
        end, found, difference = cv2.calcOpticalFlowPyrLK(
            here,
            there,
            points,
            None,
            winSize=window,
            maxLevel=self._settings.levels - 1,
            criteria=stop,  # type: ignore[call-overload]
        )
        good = (found[:, 0] == 1) & np.isfinite(end[:, 0]).all(-1)
        return (
            np.where(good[:, None], end[:, 0], start),
            good,
            np.where(good, difference[:, 0], np.inf),
        )


def _as_bytes(probability: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(probability * 255).astype(np.uint8)
