"""What a depth map says at the centres of patches: depth, and the normal of the surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera

Floats = NDArray[np.float64]

_SMOOTH = 0.02
"""Largest second difference of inverse depth, relative to it, on one surface: that of a plane is
0, since its inverse depth is linear in the image."""


def sample_surfaces(
    depth: NDArray[np.float32], camera: Camera | None, grid: int
) -> tuple[Floats, Floats]:
    """Return log depth [grid, grid] and normals [grid, grid, 3] at patch centres; NaN if unknown.

    depth:  [H, W] along the optical axis, 0 where it is unknown
    camera: None if it is unknown; then the normals are, too

    Normals have unit length, in the camera's axes (x right, y down, z forward), and point towards
    the camera. There is none at the edge of a surface.
    """
    height, width = depth.shape
    centres = (np.arange(grid) + 0.5) / grid
    x, y = np.meshgrid(
        np.rint(centres * width - 0.5).astype(int), np.rint(centres * height - 0.5).astype(int)
    )
    known = depth[y, x] > 0
    log_depth = np.full((grid, grid), np.nan)
    log_depth[known] = np.log(depth[y, x][known].astype(np.float64))
    if camera is None:
        return log_depth, np.full((grid, grid, 3), np.nan)
    step = max(1, round(min(height, width) / 128))
    right, left = (_points(depth, camera, x + sign * step, y) for sign in (1, -1))
    down, up = (_points(depth, camera, x, y + sign * step) for sign in (1, -1))
    middle = _points(depth, camera, x, y)
    normals = np.cross(down - up, right - left)
    with np.errstate(divide="ignore", invalid="ignore"):
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        for first, second in ((right, left), (down, up)):
            bend = 1 / first[..., 2] + 1 / second[..., 2] - 2 / middle[..., 2]
            normals[~(np.abs(bend) * middle[..., 2] <= _SMOOTH)] = np.nan
    return log_depth, normals


def _points(
    depth: NDArray[np.float32], camera: Camera, x: NDArray[np.int_], y: NDArray[np.int_]
) -> Floats:
    """Return the points [..., 3] that pixels show, in the camera's axes; NaN if unknown."""
    height, width = depth.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    z = depth[y.clip(0, height - 1), x.clip(0, width - 1)].astype(np.float64)
    z[~inside | (z <= 0)] = np.nan
    rays = [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(x.shape)]
    return np.stack(rays, axis=-1) * z[..., None]
