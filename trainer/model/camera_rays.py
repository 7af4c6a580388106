"""Rays of pixels in Plücker coordinates, from the cameras of a batch (`data.cameras`).

A ray is (d, m): its unit direction and its moment m = o x d, where o is the camera's position. A
point X of the world lies on it exactly if X x d = m.

Legend of shapes: ... any leading axes, such as B clips and T frames; N points; h and w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plucker_rays(
    intrinsics: Tensor, world_to_camera: Tensor, cells: tuple[int, int], size: int
) -> Tensor:
    """Return the rays through the centres of cells that cover a frame: [..., 6, h, w].

    intrinsics:      [..., 3, 3] in pixels of frames of `size` x `size`, centres at integers
    world_to_camera: [..., 3, 4]
    cells:           (h, w), such as the backbone's patches per side

    Runs on the device and in the type of the cameras.
    """
    height, width = cells
    x, y = (
        (torch.arange(count, dtype=intrinsics.dtype, device=intrinsics.device) + 0.5)
        * (size / count)
        - 0.5
        for count in (width, height)
    )
    points = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    points = points.flatten(0, 1).expand(*intrinsics.shape[:-2], -1, -1)
    rays = rays_through(intrinsics, world_to_camera, points)
    return rays.transpose(-1, -2).unflatten(-1, (height, width))


def rays_through(intrinsics: Tensor, world_to_camera: Tensor, points: Tensor) -> Tensor:
    """Return the rays through pixels [..., N, 2]: [..., N, 6]. Cameras as in `plucker_rays`."""
    # K is upper triangular without skew, so its inverse is a shift and a division.
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)[..., None, :]
    centred = (points - intrinsics[..., None, :2, 2]) / focal
    in_camera = torch.cat([centred, torch.ones_like(centred[..., :1])], dim=-1)
    rotation, shift = world_to_camera[..., :3], world_to_camera[..., 3:]
    # Row vectors: d = R^T x is x^T R.
    directions = torch.nn.functional.normalize(in_camera @ rotation, dim=-1)
    position = -(rotation.transpose(-1, -2) @ shift).transpose(-1, -2)
    moments = torch.linalg.cross(position.expand_as(directions), directions)
    return torch.cat([directions, moments], dim=-1)


def from_first_camera(world_to_camera: Tensor) -> Tensor:
    """Move the world of each clip to the axes of its first frame's camera: [B, T, 3, 4].

    Frame 0 gets [I | 0]. Rays then depend neither on the source's origin nor on its axes.
    """
    rotation, shift = world_to_camera[..., :3], world_to_camera[..., 3:]
    relative = rotation @ rotation[:, :1].transpose(-1, -2)
    return torch.cat([relative, shift - relative @ shift[:, :1]], dim=-1)
