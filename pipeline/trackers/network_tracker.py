"""A network as a tracker of a build, which tracks many clips at once on a GPU."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.trackers.batching import split_evenly
from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError, first_line

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network_trackers.predicted_tracks import PredictedTracks

log = logging.getLogger(__name__)

COMPUTING = frozenset({"device", "memory_gb", "compile"})
"""Settings that change nothing but rounding; they are not part of the tracks' fingerprint."""
_MIN_MEMORY = 64 << 20
"""Bytes. With less, memory is set to 0, which tracks one frame, anchor and clip at a time."""


class NetworkTrackerSettings(TrackerSettings):
    """Settings of every tracker that is a network."""

    precision: Literal["fast", "exact"] = "fast"
    """`fast` computes in bfloat16 where that is safe, `exact` in float32 throughout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses CUDA if the worker has a GPU (ray.tracker_gpus)."""
    memory_gb: float = Field(4.0, gt=0)
    """GPU memory for clips, their feature maps and intermediate results. A larger value tracks more
    clips at once. It is halved when the GPU runs out of memory."""
    compile: bool = True
    """Use `torch.compile`. Every worker waits for the compilation at its first clips. It applies
    only to `precision: fast` on CUDA."""


@dataclass(frozen=True)
class TrackingNetwork:
    """A network as `NetworkTracker` uses it.

    name:          for messages
    load:          (device, compiled) → the network with its weights
    track:         (network, video [B, T, 3, H, W], anchors, queries [N, 2], memory) → tracks
    clips_at_once: (memory, frames per clip, bytes per frame) → clips that fit; 0 if none does
    spare_memory:  what to change if not even one clip fits, in a phrase
    """

    name: str
    load: Callable[[str, bool], Any]
    track: Callable[[Any, Tensor, Sequence[int], Tensor, int], PredictedTracks]
    clips_at_once: Callable[[int, int, int], int]
    spare_memory: str


class NetworkTracker:
    """Track clips with a network on its device."""

    def __init__(self, settings: NetworkTrackerSettings, network: TrackingNetwork) -> None:
        from pipeline.trackers.gpu import (
            CopyStreams,
            choose_device,
            is_out_of_memory,
            no_memory_to_load,
        )

        self._network = network
        self._directions = settings.directions
        fast = settings.precision == "fast"
        self._device = choose_device(settings.device, fast=fast)
        on_gpu = self._device == "cuda"
        self._compiled = settings.compile and fast and on_gpu
        try:
            self._model = network.load(self._device, self._compiled)
            self._streams = CopyStreams() if on_gpu else None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise no_memory_to_load(network.name) from error
        self._memory = int(settings.memory_gb * (1 << 30)) if on_gpu else 0

    def frame_memory(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate memory for frames; on a GPU, memory that it reads without waiting."""
        from pipeline.trackers.gpu import pinned_frames

        return pinned_frames(shape) if self._streams else np.empty(shape, np.uint8)

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Sequence[Tracks]:
        """Track points through clips, as many at once as fit the memory. See `Tracker.track`.

        A GPU may still compute the result: the first access to it waits, and may raise. When the
        GPU runs out of memory, a warning is logged and fewer clips are tracked at once from then
        on. Raises PretrackError if not even one anchor of one clip fits.
        """
        import torch

        from pipeline.trackers.gpu import is_cuda_error, is_out_of_memory

        while True:
            size = max(1, self._clips_at_once(clips[0]))
            try:
                parts = [self._track(part, anchors, queries) for part in split_evenly(clips, size)]
            except RuntimeError as error:  # all errors of torch and torch.compile
                out_of_memory = is_out_of_memory(error)
                if not out_of_memory and (not self._compiled or is_cuda_error(error)):
                    raise
                reason = first_line(error)
            else:
                pending = _PendingTracks(parts, len(clips))
                return pending if self._streams else list(pending)
            # Only now that the error is gone, and the tensors of its traceback with it, can their
            # memory be given back.
            if out_of_memory:
                self._halve_memory()
                gc.collect()
                torch.cuda.empty_cache()
            else:
                self._disable_compilation(reason)

    def _halve_memory(self) -> None:
        """Halve the memory to use. Raises PretrackError if it cannot be lowered further."""
        if self._memory == 0:
            raise PretrackError(
                "the GPU's memory is too small even for one anchor of one clip: "
                f"{self._network.spare_memory}"
            )
        self._memory = self._memory // 2 if self._memory > _MIN_MEMORY else 0
        log.warning(
            "out of GPU memory: tracking fewer clips at once from now on (tracks.memory_gb=%.3g)",
            self._memory / (1 << 30),
        )

    def _disable_compilation(self, reason: str) -> None:
        """Load the network again without compilation, and log why."""
        log.warning(
            "torch.compile does not work here (%s): continuing as with tracks.compile=false",
            reason,
        )
        self._compiled = False
        self._model = self._network.load(self._device, False)

    def _clips_at_once(self, clip: NDArray[np.uint8]) -> int:
        """Return how many clips of this shape fit the memory; 0 if not even one does."""
        return self._network.clips_at_once(self._memory, len(clip), clip[0].nbytes)

    def _track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Callable[[], list[Tracks]]:
        """Track clips of one shape in one call of the network; return what gives their tracks.

        On a GPU the work is only queued, and the function returned waits for it.
        """
        import torch

        from pipeline.network_trackers.predicted_tracks import PredictedTracks

        streams = self._streams
        stacked = streams.upload(clips) if streams else torch.from_numpy(np.stack(clips))
        video = stacked.permute(0, 1, 4, 2, 3)
        predicted = self._network.track(
            self._model, video, anchors, torch.from_numpy(queries), self._memory
        )
        size = video.shape[-1], video.shape[-2]
        values = predicted.positions, predicted.visibility, predicted.confidence
        download = streams.download(values, read=clips) if streams else None

        def stored() -> list[Tracks]:
            on_host = PredictedTracks(*(download.wait() if download else values))
            return [
                leave_untracked(stored_tracks(on_host, clip, anchors, size), self._directions)
                for clip in range(len(clips))
            ]

        return stored


class _PendingTracks(Sequence[Tracks]):
    """Tracks that a GPU may still compute: the first access waits for them, and may raise.

    parts: give the tracks of some clips each, `count` together
    """

    def __init__(self, parts: Sequence[Callable[[], list[Tracks]]], count: int) -> None:
        self._parts = parts
        self._count = count

    @cached_property
    def _tracks(self) -> list[Tracks]:
        return [tracks for part in self._parts for tracks in part()]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._tracks[index]


def check_torch(tracker: str) -> None:
    """Raise PretrackError if torch is missing, which the tracker and extra of this name needs."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise PretrackError(
            f"tracks.tracker {tracker} needs torch: pip install 'pretrack[{tracker}]'"
        ) from error


def stored_tracks(
    predicted: PredictedTracks, clip: int, anchors: Sequence[int], size: tuple[int, int]
) -> Tracks:
    """Convert the tracks of the clip with this index to their stored form.

    Positions are clamped to the frame of `size` (width, height); probabilities become 8 bits.
    """
    positions = clamp_to_frame(predicted.positions[clip].cpu().numpy(), *size)
    visibility, confidence = (
        np.rint(value[clip].cpu().numpy() * 255).astype(np.uint8)
        for value in (predicted.visibility, predicted.confidence)
    )
    return Tracks(np.asarray(anchors, np.int32), positions, visibility, confidence)
