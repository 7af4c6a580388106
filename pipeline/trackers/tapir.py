"""TAPIR and BootsTAPIR as a tracker of a build.

The network itself and its tracking functions are in `pipeline.tapir`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from pipeline.tapir.memory import clips_at_once
from pipeline.tapir.sides import BASE_SIDE, level_sides
from pipeline.tapir.weights import (
    CHECKPOINTS,
    OFFICIAL_MODES,
    RANDOM_WEIGHTS,
    Mode,
    load_model,
)
from pipeline.trackers.network_tracker import (
    COMPUTING,
    NetworkTracker,
    NetworkTrackerSettings,
    TrackingNetwork,
    check_torch,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.network_trackers.predicted_tracks import PredictedTracks
    from pipeline.tapir.model import Tapir

log = logging.getLogger(__name__)


class TapirSettings(NetworkTrackerSettings):
    """Settings of TAPIR. Its official weights are Apache-2.0: commercial use is allowed."""

    tracker: Literal["tapir"]
    """The tracker: TAPIR, by default with the weights of BootsTAPIR."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""
    weights: str = "bootstapir"
    """A checkpoint file; or an official name (bootstapir, causal_bootstapir), looked up in the
    Hugging Face cache; or random, which tracks nothing and only shows that everything runs."""
    mode: Mode = "offline"
    """`offline` sees all frames of a clip at once, in one pass for both directions; `causal` sees
    earlier frames only. Each mode has its own weights, and a file does not tell which it has."""
    iterations: int = Field(4, ge=1, le=16)
    """Refinement iterations per resolution."""
    side: int = Field(BASE_SIDE, ge=64, le=1024, multiple_of=8)
    """Frames are resized to side x side pixels. Larger values help only where frames are stored
    larger, and take more time; smaller ones than 256 are faster and less exact."""
    temperature: float = Field(20.0, gt=0)
    """Factor of the first estimates' scores: 20 in the published PyTorch code, 10 in the JAX
    configurations of BootsTAPIR."""

    @model_validator(mode="after")
    def _check_mode(self) -> TapirSettings:
        expected = OFFICIAL_MODES.get(self.weights, self.mode)
        if self.mode != expected:
            raise ValueError(
                f"the weights {self.weights} are of the {expected} kind, and mode is {self.mode}: "
                "change one"
            )
        return self

    def of_content(self) -> dict[str, Any]:
        """Return the settings that decide the tracks' content, with weights given by their digest.

        Device, memory and compilation are left out: they change nothing but rounding. Raises
        PretrackError if the weights are missing or damaged.
        """
        content = self.model_dump(mode="json", exclude={*COMPUTING, "weights"})
        return {**content, "weights": CHECKPOINTS.digest(self.weights)}

    def load(self) -> NetworkTracker:
        """Load the tracker. Raises PretrackError if there are no such weights, or no torch."""
        check_torch("tapir")
        return NetworkTracker(self, _network(self))


def _network(settings: TapirSettings) -> TrackingNetwork:
    """Describe the network, with the settings of its tracks."""
    from pipeline.tapir.tracking import track

    fast, base_side = settings.precision == "fast", min(BASE_SIDE, settings.side)

    def load(device: str, compiled: bool) -> Tapir:
        if settings.weights == RANDOM_WEIGHTS:
            log.warning(
                "TAPIR has random weights: its tracks are meaningless, "
                "and only show that everything runs"
            )
        return load_model(
            settings.weights, device, compiled, mode=settings.mode, base_side=base_side
        )

    def track_grid(
        model: Tapir, video: Tensor, anchors: Sequence[int], queries: Tensor, memory: int
    ) -> PredictedTracks:
        return track(
            model,
            video,
            grid=queries,
            anchors=anchors,
            forward=settings.directions != "backward",
            backward=settings.directions != "forward",
            fast=fast,
            iterations=settings.iterations,
            side=settings.side,
            temperature=settings.temperature,
            memory=memory,
        )

    def clips_that_fit(memory: int, frames: int, frame_bytes: int) -> int:
        sides = level_sides(base_side, settings.side)
        return clips_at_once(memory, frames=frames, frame_bytes=frame_bytes, sides=sides, fast=fast)

    return TrackingNetwork(
        name="TAPIR",
        load=load,
        track=track_grid,
        clips_at_once=clips_that_fit,
        spare_memory="lower frames.clip_frames or tracks.side, or give a worker more of the GPU "
        "(ray.tracker_gpus=1)",
    )
