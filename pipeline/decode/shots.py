"""Where one shot ends and the next begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

_SHORT_SIDE = 128
_WINDOW = 2


class ShotDetector:
    """Finds hard cuts, one frame after the other.

    PySceneDetect's adaptive detector: a cut is a change that is large, and large beside the changes before and after it, so that a
    fast pan is not one. Its usual ratio of 3 is lowered to 2, since here a cut too many costs a few frames, and one too few makes
    tracks that are wrong; for the same reason no shot is too short to be one.
    """

    def __init__(self) -> None:
        self._detector = AdaptiveDetector(adaptive_threshold=2.0, min_content_val=25.0, window_width=_WINDOW, min_scene_len=1)
        self._cuts: list[int] = []
        self._fed = 0
        self._last: NDArray[np.uint8] | None = None

    def add(self, frame: Any) -> None:
        """Takes the next frame of the video, an `av.VideoFrame`; it is judged at a small size, unrotated."""
        shrink = max(1, min(frame.width, frame.height) // _SHORT_SIDE)
        small = frame.reformat(width=frame.width // shrink, height=frame.height // shrink, format="bgr24").to_ndarray()
        # The detector judges a frame by its neighbours: the first and the last frame stand in for those that are not there.
        for _ in range(1 + _WINDOW if self._last is None else 1):
            self._feed(small)
        self._last = small

    def cuts(self) -> list[int]:
        """Indices of the frames that begin a new shot, once the last frame was added."""
        if self._last is not None:
            for _ in range(_WINDOW):
                self._feed(self._last)
        return sorted({cut for cut in self._cuts if cut > 0})

    def _feed(self, small: NDArray[np.uint8]) -> None:
        # The rate does not matter: times are only counted, one a frame.
        found = self._detector.process_frame(FrameTimecode(self._fed, 25.0), small)
        self._cuts += [cut.frame_num - _WINDOW for cut in found]
        self._fed += 1
