"""Find shot cuts: where one shot ends and the next begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector
from scenedetect.stats_manager import StatsManager

from pipeline.decode.frame_format import ONE_THREAD

_SHORT_SIDE = 128
"""Frames are judged at a size of about this many pixels on the short side, for speed."""
_LEAST_CHANGE = 25.0
"""The least change into a frame (PySceneDetect's content value, 0 to 255) that can be a cut."""
_LEAST_RATIO = 2.0
"""A cut's change is at least this many times the mean change of its neighbours."""
_WINDOW = 2
"""Neighbours on each side."""


def small_picture(frame: Any) -> NDArray[np.uint8]:
    """Shrink an `av.VideoFrame` to [h, w, 3] BGR uint8, as coded: what is judged of a frame."""
    shrink = max(1, min(frame.width, frame.height) // _SHORT_SIDE)
    width, height = frame.width // shrink, frame.height // shrink
    small: NDArray[np.uint8] = frame.to_ndarray(
        width=width, height=height, format="bgr24", threads=ONE_THREAD
    )
    return small


class ShotDetector:
    """Find hard cuts, frame by frame.

    PySceneDetect's content detector measures how much each frame changes. A cut is a change that is
    large, and large compared with the changes of the two frames before and the two after it, so
    that a fast pan is no cut. This is the rule of PySceneDetect's adaptive detector, except that
    the adaptive detector does not judge the first two and the last two frames, and that its ratio
    of 3 is lowered to 2: a false cut costs a few frames, a missed one gives wrong tracks.
    """

    def __init__(self) -> None:
        self._changes = StatsManager()
        self._detector = _ColourDetector()
        self._size: tuple[int, ...] = ()
        self._firsts: set[int] = set()
        self._count = 0

    def add(self, small: NDArray[np.uint8]) -> None:
        """Add the next frame of the video, in order, as its `small_picture`."""
        if small.shape != self._size:  # pictures of different sizes cannot be compared
            self._size = small.shape
            self._firsts.add(self._count)
            self._detector = _ColourDetector()
            self._detector.stats_manager = self._changes
        self._detector.process_frame(_time(self._count), small)
        self._count += 1

    def cuts(self) -> list[int]:
        """Return the indices of the frames that begin a new shot, once all frames were added."""
        # changes[i] is the change from frame i - 1 to frame i; there is none into the first of a
        # size.
        changes = np.zeros(max(1, self._count))
        for index in sorted(set(range(self._count)) - self._firsts):
            (changes[index],) = self._changes.get_metrics(
                _time(index), [ContentDetector.FRAME_SCORE_KEY]
            )
        return [
            int(index)
            for index in np.flatnonzero(changes >= _LEAST_CHANGE)
            if changes[index] >= _LEAST_RATIO * _neighbours_mean(changes, int(index))
        ]


class _ColourDetector(ContentDetector):  # type: ignore[misc]
    """PySceneDetect's content detector without edges, which have weight 0 by default."""

    def _detect_edges(self, lum: NDArray[np.uint8]) -> None:
        # With a stats manager it would compute edges (Canny) in every frame: a third of the scan.
        return None


def _neighbours_mean(changes: np.ndarray, index: int) -> float:
    """Return the mean change of up to _WINDOW frames on each side of one; 0 if there are none."""
    neighbours = np.concatenate(
        [changes[max(1, index - _WINDOW) : index], changes[index + 1 : index + 1 + _WINDOW]]
    )
    return float(neighbours.mean()) if len(neighbours) else 0.0


def _time(index: int) -> FrameTimecode:
    """Convert a frame's index for PySceneDetect. The rate is arbitrary: only the order matters."""
    return FrameTimecode(index, 25.0)
