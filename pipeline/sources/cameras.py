"""Convert the poses of sources to `Camera`, and report those that are missing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from manifests.rows import Failure
from pipeline.failures import Reason
from shards.clip import Camera


def opencv_camera(
    fx: float, fy: float, cx: float, cy: float, world_to_camera: NDArray[np.float64]
) -> Camera | None:
    """Make a camera from intrinsics in pixels and a world-to-camera matrix.

    Pixel centres are at integers. The matrix is [R | t], 3x4, in OpenCV axes (x right, y down, z
    forward). Returns None if a number is not finite, a focal length is not positive, or R is not a
    rotation.
    """
    rotation = world_to_camera[:, :3]
    numbers = (fx, fy, cx, cy, *world_to_camera.ravel().tolist())
    if not all(map(math.isfinite, numbers)) or fx <= 0 or fy <= 0:
        return None
    # Orthogonal up to rounding in the source's files, and not a reflection.
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        return None
    return Camera(
        fx=float(fx),
        fy=float(fy),
        cx=float(cx),
        cy=float(cy),
        world_to_camera=tuple(world_to_camera.ravel().tolist()),
    )


def with_poses(
    source: str, video_id: str, cameras: list[Camera | None], why: str
) -> tuple[tuple[Camera | None, ...] | None, list[Failure]]:
    """Return a video's cameras, or None if no frame has a pose, and the failure that reports gaps.

    The list holds one failure that counts the frames without a pose, or none if all have one. `why`
    ends its sentence: what the source lacks, and where.
    """
    missing = sum(camera is None for camera in cameras)
    if not missing:
        return tuple(cameras), []
    reason = (
        Reason.POSES_MISSING if missing == len(cameras) else Reason.POSES_MISSING_FOR_SOME_FRAMES
    )
    detail = f"{missing} of {len(cameras)} frames have no pose: {why}"
    failure = Failure(
        source=source, video_id=video_id, stage="catalog", reason=reason, detail=detail
    )
    return (None if missing == len(cameras) else tuple(cameras)), [failure]
