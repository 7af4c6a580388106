"""What a clip's cameras and masks tell about its points: viewing angles, epipolar lines, objects.

Legend of shapes: T shown frames, the anchor first; N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.clip import VISIBLE_THRESHOLD, ClipInfo
from shards.epipolar import Poses, fundamental_matrices, read_poses, triangulate
from shards.frame_maps import decode_masks
from trainer.evaluate.geometry import angles_between

Floats = NDArray[np.float64]

_CONSISTENT_PX = 4.0
"""A point's viewing angle in a frame counts if the triangulated point is shown this near to its
track there, in pixels of the stored frame, or the track this near to its epipolar line if too few
frames show the point to triangulate it. Points of moving objects and lost tracks are not."""


@dataclass(frozen=True, eq=False)
class PointLabels:
    """What is known of a clip's N points in its T shown frames.

    angles:  float [T, N], degrees between the rays from the anchor's camera and from each frame's
             to the point; NaN if unknown
    lines:   float [T, N, 3], the point's epipolar line (a, b, c) in each frame with a x + b y + c
             the distance in pixels of the stored frame; NaN where there is none
    objects: bool [N], whether the mask of the anchor frame says that the point lies on an object;
             None for a clip without masks
    """

    angles: Floats
    lines: Floats
    objects: NDArray[np.bool_] | None


def label_points(
    info: ClipInfo,
    numbers: Sequence[int],
    positions: NDArray[np.float32],
    visibility: NDArray[np.uint8],
    mask: bytes | None,
) -> PointLabels:
    """Label the points of an anchor.

    numbers:    the shown frames within the clip, the anchor first
    positions:  [F, N, 2], the anchor's tracks in all F frames of the clip, in stored pixels
    visibility: [F, N], as stored
    mask:       the encoded mask of the anchor frame, None for a clip without

    Raises ShardError for a damaged mask.
    """
    poses = read_poses(info.cameras, info.frames)
    queries = positions[numbers[0]].astype(np.float64)
    unknown = np.full((len(numbers), len(queries)), np.nan)
    angles, lines = unknown, np.repeat(unknown[..., None], 3, axis=2)
    if poses.differ and poses.usable[numbers[0]]:
        tracks = np.moveaxis(positions.astype(np.float64), -1, 0)[:, None]
        visible = visibility[None] >= VISIBLE_THRESHOLD
        lines = _epipolar_lines(poses, numbers, queries)
        angles, triangulated = _viewing_angles(poses, numbers, tracks, visible)
        angles = np.where(triangulated, angles, _ray_angles(poses, numbers, tracks[:, 0], lines))
    return PointLabels(angles, lines, None if mask is None else _on_objects(mask, info, queries))


def _viewing_angles(
    poses: Poses, numbers: Sequence[int], tracks: Floats, visible: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the degrees between the rays to the triangulated points: [T, N].

    tracks: [2, 1, F, N]; visible: [1, F, N]

    Also returns which points are seen in enough frames to be triangulated: bool [N].
    """
    anchor = numbers[0]
    found = triangulate(poses, np.array([anchor], np.int32), tracks, visible)
    # From pixel and depth of the anchor frame to the world and to each frame.
    in_anchor = (tracks[:, 0, anchor].T - poses.centres[anchor]) / poses.focals[anchor]
    points = np.concatenate([in_anchor, np.ones((len(in_anchor), 1))], axis=1)
    points *= found.depths[0][:, None]
    world = (points - poses.shifts[anchor]) @ poses.rotations[anchor]  # R^T (X - shift), as rows
    rays = world - poses.positions[:, None]  # [F, N, 3]
    angles = angles_between(rays[[anchor]], rays[list(numbers)])
    # A camera that only turns sees every point from the same side.
    angles[poses.baselines[anchor, list(numbers)] == 0] = 0.0
    shown = np.einsum("tij,nj->tni", poses.rotations, world) + poses.shifts[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = shown[..., :2] / shown[..., 2:] * poses.focals[:, None] + poses.centres[:, None]
        away = np.linalg.norm(pixels - np.moveaxis(tracks[:, 0], 0, -1), axis=-1)
    known = (away <= _CONSISTENT_PX) & (shown[..., 2] > 0) & poses.usable[:, None]
    known &= np.isfinite(found.errors[0])
    return np.where(known[list(numbers)], angles, np.nan), ~np.isnan(found.errors[0])


def _ray_angles(poses: Poses, numbers: Sequence[int], tracks: Floats, lines: Floats) -> Floats:
    """Return the degrees between the rays on which tracks [2, F, N] see their points: [T, N]."""
    shown = list(numbers)
    positions = np.moveaxis(tracks[:, shown], 0, -1)
    in_camera = (positions - poses.centres[shown, None]) / poses.focals[shown, None]
    in_camera = np.concatenate([in_camera, np.ones((*in_camera.shape[:2], 1))], axis=-1)
    rays = np.einsum("tij,tni->tnj", poses.rotations[shown], in_camera)  # R^T ray
    angles = angles_between(rays[:1], rays)
    away = np.abs((positions * lines[..., :2]).sum(axis=-1) + lines[..., 2])
    angles[~(away <= _CONSISTENT_PX)] = np.nan
    angles[0] = 0.0
    return angles


def _epipolar_lines(poses: Poses, numbers: Sequence[int], queries: Floats) -> Floats:
    """Return the lines on which points [N, 2] of the anchor frame lie in each frame: [T, N, 3]."""
    anchor, shown = numbers[0], list(numbers)
    matrices = fundamental_matrices(poses, np.array([anchor], np.int32))[0, shown]
    homogeneous = np.concatenate([queries, np.ones((len(queries), 1))], axis=1)
    lines = np.einsum("tij,nj->tni", matrices, homogeneous)
    with np.errstate(divide="ignore", invalid="ignore"):
        lines /= np.linalg.norm(lines[..., :2], axis=-1, keepdims=True)
    lines[poses.baselines[anchor, shown] == 0] = np.nan
    return lines


def _on_objects(mask: bytes, info: ClipInfo, queries: Floats) -> NDArray[np.bool_]:
    """Look points [N, 2] up in a mask, whose values above 0 are objects."""
    [labels] = decode_masks([mask], (info.width, info.height))
    x, y = np.rint(queries).astype(int).T
    return labels[y.clip(0, info.height - 1), x.clip(0, info.width - 1)] > 0
