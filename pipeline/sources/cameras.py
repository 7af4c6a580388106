"""Convert the poses of sources to `Camera`, and report those that are missing."""

from __future__ import annotations

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
    (camera,) = opencv_cameras(
        np.array([[fx, fy]], np.float64), np.array([[cx, cy]], np.float64), world_to_camera[None]
    )
    return camera


def opencv_cameras(
    focal: NDArray[np.float64], centre: NDArray[np.float64], world_to_camera: NDArray[np.float64]
) -> list[Camera | None]:
    """Make N cameras as `opencv_camera` does, of [N, 2], [N, 2] and [N, 3, 4]."""
    numbers = np.concatenate([focal, centre, world_to_camera.reshape(-1, 12)], axis=1)
    rotation = world_to_camera[:, :, :3]
    with np.errstate(all="ignore"):
        # Orthogonal up to rounding in the source's files, and not a reflection.
        error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
        usable = (
            np.isfinite(numbers).all(axis=1)
            & (focal > 0).all(axis=1)
            & (error <= 1e-2)
            & (np.linalg.det(rotation) >= 0)
        )
    return [
        Camera(fx=fx, fy=fy, cx=cx, cy=cy, world_to_camera=tuple(matrix)) if good else None
        for good, (fx, fy, cx, cy, *matrix) in zip(usable.tolist(), numbers.tolist(), strict=True)
    ]


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
    (camera,) = pytorch3d_cameras(
        rotation[None],
        translation[None],
        focal=np.array([[fx, fy]]),
        principal=np.array([[px, py]]),
        pixels_per_unit=np.array([[ux, uy]], np.float64),
        sizes=np.array([[width, height]], np.float64),
    )
    return camera


def pytorch3d_cameras(
    rotation: NDArray[np.float64],
    translation: NDArray[np.float64],
    *,
    focal: NDArray[np.float64],
    principal: NDArray[np.float64],
    pixels_per_unit: NDArray[np.float64],
    sizes: NDArray[np.float64],
) -> list[Camera | None]:
    """Convert N cameras of PyTorch3D (see `viewpoint_camera`); None where they make no camera.

    rotation, translation: R [N, 3, 3] and T [N, 3]
    focal, principal:      [N, 2], x and y in NDC
    pixels_per_unit:       [N, 2], pixels per unit of NDC
    sizes:                 [N, 2], width and height of the images
    """
    flip = np.array([[-1.0], [-1.0], [1.0]])  # x left, y up → x right, y down
    # PyTorch3D multiplies row vectors from the left, hence the transpose.
    pose = np.concatenate([rotation.transpose(0, 2, 1), translation[:, :, None]], axis=2)
    # NDC's x points left and y up. Half a pixel less: pixel centres are at integers here.
    centre = sizes / 2 - principal * pixels_per_unit - 0.5
    return opencv_cameras(focal * pixels_per_unit, centre, flip * pose)


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
