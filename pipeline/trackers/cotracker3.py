"""CoTracker3 as a tracker of a build, which tracks many clips at once on a GPU.

The network itself and its tracking functions are in `pipeline.cotracker3`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.cotracker3.memory import clips_at_once
from pipeline.cotracker3.weights import RANDOM_WEIGHTS, WINDOW_FRAMES, load_model, weights_digest
from pipeline.trackers.batching import split_evenly
from pipeline.trackers.protocol import Tracker, TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError, first_line

if TYPE_CHECKING:
    from pipeline.cotracker3.model import CoTracker3
    from pipeline.cotracker3.tracking import PredictedTracks

log = logging.getLogger(__name__)

_MIN_MEMORY = 64 << 20
"""Bytes. With less, memory is set to 0, which tracks one frame, anchor and clip at a time."""


class CoTracker3Settings(TrackerSettings):
    """Settings of CoTracker3. Its official weights are CC BY-NC 4.0: not for commercial use."""

    tracker: Literal["cotracker3"]
    """The tracker: CoTracker3."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""
    weights: str = "scaled_offline"
    """A checkpoint file; or an official name (scaled_offline, scaled_online, baseline_offline,
    baseline_online), looked up in the Hugging Face cache; or random_offline or random_online, which
    track nothing and only show that everything runs."""
    mode: Literal["offline", "sliding"] = "offline"
    """`offline` sees all frames of a clip at once; `sliding` moves a window of 16 frames over clips
    that are too long for that. Each mode has its own weights."""
    precision: Literal["fast", "exact"] = "fast"
    """`fast` computes in bfloat16 where that is safe, `exact` in float32 throughout."""
    iterations: int = Field(6, ge=1, le=16)
    """Refinement iterations per window."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses CUDA if the worker has a GPU (ray.tracker_gpus)."""
    memory_gb: float = Field(4.0, gt=0)
    """GPU memory for clips, their feature maps and intermediate results. A larger value tracks more
    clips at once. It is halved when the GPU runs out of memory."""
    compile: bool = True
    """Use `torch.compile`. Every worker waits for the compilation at its first clips. It applies
    only to `precision: fast` on CUDA."""

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_backend(cls, values: Any) -> Any:
        # Snapshots of earlier versions store `backend: pretrack`; the other value was the
        # published package.
        if isinstance(values, dict) and "backend" in values:
            if values["backend"] != "pretrack":
                raise ValueError("backend has only one value left, pretrack: leave it out")
            return {name: value for name, value in values.items() if name != "backend"}
        return values

    def of_content(self) -> dict[str, Any]:
        """Return the settings that decide the tracks' content, with weights given by their digest.

        Device, memory and compilation are left out: they change nothing but rounding. Raises
        PretrackError if the weights are missing or damaged.
        """
        computing = {"device", "memory_gb", "compile"}
        content = self.model_dump(mode="json", exclude={*computing, "weights"})
        # `backend` is no longer a setting, but is part of the fingerprint of all stored tracks.
        return {**content, "backend": "pretrack", "weights": weights_digest(self.weights)}

    def load(self) -> Tracker:
        """Load the tracker.

        Raises PretrackError if weights, mode and device do not fit each other, or torch is missing.
        """
        return CoTracker3Tracker(self)


class CoTracker3Tracker:
    """Track clips with the network on its device."""

    def __init__(self, settings: CoTracker3Settings) -> None:
        _check_torch()
        from pipeline.cotracker3.gpu import (
            CopyStreams,
            choose_device,
            is_out_of_memory,
            no_memory_to_load,
        )

        self._settings = settings
        self._fast = settings.precision == "fast"
        self._device = choose_device(settings.device, fast=self._fast)
        on_gpu = self._device == "cuda"
        self._compiled = settings.compile and self._fast and on_gpu
        try:
            self._model = _load_model_for_mode(settings, self._device, self._compiled)
            self._streams = CopyStreams() if on_gpu else None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise no_memory_to_load() from error
        self._memory = int(settings.memory_gb * (1 << 30)) if on_gpu else 0

    def frame_memory(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate memory for frames; on a GPU, memory that it reads without waiting."""
        from pipeline.cotracker3.gpu import pinned_frames

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

        from pipeline.cotracker3.gpu import is_cuda_error, is_out_of_memory

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
                "the GPU's memory is too small even for one anchor of one clip: lower "
                "frames.clip_frames or tracks.grid, give a worker more of the GPU "
                "(ray.tracker_gpus=1), or set tracks.mode=sliding and its weights"
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
        self._model = _load_model_for_mode(self._settings, self._device)

    def _clips_at_once(self, clip: NDArray[np.uint8]) -> int:
        """Return how many clips of this shape fit the memory; 0 if not even one does."""
        return clips_at_once(
            self._memory, frames=len(clip), frame_bytes=clip[0].nbytes, fast=self._fast
        )

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

        from pipeline.cotracker3.tracking import PredictedTracks, track

        streams = self._streams
        stacked = streams.upload(clips) if streams else torch.from_numpy(np.stack(clips))
        video = stacked.permute(0, 1, 4, 2, 3)
        predicted = track(
            self._model,
            video,
            grid=torch.from_numpy(queries),
            anchors=anchors,
            forward=self._settings.directions != "backward",
            backward=self._settings.directions != "forward",
            fast=self._fast,
            iterations=self._settings.iterations,
            memory=self._memory,
        )
        size = video.shape[-1], video.shape[-2]
        directions = self._settings.directions
        values = predicted.positions, predicted.visibility, predicted.confidence
        download = streams.download(values, read=clips) if streams else None

        def stored() -> list[Tracks]:
            on_host = PredictedTracks(*(download.wait() if download else values))
            return [
                leave_untracked(_stored_tracks(on_host, clip, anchors, size), directions)
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


def _check_torch() -> None:
    """Raise PretrackError if torch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise PretrackError(
            "tracks.tracker cotracker3 needs torch: pip install 'pretrack[cotracker3]'"
        ) from error


def _load_model_for_mode(
    settings: CoTracker3Settings, device: str, compiled: bool = False
) -> CoTracker3:
    """Load the network, and check that its weights are made for the settings' mode.

    Raises PretrackError if they are not, or if there are no such weights.
    """
    model = load_model(settings.weights, device, compiled)
    if model.window != WINDOW_FRAMES[settings.mode]:
        kind = {frames: mode for mode, frames in WINDOW_FRAMES.items()}.get(model.window, "another")
        raise PretrackError(
            f"the weights {settings.weights} are of the {kind} kind, "
            f"and tracks.mode is {settings.mode}: change one"
        )
    if settings.weights in RANDOM_WEIGHTS:
        log.warning(
            "CoTracker3 has random weights: its tracks are meaningless, "
            "and only show that everything runs"
        )
    return model


def _stored_tracks(
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
