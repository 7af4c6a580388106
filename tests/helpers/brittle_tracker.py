"""Lucas-Kanade trackers that die as native code does, by SIGKILL.

Their settings are those of Lucas-Kanade, so their shards have the same fingerprints.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import PrivateAttr

from pipeline.config import BuildSettings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings, LucasKanadeTracker
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError

Clips = Sequence[NDArray[np.uint8]]


def with_tracker(settings: BuildSettings, kind: type[LucasKanadeSettings]) -> BuildSettings:
    """Return the same build with another kind of Lucas-Kanade."""
    return settings.model_copy(update={"tracks": kind(**settings.tracks.model_dump())})


def all_red(frames: NDArray[np.uint8]) -> bool:
    """Tell whether a clip shows nothing but red."""
    return bool(frames[..., 0].min() > 200 and frames[..., 1:].max() < 60)


class DiesOfRed(LucasKanadeSettings):
    """Its tracker dies on every clip that is all red."""

    def load(self) -> LucasKanadeTracker:
        return _DiesOfRed(self)


class _DiesOfRed(LucasKanadeTracker):
    def track(
        self,
        clips: Clips,
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        if any(map(all_red, clips)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().track(clips, infos, anchors, queries)


class FailsAfterRed(LucasKanadeSettings):
    """Its tracker fails on a clip that is all red and on all clips after it.

    So does CUDA once a kernel has crashed.
    """

    def load(self) -> LucasKanadeTracker:
        return _FailsAfterRed(self)


class _FailsAfterRed(LucasKanadeTracker):
    _broken = False

    def track(
        self,
        clips: Clips,
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        self._broken = self._broken or any(map(all_red, clips))
        if self._broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().track(clips, infos, anchors, queries)


class DiesOnce(LucasKanadeSettings):
    """One of its trackers dies on its second call: the first that creates the file `flag`."""

    _flag: Path = PrivateAttr()

    def load(self) -> LucasKanadeTracker:
        return _DiesOnce(self, self._flag)


class _DiesOnce(LucasKanadeTracker):
    def __init__(self, settings: LucasKanadeSettings, flag: Path) -> None:
        super().__init__(settings)
        self._flag = flag
        self._calls = 0

    def track(
        self,
        clips: Clips,
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        self._calls += 1
        if self._calls == 2 and not self._flag.exists():
            self._flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().track(clips, infos, anchors, queries)


class Slow(LucasKanadeSettings):
    """Its tracker takes at least half a second for a clip."""

    def load(self) -> LucasKanadeTracker:
        return _Slow(self)


class _Slow(LucasKanadeTracker):
    def track(
        self,
        clips: Clips,
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        time.sleep(0.5 * len(clips))
        return super().track(clips, infos, anchors, queries)


class WithoutWeights(LucasKanadeSettings):
    """Cannot be loaded."""

    def load(self) -> LucasKanadeTracker:
        raise PretrackError("there are no weights at /not/there")


class DiesWhileLoading(LucasKanadeSettings):
    """Dies while it is loaded, as if it needed more memory than there is."""

    def load(self) -> LucasKanadeTracker:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")
