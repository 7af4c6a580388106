"""Where one shot ends and the next begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector
from scenedetect.stats_manager import StatsManager

_SHORT_SIDE = 128
_LARGE = 25.0
_RATIO = 2.0
_WINDOW = 2


class ShotDetector:
    """Finds hard cuts, one frame after the other.

    PySceneDetect's content detector says how much each frame changes. A cut is a change that is large, and large beside the changes
    of the two frames before and after it, so that a fast pan is not one. This is the rule of its adaptive detector, which does not
    judge the first and the last two frames; its ratio of 3 is lowered to 2, since here a cut too many costs a few frames, and one
    too few makes tracks that are wrong.
    """

    def __init__(self) -> None:
        self._changes = StatsManager()
        self._detector = ContentDetector()
        self._detector.stats_manager = self._changes
        self._count = 0

    def add(self, frame: Any) -> None:
        """Takes the next frame of the video, an `av.VideoFrame`; it is judged at a small size, unrotated."""
        shrink = max(1, min(frame.width, frame.height) // _SHORT_SIDE)
        small = frame.reformat(
            width=frame.width // shrink, height=frame.height // shrink, format="bgr24"
        ).to_ndarray()
        self._detector.process_frame(_time(self._count), small)
        self._count += 1

    def cuts(self) -> list[int]:
        """Indices of the frames that begin a new shot, once the last frame was added."""
        changes = np.zeros(
            max(1, self._count)
        )  # into the frame of that index; nothing changes into the first
        for index in range(1, self._count):
            (changes[index],) = self._changes.get_metrics(
                _time(index), [ContentDetector.FRAME_SCORE_KEY]
            )
        return [
            int(index)
            for index in np.flatnonzero(changes >= _LARGE)
            if changes[index] >= _RATIO * _around(changes, int(index))
        ]


def _around(changes: np.ndarray, index: int) -> float:
    """The mean change of the frames beside one; 0 if there are none."""
    beside = np.concatenate(
        [changes[max(1, index - _WINDOW) : index], changes[index + 1 : index + 1 + _WINDOW]]
    )
    return float(beside.mean()) if len(beside) else 0.0


def _time(index: int) -> FrameTimecode:
    """The rate does not matter: times are only counted, one a frame."""
    return FrameTimecode(index, 25.0)
