"""Poses of CO3D and DL3DV against projections that are written out point by point."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from manifests.rows import Failure
from pipeline.sources.cameras import opencv_camera, viewpoint_camera, with_poses
from pipeline.sources.dl3dv import scaled_camera
from shards.clip import Camera

POINTS = [(0.0, 0.0, 0.0), (0.5, -0.25, 0.125), (-1.0, 0.75, 0.5)]


def rotation(seed: int) -> np.ndarray:
    """Return a rotation without any symmetry, so that a swapped axis or sign shows."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def project(camera: Camera, point: tuple[float, ...]) -> tuple[float, float, float]:
    """Return (x, y, depth) of a world point by the definition in `shards.clip.Camera`."""
    matrix = np.array(camera.world_to_camera).reshape(3, 4)
    x, y, z = matrix[:, :3] @ np.array(point) + matrix[:, 3]
    return camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy, z


@pytest.mark.parametrize("form", ["ndc_norm_image_bounds", "ndc_isotropic"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256)])
def test_co3d_cameras_project_as_pytorch3d_does(form: str, width: int, height: int) -> None:
    r, t, focal, principal = rotation(1), [0.3, -0.2, 5.0], [2.1, 2.4], [0.15, -0.05]
    viewpoint = {
        "R": r.tolist(),
        "T": t,
        "focal_length": focal,
        "principal_point": principal,
        "intrinsics_format": form,
    }
    camera = viewpoint_camera(viewpoint, width, height)
    assert camera is not None
    for point in POINTS:
        # As PyTorch3D documents it: row vector times R, x to the left, y up; NDC, then the screen.
        left, up, depth = (sum(point[i] * r[i, j] for i in range(3)) + t[j] for j in range(3))
        ndc_x, ndc_y = focal[0] * left / depth + principal[0], focal[1] * up / depth + principal[1]
        # NDC 1 is the left (top) border. In isotropic NDC the longer side reaches beyond 1.
        half_x, half_y = (
            (1.0, 1.0)
            if form == "ndc_norm_image_bounds"
            else (max(width / height, 1.0), max(height / width, 1.0))
        )
        from_left, from_top = (
            (half_x - ndc_x) / (2 * half_x) * width,
            (half_y - ndc_y) / (2 * half_y) * height,
        )
        assert project(camera, point) == pytest.approx((from_left - 0.5, from_top - 0.5, depth))


def test_co3d_axes_point_right_and_down() -> None:
    straight = {
        "R": np.eye(3).tolist(),
        "T": [0, 0, 4],
        "focal_length": [2, 2],
        "principal_point": [0, 0],
    }
    camera = viewpoint_camera(straight, 100, 50)  # v1 states no intrinsics_format
    assert camera is not None
    assert project(camera, (0, 0, 0))[:2] == (49.5, 24.5)
    left, up, _ = project(camera, (1.0, 0.5, 0))
    assert left < 49.5
    assert up < 24.5


def test_co3d_viewpoints_that_are_no_camera_are_refused() -> None:
    good: dict[str, Any] = {
        "R": np.eye(3).tolist(),
        "T": [0, 0, 4],
        "focal_length": [2, 2],
        "principal_point": [0, 0],
    }
    assert viewpoint_camera(good, 100, 50) is not None
    for change in (
        {"T": [0, 0, math.nan]},
        {"focal_length": [0, 2]},
        {"R": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]},
        {"R": [[1]]},
    ):
        assert viewpoint_camera({**good, **change}, 100, 50) is None
    with pytest.raises(ValueError, match="fisheye"):
        viewpoint_camera({**good, "intrinsics_format": "fisheye"}, 100, 50)


def nerfstudio_frame(matrix: np.ndarray) -> dict[str, Any]:
    return {
        "w": 3840,
        "h": 2160,
        "fl_x": 1750,
        "fl_y": 1760,
        "cx": 1900,
        "cy": 1100,
        "transform_matrix": matrix.tolist(),
    }


def test_dl3dv_cameras_project_as_nerfstudio_does() -> None:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(2), [0.4, 0.1, -3.0]
    camera = scaled_camera(nerfstudio_frame(matrix), 480, 270)
    assert camera is not None
    # Points in the camera's own OpenGL axes (x right, y up, looking along -z) are moved to the
    # world; the camera must project them back.
    for right, up, ahead in [(0.0, 0.0, 2.0), (0.6, 0.3, 2.5), (-0.4, -0.7, 4.0)]:
        world = matrix[:3, :3] @ np.array([right, up, -ahead]) + matrix[:3, 3]
        # Positions in the full-size image, from its corner.
        full_x, full_y = 1900 + 1750 * right / ahead, 1100 - 1760 * up / ahead
        assert project(camera, tuple(world)) == pytest.approx(
            (full_x / 8 - 0.5, full_y / 8 - 0.5, ahead)
        )


def test_dl3dv_poses_of_another_shape_or_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="270x480"):
        scaled_camera(nerfstudio_frame(np.eye(4)), 270, 480)
    assert scaled_camera(nerfstudio_frame(np.zeros((4, 4))), 480, 270) is None
    assert scaled_camera(nerfstudio_frame(np.full((4, 4), np.nan)), 480, 270) is None
    assert scaled_camera(nerfstudio_frame(np.eye(3)), 480, 270) is None


def test_frames_without_a_pose_are_counted() -> None:
    camera = opencv_camera(1, 1, 0, 0, np.eye(4)[:3])
    assert with_poses("s", "v", [camera, camera], "") == ((camera, camera), [])
    some, (failure,) = with_poses("s", "v", [camera, None, None], "no luck")
    assert some == (camera, None, None)
    assert (
        Failure(
            source="s",
            video_id="v",
            stage="catalog",
            reason="poses missing for some frames",
            detail="2 of 3 frames have no pose: no luck",
        )
        == failure
    )
    none, (failure,) = with_poses("s", "v", [None], "no luck")
    assert none is None
    assert failure.reason == "poses missing"
