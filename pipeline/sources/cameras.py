"""Poses as sources state them → `Camera`, and what to say where they are missing."""

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
    """A camera from intrinsics in pixels (pixel centres at integers) and a 3x4 matrix [R | t] in OpenCV axes.

    None if a number is not finite, a focal length is not positive, or R is no rotation.
    """
    rotation = world_to_camera[:, :3]
    numbers = (fx, fy, cx, cy, *world_to_camera.ravel().tolist())
    if not all(map(math.isfinite, numbers)) or fx <= 0 or fy <= 0:
        return None
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        return None
    return Camera(
        float(fx), float(fy), float(cx), float(cy), tuple(world_to_camera.ravel().tolist())
    )


def with_poses(
    source: str, video_id: str, cameras: list[Camera | None], why: str
) -> tuple[tuple[Camera | None, ...] | None, list[Failure]]:
    """The `cameras` of a video, None if no frame has a pose; and a failure that counts the frames without one, if there are any.

    `why` is a sentence's end: what the source lacks, and where.
    """
    missing = sum(camera is None for camera in cameras)
    if not missing:
        return tuple(cameras), []
    reason = (
        Reason.POSES_MISSING if missing == len(cameras) else Reason.POSES_MISSING_FOR_SOME_FRAMES
    )
    detail = f"{missing} of {len(cameras)} frames go on without a pose: {why}"
    return (None if missing == len(cameras) else tuple(cameras)), [
        Failure(source=source, video_id=video_id, stage="catalog", reason=reason, detail=detail)
    ]
