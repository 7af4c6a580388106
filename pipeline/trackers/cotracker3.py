"""CoTracker3 as a tracker of a build.

The network itself and its tracking functions are in `pipeline.cotracker3`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.cotracker3.memory import clips_at_once
from pipeline.cotracker3.weights import CHECKPOINTS, RANDOM_WEIGHTS, WINDOW_FRAMES, load_model
from pipeline.trackers.network_tracker import (
    COMPUTING,
    NetworkTracker,
    NetworkTrackerSettings,
    TrackingNetwork,
    check_torch,
)
from shards.errors import PretrackError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.cotracker3.model import CoTracker3
    from pipeline.network_trackers.predicted_tracks import PredictedTracks

log = logging.getLogger(__name__)


class CoTracker3Settings(NetworkTrackerSettings):
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
    iterations: int = Field(6, ge=1, le=16)
    """Refinement iterations per window."""

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
        content = self.model_dump(mode="json", exclude={*COMPUTING, "weights"})
        # `backend` is no longer a setting, but is part of the fingerprint of all stored tracks.
        return {**content, "backend": "pretrack", "weights": CHECKPOINTS.digest(self.weights)}

    def load(self) -> NetworkTracker:
        """Load the tracker.

        Raises PretrackError if weights, mode and device do not fit each other, or torch is missing.
        """
        check_torch("cotracker3")
        return NetworkTracker(self, _network(self))


def _network(settings: CoTracker3Settings) -> TrackingNetwork:
    """Describe the network, with the settings of its tracks."""
    fast = settings.precision == "fast"

    def track(
        model: CoTracker3, video: Tensor, anchors: Sequence[int], queries: Tensor, memory: int
    ) -> PredictedTracks:
        from pipeline.cotracker3.tracking import track

        return track(
            model,
            video,
            grid=queries,
            anchors=anchors,
            forward=settings.directions != "backward",
            backward=settings.directions != "forward",
            fast=fast,
            iterations=settings.iterations,
            memory=memory,
        )

    return TrackingNetwork(
        name="CoTracker3",
        load=lambda device, compiled: _load_model_for_mode(settings, device, compiled),
        track=track,
        clips_at_once=lambda memory, frames, frame_bytes: clips_at_once(
            memory, frames=frames, frame_bytes=frame_bytes, fast=fast
        ),
        spare_memory="lower frames.clip_frames or tracks.grid, give a worker more of the GPU "
        "(ray.tracker_gpus=1), or set tracks.mode=sliding and its weights",
    )


def _load_model_for_mode(settings: CoTracker3Settings, device: str, compiled: bool) -> CoTracker3:
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
