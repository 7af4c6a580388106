"""CoTracker3 in a build: many clips at once on a GPU. The network and its functions are in `pipeline.cotracker3`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.cotracker3.weights import RANDOM, WINDOWS, load_model, weights_digest
from pipeline.trackers.protocol import Tracker, TrackerSettings, clamp_to_frame
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError, first_line

if TYPE_CHECKING:
    from pipeline.cotracker3.model import CoTracker3 as Network
    from pipeline.cotracker3.tracking import Tracked

log = logging.getLogger(__name__)

_LEAST_MEMORY = 64 << 20
"""Bytes. With less, nothing but single frames, anchors and clips fits; that is what 0 stands for."""


class CoTracker3Settings(TrackerSettings):
    """Settings of CoTracker3. Its official weights are CC BY-NC 4.0: not for commercial use."""

    tracker: Literal["cotracker3"]
    """Which tracker follows the points."""
    version: Literal[1] = 1
    """Raised by hand when the code's results change, so that old tracks are made again."""
    weights: str = "scaled_offline"
    """A checkpoint file; or an official name (scaled_offline, scaled_online, baseline_offline, baseline_online), looked up in the
    Hugging Face cache; or random_offline, random_online, which track nothing and show that everything runs."""
    mode: Literal["offline", "sliding"] = "offline"
    """`offline` sees all frames of a clip at once; `sliding` moves a window of 16 frames, for clips too long for that. Each has its
    own weights."""
    precision: Literal["fast", "exact"] = "fast"
    """`fast` computes in bfloat16 where that is safe, `exact` in float32 throughout."""
    iterations: int = Field(6, ge=1, le=16)
    """How often a window's tracks are refined."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA if the worker has a GPU (ray.tracker_gpus)."""
    memory_gb: float = Field(4.0, gt=0)
    """What the largest intermediate result may take on a GPU: more tracks more clips at once. Halved where memory runs out."""
    compile: bool = True
    """Have `torch.compile` make kernels, which every worker waits for at its first clips. Only for `precision: fast` on CUDA."""

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_backend(cls, values: Any) -> Any:
        # Snapshots built by earlier versions store `backend: pretrack`; the published package was the other choice.
        if isinstance(values, dict) and "backend" in values:
            if values["backend"] != "pretrack":
                raise ValueError("backend has only one value left, pretrack: leave it out")
            return {name: value for name, value in values.items() if name != "backend"}
        return values

    def of_content(self) -> dict[str, Any]:
        """The settings that decide what the tracks are; the weights by their digest, wherever they lie.

        Where and how they are computed is left out: device, memory and compilation change roundings only.
        """
        computing = {"device", "memory_gb", "compile"}
        content = self.model_dump(mode="json", exclude={*computing, "weights"})
        # `backend` is no longer a setting, but part of the fingerprint of all tracks stored so far.
        return {**content, "backend": "pretrack", "weights": weights_digest(self.weights)}

    def load(self) -> Tracker:
        """The tracker itself. Raises PretrackError if weights, mode and device do not go together, or a package is missing."""
        return CoTracker3Tracker(self)


class CoTracker3Tracker:
    """Holds the network on its device."""

    def __init__(self, settings: CoTracker3Settings) -> None:
        self._settings = settings
        self._device = find_device(settings)
        self._compiled = (
            settings.compile and settings.precision == "fast" and self._device == "cuda"
        )
        self._model = load_network(settings, self._device, self._compiled)
        self._memory = int(settings.memory_gb * (1 << 30)) if self._device == "cuda" else 0

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """See `Tracker.track`. Where a GPU runs out of memory, fewer are tracked at once from then on, and a warning says so.

        Raises PretrackError if not even one anchor of one clip fits.
        """
        import torch

        while True:
            size = max(1, self._clips_at_once(clips[0], len(anchors), len(queries)))
            try:
                return [
                    tracks
                    for first in range(0, len(clips), size)
                    for tracks in self._track(clips[first : first + size], anchors, queries)
                ]
            except torch.cuda.OutOfMemoryError as error:
                self._take_less(error)
                torch.cuda.empty_cache()
            except RuntimeError as error:  # which all errors of compilation are
                if not self._compiled:
                    raise
                self._do_without_compilation(error)

    def _take_less(self, error: Exception) -> None:
        """Halves the memory to use. Raises PretrackError if there is nothing left to halve."""
        if self._memory == 0:
            raise PretrackError(
                "the GPU's memory is too small even for one anchor of one clip: lower frames.clip_frames or tracks.grid, give a "
                "worker more of the GPU (ray.tracker_gpus=1), or set tracks.mode=sliding and its weights"
            ) from error
        self._memory = self._memory // 2 if self._memory > _LEAST_MEMORY else 0
        log.warning(
            "out of GPU memory: tracking fewer at once from now on (tracks.memory_gb=%.3g)",
            self._memory / (1 << 30),
        )

    def _do_without_compilation(self, error: Exception) -> None:
        log.warning(
            "torch.compile does not work here (%s): going on without, as with tracks.compile=false",
            first_line(error),
        )
        self._compiled = False
        self._model = load_network(self._settings, self._device)

    def _clips_at_once(self, clip: NDArray[np.uint8], anchors: int, points: int) -> int:
        """How many clips fit: their maps take 8 MB a frame in float32, and so do 256 points' neighbourhoods."""
        return int(self._memory / (len(clip) * 8e6 * max(1, points * anchors / 256)))

    def _track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        import torch

        from pipeline.cotracker3.tracking import track

        video = torch.from_numpy(np.stack(clips)).to(self._device).permute(0, 1, 4, 2, 3)
        tracked = track(
            self._model,
            video,
            grid=torch.from_numpy(queries),
            anchors=anchors,
            fast=self._settings.precision == "fast",
            iterations=self._settings.iterations,
            memory=self._memory,
        )
        return [
            as_tracks(tracked, clip, anchors, video.shape[-1], video.shape[-2])
            for clip in range(len(clips))
        ]


def find_device(settings: CoTracker3Settings) -> str:
    """`cuda` or `cpu`. Raises PretrackError if torch is missing, or a GPU that the settings want."""
    try:
        import torch
    except ImportError as error:
        raise PretrackError(
            "tracks.tracker cotracker3 needs torch: pip install 'pretrack[cotracker3]'"
        ) from error
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise PretrackError(
            "tracks.device is cuda, and this worker sees no GPU: set ray.tracker_gpus=1, or tracks.device=auto"
        )
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def load_network(settings: CoTracker3Settings, device: str, compiled: bool = False) -> Network:
    """The network with its weights. Raises PretrackError if there are none, or they are not made for the settings' mode."""
    network = load_model(settings.weights, device, compiled)
    if network.window != WINDOWS[settings.mode]:
        kind = {window: mode for mode, window in WINDOWS.items()}.get(network.window, "another")
        raise PretrackError(
            f"the weights {settings.weights} are of the {kind} kind, and tracks.mode is {settings.mode}: change one"
        )
    if settings.weights in RANDOM:
        log.warning(
            "CoTracker3 has random weights: its tracks are meaningless, and only show that everything runs"
        )
    return network


def as_tracks(
    tracked: Tracked, clip: int, anchors: Sequence[int], width: int, height: int
) -> Tracks:
    """What was found in a clip (its index), as it is stored."""
    positions = clamp_to_frame(tracked.positions[clip].cpu().numpy(), width, height)
    visibility, confidence = (
        np.rint(value[clip].cpu().numpy() * 255).astype(np.uint8)
        for value in (tracked.visibility, tracked.confidence)
    )
    return Tracks(np.asarray(anchors, np.int32), positions, visibility, confidence)
