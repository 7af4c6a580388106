"""Tracks of static scenes from depth maps and cameras, without looking at a frame.

A query is unprojected by the depth of its pixel and projected into every frame. There the depth map
says what is seen, and two tests compare it with the point, in both directions:

    forward   f = |depth of the point / depth that is seen - 1| / depth_tolerance
    backward  b = distance in pixels of what is seen, projected into the anchor frame, from the
                  query / tolerance_px

    p = 1 / (1 + max(f, b)^2)      probability that the point is what is seen; 1/2 at a tolerance

Between pixels the *inverse* depth is interpolated (`shards.depth_sampling`).

Legend of shapes: T frames, N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import ClipInfo, Tracks
from shards.clip_cameras import ClipCameras
from shards.depth_sampling import inverse_depth_at
from shards.errors import PretrackError
from shards.geometry import inside

Floats = NDArray[np.float64]

_UNCHECKED = 0.5
"""Confidence of a position that no depth confirms: of a hidden point, and of one on an edge."""


class GeometrySettings(TrackerSettings):
    """Settings of tracks from depth and cameras. Only for scenes in which nothing moves."""

    tracker: Literal["geometry"]
    """The tracker: depth maps and cameras of a static scene. Needs `frames.depth: true`."""
    version: Literal[1] = 1
    """Incremented by hand when the code's results change, so that stored tracks are recomputed."""
    depth_tolerance: float = Field(0.02, gt=0, lt=1)
    """Relative difference of depths at which a point is as likely hidden as visible."""
    tolerance_px: float = Field(1.0, gt=0)
    """Distance, in pixels of the anchor frame, of what is seen from the query, at which a point is
    as likely hidden as visible."""
    needs_depth: ClassVar[bool] = True

    def load(self) -> GeometryTracker:
        """Make the tracker."""
        return GeometryTracker(self)


class GeometryTracker:
    """Track points by depth maps and cameras. The only state is its settings."""

    def __init__(self, settings: GeometrySettings) -> None:
        self._settings = settings

    def track_depth(
        self,
        depths: Sequence[NDArray[np.float32]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Track points through each clip by itself. See `DepthTracker.track_depth`.

        Where nothing can be computed, a point is at its query with visibility and confidence 0: in
        frames without a usable camera or behind the camera, and in all other frames if the depth at
        the query is unknown.

        Raises PretrackError for a clip without depth maps or without two usable cameras.
        """
        directions = self._settings.directions
        return [
            leave_untracked(self._track(depth, info, anchors, queries), directions)
            for depth, info in zip(depths, infos, strict=True)
        ]

    def _track(
        self,
        depth: NDArray[np.float32],
        info: ClipInfo,
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Tracks:
        if info.depth_scale is None:
            raise PretrackError(
                f"the clip {info.key} has no depth maps: only sources that have them, built with "
                "frames.depth: true, can be tracked by geometry"
            )
        cameras = ClipCameras.read(info)
        if cameras.usable.sum() < 2:
            raise PretrackError(
                f"the clip {info.key} has no two usable cameras, and geometry needs them"
            )
        with np.errstate(divide="ignore"):
            inverse = np.where(depth > 0, 1 / depth.astype(np.float64), np.nan)
        shape = (len(anchors), info.frames, len(queries))
        positions = np.broadcast_to(queries, (*shape, 2)).astype(np.float64)
        visibility, confidence = np.zeros(shape), np.zeros(shape)
        for row, anchor in enumerate(anchors):
            if cameras.usable[anchor]:
                found = self._follow(inverse, cameras, anchor, queries.astype(np.float64))
                positions[row], visibility[row], confidence[row] = found
            # Rounding must not move a point off its query.
            positions[row, anchor] = queries
            visibility[row, anchor] = confidence[row, anchor] = 1
        return Tracks(
            np.asarray(anchors, np.int32),
            clamp_to_frame(positions.astype(np.float32), info.width, info.height),
            np.rint(visibility * 255).astype(np.uint8),
            np.rint(confidence * 255).astype(np.uint8),
        )

    def _follow(
        self, inverse: Floats, cameras: ClipCameras, anchor: int, queries: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Follow queries [N, 2] from an anchor frame: positions [T, N, 2], visibility, confidence.

        inverse: the inverse depths [T, H, W], NaN where they are unknown
        """
        t, height, width = inverse.shape
        frames = np.arange(t)[:, None]
        start, smooth = inverse_depth_at(inverse, np.full(len(queries), anchor), queries)
        # Forward: where the points are, and how far from the camera.
        rays = cameras.rays(anchor, queries)  # [N, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            on_surface = rays / start[:, None]
        points = cameras.between(anchor, frames, on_surface)  # [T, N, 3]
        positions = cameras.project(frames, points)
        in_front = (points[..., 2] > 0) & np.isfinite(positions).all(axis=-1)
        in_front &= cameras.usable[:, None]
        within = in_front & inside(np.where(in_front[..., None], positions, -1e9), width, height)
        # Backward: what is seen there, and where it lies in the anchor frame.
        seen = np.full(within.shape, np.nan)
        back = np.full((*within.shape, 2), np.nan)
        of_frame = np.nonzero(within)[0]
        # A surface behind the point cannot hide it.
        least = (1 - self._settings.depth_tolerance) / points[within][:, 2]
        seen[within], _ = inverse_depth_at(inverse, of_frame, positions[within], least)
        surface = cameras.rays(of_frame, positions[within]) / seen[within][:, None]
        back[within] = cameras.project(anchor, cameras.between(of_frame, anchor, surface))
        ratio = points[..., 2] * seen
        forward_error = np.abs(ratio - 1) / self._settings.depth_tolerance
        backward_error = np.linalg.norm(back - queries, axis=-1) / self._settings.tolerance_px
        p = 1 / (1 + np.maximum(forward_error, backward_error) ** 2)
        checked = np.isfinite(p)
        visibility = np.where(checked, p, 0)
        # Depth does not confirm the position of a point behind something, outside or unknown. A
        # point in front of what is seen contradicts it: the scene moves, or a depth is wrong.
        hidden = ~checked | (ratio > 1)
        confidence = np.where(hidden, np.maximum(visibility, _UNCHECKED), visibility)
        confidence *= np.where(smooth, 1, _UNCHECKED)
        positions = np.where(in_front[..., None], positions, queries)
        return positions, visibility * in_front, confidence * in_front
