"""The interface of trackers and the settings that all of them have.

To add a tracker, add one file beside this one, and its settings class to `pipeline.config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from manifests.settings import Settings
from shards.clip import ClipInfo, Directions, Tracks, tracked_frames
from shards.errors import PretrackError


class DeviceFullError(PretrackError):
    """Other programs hold the memory that a tracker needs; it may become free later."""


class Tracker(Protocol):
    """Track points through clips. Each worker loads one by its settings' `load()`."""

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Sequence[Tracks]:
        """Track the same query points from each anchor frame through whole clips.

        Forward and backward in time, unless the settings leave a direction out: `leave_untracked`
        makes what is stored for its frames.

        clips:   [T, H, W, 3] each, RGB as stored, all of one shape
        infos:   the description of each clip
        anchors: A frame indices, 0 <= a < T
        queries: [N, 2] (x, y) in pixels of the frame, pixel centres at integers; the same positions
                 are queried in every anchor frame

        Returns the tracks of each clip. In its own anchor frame a point is exactly at its query,
        with visibility and confidence 255. A tracker on a GPU may return before they are computed:
        the first access waits for them, and may raise. Until then the clips must not change.
        """
        ...


@runtime_checkable
class DepthTracker(Protocol):
    """A tracker that reads depth maps and cameras in the place of frames."""

    def track_depth(
        self,
        depths: Sequence[NDArray[np.float32]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Sequence[Tracks]:
        """Track points as `Tracker.track` does.

        depths: [T, H, W] each, in the world units of the cameras, 0 where the depth is unknown;
                zeros for a clip without depth maps
        """
        ...


@runtime_checkable
class PinsFrames(Protocol):
    """A tracker that reads frames faster from memory of its own."""

    def frame_memory(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Allocate memory for the frames of clips, [B, T, H, W, 3]."""
        ...


def clamp_to_frame(positions: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Clamp positions [..., 2] in pixels to at most one frame size outside the frame.

    Lost points may drift far away. `pretrack verify` reports positions much farther out as damage.
    """
    limit = np.array([width, height], np.float32)
    return np.clip(positions, -limit, 2 * limit)


def leave_untracked(tracks: Tracks, directions: Directions) -> Tracks:
    """Replace what frames of a direction that is not tracked hold.

    Points stay at their queries there, with visibility and confidence 0.
    """
    if directions == "both":
        return tracks
    tracked = tracked_frames(tracks.anchors, tracks.positions.shape[1], directions)[:, :, None]
    queries = tracks.positions[np.arange(len(tracks.anchors)), tracks.anchors][:, None]
    return Tracks(
        tracks.anchors,
        np.where(tracked[..., None], tracks.positions, queries),
        np.where(tracked, tracks.visibility, np.uint8(0)),
        np.where(tracked, tracks.confidence, np.uint8(0)),
    )


class TrackerSettings(Settings):
    """Settings of every tracker.

    needs_depth: whether it tracks only clips with depth maps and cameras
    """

    needs_depth: ClassVar[bool] = False

    grid: int = Field(16, ge=1, le=128)
    """Points per side: grid x grid points are tracked from each anchor frame."""
    anchors: tuple[int, ...] = (0, 16, 32)
    """Anchor frames: frames of a clip from which a grid of points is tracked. Anchors beyond the
    end of a short clip are left out; so are those of the default that are beyond
    `frames.clip_frames`. `pretrack plan` names those that training cannot use."""
    directions: Directions = "both"
    """The directions in time in which points are tracked from their anchor frame: `both`, `forward`
    or `backward`. Training only uses frames of tracked directions."""

    def of_content(self) -> dict[str, Any]:
        """Return the settings that decide the tracks' content; they go into the fingerprint."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _omit_both_directions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Tracks of earlier versions go both ways, and their fingerprints have no directions.
        values: dict[str, Any] = serialize(self)
        if values.get("directions") == "both":
            del values["directions"]
        return values

    @field_validator("anchors")
    @classmethod
    def _check_anchors(cls, anchors: tuple[int, ...]) -> tuple[int, ...]:
        if not anchors or list(anchors) != sorted(set(anchors)) or anchors[0] < 0:
            raise ValueError(
                "should be one or more different frame indices in increasing order, "
                "such as [0, 16, 32]"
            )
        return anchors
