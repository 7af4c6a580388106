"""CoTracker3 in a build: many clips at once on a GPU. The network and its functions are in `pipeline.cotracker3`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.cotracker3.weights import RANDOM, load_model, weights_digest
from pipeline.trackers.protocol import TrackerSettings
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError

log = logging.getLogger(__name__)

_WINDOWS = {"offline": 60, "sliding": 16}
_LEAST_MEMORY = 1 << 20


class CoTracker3(TrackerSettings):
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

    def of_content(self) -> dict[str, Any]:
        """The settings that decide what the tracks are; the weights by their digest, wherever they lie."""
        return {**self.model_dump(mode="json", exclude={"device", "memory_gb", "weights"}), "weights": weights_digest(self.weights)}

    def load(self) -> CoTracker3Tracker:
        """The tracker itself. Raises PretrackError if weights, mode and device do not go together."""
        return CoTracker3Tracker(self)


class CoTracker3Tracker:
    """Holds the network on its device."""

    def __init__(self, settings: CoTracker3) -> None:
        try:
            import torch
        except ImportError as error:
            raise PretrackError("tracks.tracker cotracker3 needs torch: pip install 'pretrack[cotracker3]'") from error
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise PretrackError("tracks.device is cuda, and this worker sees no GPU: set ray.tracker_gpus=1, or tracks.device=auto")
        self._device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
        self._model = load_model(settings.weights, self._device)
        if self._model.window != _WINDOWS[settings.mode]:
            kind = {window: mode for mode, window in _WINDOWS.items()}.get(self._model.window, "another")
            raise PretrackError(
                f"the weights {settings.weights} are of the {kind} kind, and tracks.mode is {settings.mode}: change one"
            )
        if settings.weights in RANDOM:
            log.warning("CoTracker3 has random weights: its tracks are meaningless, and only show that everything runs")
        self._settings = settings
        self._memory = int(settings.memory_gb * (1 << 30)) if self._device == "cuda" else 0

    def track(
        self, clips: Sequence[NDArray[np.uint8]], infos: Sequence[ClipInfo], anchors: Sequence[int], queries: NDArray[np.float32]
    ) -> list[Tracks]:
        """See `Tracker.track`. Where a GPU runs out of memory, fewer are tracked at once from then on, and a warning says so."""
        import torch

        while True:
            size = max(1, self._clips_at_once(clips[0], len(anchors), len(queries)))
            try:
                return [
                    tracks
                    for first in range(0, len(clips), size)
                    for tracks in self._track(clips[first : first + size], anchors, queries)
                ]
            except torch.cuda.OutOfMemoryError:
                if self._memory < _LEAST_MEMORY:
                    raise
                self._memory //= 2
                torch.cuda.empty_cache()
                log.warning("out of GPU memory: going on with tracks.memory_gb=%.3g", self._memory / (1 << 30))

    def _clips_at_once(self, clip: NDArray[np.uint8], anchors: int, points: int) -> int:
        """How many clips fit: their maps take 8 MB a frame in float32, and so do 256 points' neighbourhoods."""
        return int(self._memory / (len(clip) * 8e6 * max(1, points * anchors / 256)))

    def _track(self, clips: Sequence[NDArray[np.uint8]], anchors: Sequence[int], queries: NDArray[np.float32]) -> list[Tracks]:
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
        # A lost point may fly off; kept within a frame's size of the picture it stays harmless to store.
        limit = tracked.positions.new_tensor([video.shape[-1], video.shape[-2]])
        positions = tracked.positions.clamp(-limit, 2 * limit).cpu().numpy()
        visibility, confidence = (
            (value * 255).round().to(torch.uint8).cpu().numpy() for value in (tracked.visibility, tracked.confidence)
        )
        frames = np.asarray(anchors, np.int32)
        return [Tracks(frames, positions[i], visibility[i], confidence[i]) for i in range(len(clips))]
