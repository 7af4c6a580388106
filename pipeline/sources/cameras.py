"""Convert the poses of sources to `Camera`, and report those that are missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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


def viewpoint_camera(viewpoint: Mapping[str, Any], width: int, height: int) -> Camera | None:
    """Convert a viewpoint of CO3D or uCO3D to a camera of its image of `width` x `height` pixels.

    PyTorch3D's axes are x left, y up, z forward, with X_camera = X_world @ R + T. The origin of its
    NDC is midway between the image's *borders*. One NDC unit is half a side of the image: for
    "ndc_norm_image_bounds" half the width in x and half the height in y, for "ndc_isotropic" half
    the shorter side in both. Returns None if the numbers make no camera, or some are missing.
    Raises ValueError for another intrinsics_format.
    """
    pixels_per_unit = {
        "ndc_norm_image_bounds": (width / 2, height / 2),
        "ndc_isotropic": (min(width, height) / 2,) * 2,
    }
    # CO3Dv1 has no such key and means the default.
    form = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds").lower()
    if form not in pixels_per_unit:
        raise ValueError(f"unknown intrinsics_format '{form}'")
    ux, uy = pixels_per_unit[form]
    try:
        fx, fy = map(float, viewpoint["focal_length"])
        px, py = map(float, viewpoint["principal_point"])
        rotation = np.asarray(viewpoint["R"], np.float64)
        translation = np.asarray(viewpoint["T"], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    if rotation.shape != (3, 3) or translation.shape != (3,):
        return None
    flip = np.array([[-1.0], [-1.0], [1.0]])  # x left, y up → x right, y down
    # PyTorch3D multiplies row vectors from the left, hence the transpose.
    world_to_camera = flip * np.column_stack([rotation.T, translation])
    # NDC's x points left and y up. Half a pixel less: pixel centres are at integers here.
    return opencv_camera(
        fx=fx * ux,
        fy=fy * uy,
        cx=width / 2 - px * ux - 0.5,
        cy=height / 2 - py * uy - 0.5,
        world_to_camera=world_to_camera,
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
