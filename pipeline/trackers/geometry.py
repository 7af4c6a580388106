"""Tracks of static scenes from depth maps and cameras, without looking at a frame.

A query is unprojected by the depth of its pixel and projected into every frame. There the depth map
says what is seen, and two tests compare it with the point, in both directions:

    forward   f = |depth of the point / depth that is seen - 1| / depth_tolerance
    backward  b = distance in pixels of what is seen, projected into the anchor frame, from the
                  query / tolerance_px

    p = 1 / (1 + max(f, b)^2)      probability that the point is what is seen; 1/2 at a tolerance

Between pixels the *inverse* depth is interpolated, which is exact on planes. Where the four
neighbours are not on one surface, the nearest known one is extended by its own slope.

Legend of shapes: T frames, N points, P any number of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.trackers.protocol import TrackerSettings, clamp_to_frame, leave_untracked
from shards.clip import Camera, ClipInfo, Tracks
from shards.epipolar import read_poses
from shards.errors import PretrackError
from shards.geometry import inside

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SMOOTH = 0.01
"""Relative step of the inverse depth that interrupts a surface. On a plane that is tilted by any
angle, the step from pixel to pixel stays the same."""
_STEEPEST = 0.05
"""Relative step of the inverse depth from pixel to pixel that is no slope, but an edge."""
_UNCHECKED = 0.5
"""Confidence of a position that no depth confirms: of a hidden point, and of one on an edge."""
_DIAGONAL = 2.0
"""The largest squared distance of a position from a corner of its cell."""
_PATCH = np.arange(-1, 3)
"""Pixels around a position along one axis, relative to the one before it."""


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
        cameras = _Cameras.read(info)
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
        self, inverse: Floats, cameras: _Cameras, anchor: int, queries: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Follow queries [N, 2] from an anchor frame: positions [T, N, 2], visibility, confidence.

        inverse: the inverse depths [T, H, W], NaN where they are unknown
        """
        t, height, width = inverse.shape
        frames = np.arange(t)[:, None]
        start, smooth = _inverse_depth_at(inverse, np.full(len(queries), anchor), queries)
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
        seen[within], _ = _inverse_depth_at(inverse, of_frame, positions[within], least)
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


@dataclass(frozen=True, eq=False)
class _Cameras:
    """The cameras of a clip's frames; those that are not usable hold the identity.

    usable:   bool [T]
    focals:   [T, 2], in pixels; centres [T, 2]
    rotations: [T, 3, 3] and shifts [T, 3], world to camera; inverses [T, 3, 3] of the rotations
    """

    usable: Mask
    focals: Floats
    centres: Floats
    rotations: Floats
    shifts: Floats
    inverses: NDArray[np.floating]

    @classmethod
    def read(cls, info: ClipInfo) -> _Cameras:
        """Read the cameras of a clip."""
        poses = read_poses(info.cameras, info.frames)
        # `poses` are in a scaled world, and depths are in the world of the description.
        cameras: Sequence[Camera | None] = info.cameras or (None,) * info.frames
        shifts = np.zeros((info.frames, 3))
        for t, camera in enumerate(cameras):
            if camera and poses.usable[t]:
                shifts[t] = np.reshape(camera.world_to_camera, (3, 4))[:, 3]
        return cls(
            usable=poses.usable,
            focals=poses.focals,
            centres=poses.centres,
            rotations=poses.rotations,
            shifts=shifts,
            inverses=np.linalg.inv(poses.rotations),
        )

    def rays(self, frames: int | NDArray[np.int64], pixels: Floats) -> Floats:
        """Return the points at depth 1 of pixels [P, 2], one frame for all or one each: [P, 3]."""
        plane = (pixels - self.centres[frames]) / self.focals[frames]
        return np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1)

    def between(
        self, start: int | NDArray[np.int64], end: int | NDArray[np.int64], points: Floats
    ) -> Floats:
        """Move points [..., 3] from one camera's axes to another's; frames broadcast to [...]."""
        world = np.einsum("...ij,...j->...i", self.inverses[start], points - self.shifts[start])
        return np.einsum("...ij,...j->...i", self.rotations[end], world) + self.shifts[end]

    def project(self, frames: int | NDArray[np.int64], points: Floats) -> Floats:
        """Project points [..., 3] in the axes of cameras to pixels [..., 2]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = points[..., :2] / points[..., 2:]
        return plane * self.focals[frames] + self.centres[frames]


def _inverse_depth_at(
    inverse: Floats,
    frames: NDArray[np.int64],
    positions: Floats,
    least: Floats | None = None,
) -> tuple[Floats, Mask]:
    """Return the inverse depths [P] at positions [P, 2] in frames [P], NaN where unknown.

    least: of neighbours on several surfaces, those with a smaller inverse depth [P] count only if
           there are no others

    Also returns where the four neighbours are on one surface [P], so that they were interpolated.
    """
    _, height, width = inverse.shape
    x = positions[:, 0].clip(0, width - 1)
    y = positions[:, 1].clip(0, height - 1)
    left = np.minimum(x.astype(np.int64), width - 2)
    top = np.minimum(y.astype(np.int64), height - 2)
    dx, dy = x - left, y - top
    rows = (top[:, None] + _PATCH).clip(0, height - 1)
    columns = (left[:, None] + _PATCH).clip(0, width - 1)
    patch = inverse[frames[:, None, None], rows[:, :, None], columns[:, None, :]]  # [P, 4, 4]
    corners = patch[:, 1:3, 1:3]
    smooth = np.isfinite(corners).all(axis=(1, 2))
    smooth &= _continues(patch[:, 1:3]) & _continues(patch[:, :, 1:3].swapaxes(1, 2))
    weights_x, weights_y = np.stack([1 - dx, dx], 1), np.stack([1 - dy, dy], 1)
    mixed = np.einsum("pij,pi,pj->p", corners, weights_y, weights_x)
    result = np.where(smooth, mixed, np.nan)
    rest = np.flatnonzero(~smooth)
    extended, distance = _extended(patch[rest], dx[rest], dy[rest])
    if least is not None:
        behind = extended < least[rest, None]
        distance += np.where(behind, 2 * _DIAGONAL, 0)  # so that those before them come first
    result[rest] = extended[np.arange(len(rest)), distance.argmin(axis=1)]
    return result, smooth


def _continues(lines: Floats) -> Mask:
    """Tell whether both lines of a cell's neighbours [P, 2, 4] go on through the cell: [P].

    The step across the cell is small, or as large as the step before it or after it.
    """
    before, step, after = np.moveaxis(np.diff(lines, axis=2), 2, 0)
    change = np.fmin(np.fmin(np.abs(step - before), np.abs(step - after)), np.abs(step))
    small: Mask = (change <= _SMOOTH * np.minimum(lines[..., 1], lines[..., 2])).all(axis=1)
    return small


def _extended(patch: Floats, dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Extend the surfaces of the four corners of a cell, each by its own slope.

    patch:  [P, 4, 4] around the cell; dx, dy: position in the cell [P]

    Returns the values at the position [P, 4], NaN for unknown corners, and how far each corner is
    from it, squared [P, 4]; infinite for unknown ones.
    """
    values, distances = [], []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # Of the two steps beside the corner, the smaller one stays on its surface.
        along_x = _smaller_step(patch[:, row + 1, column : column + 3])
        along_y = _smaller_step(patch[:, row : row + 3, column + 1])
        corner = patch[:, row + 1, column + 1]
        values.append(corner + along_x * (dx - column) + along_y * (dy - row))
        distance = (dx - column) ** 2 + (dy - row) ** 2
        distances.append(np.where(np.isfinite(corner), distance, np.inf))
    return np.stack(values, axis=1), np.stack(distances, axis=1)


def _smaller_step(line: Floats) -> Floats:
    """Return the smaller step to or from the middle of lines [P, 3]; 0 if both are edges."""
    before, after = np.diff(line, axis=1).T
    first = np.isnan(after) | (np.abs(before) < np.abs(after))
    step = np.where(first, before, after)
    return np.where(np.abs(step) <= _STEEPEST * line[:, 1], step, 0)
