"""A second view of every frame of a batch, for losses that need no tracks: zoom, flip, colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from trainer.losses.settings import SelfSupervisionSettings


@dataclass(frozen=True)
class FrameViews:
    """A view of each of n frames, and M points in both.

    images:       [n, 3, S, S] the views, normalised as the frames are
    view_points:  [n, M, 2] (x, y) in pixels of the view, centres at integers
    frame_points: [n, M, 2] the same points in pixels of the frame
    """

    images: Tensor
    view_points: Tensor
    frame_points: Tensor


def make_views(images: Tensor, patch: int, settings: SelfSupervisionSettings) -> FrameViews:
    """Draw a view of each frame, from torch's default generator of their device.

    images: normalised frames [n, 3, S, S]
    patch:  side of a patch in pixels, which `covered` counts in

    A view is a square box of its frame, scaled up to the frame's size, half of them mirrored. Its
    points are uniform in the view, and so lie in the frame.
    """
    n, size, device = len(images), images.shape[-1], images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, device=device)

    # In grid_sample's coordinates, where a frame covers -1 to 1: half side, centre and direction.
    half = (settings.smallest + (1 - settings.smallest) * uniform(1)).sqrt()
    centre = (2 * uniform(2) - 1) * (1 - half)
    mirrored = torch.cat([torch.where(uniform(1) < 0.5, -1.0, 1.0), torch.ones_like(half)], dim=1)
    scale = half * mirrored  # [n, 2]

    pixels = (2 * torch.arange(size, device=device) + 1) / size - 1
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    grid = torch.stack([x, y], dim=-1) * scale[:, None, None] + centre[:, None, None]
    views = grid_sample(images, grid, padding_mode="border", align_corners=False)
    views = _covered(_recoloured(views, settings.recolour), patch, settings.covered)

    points = 2 * uniform(settings.points, 2) - 1
    in_frame = points * scale[:, None] + centre[:, None]
    return FrameViews(views, *(((p + 1) * size - 1) / 2 for p in (points, in_frame)))


def _recoloured(images: Tensor, most: float) -> Tensor:
    """Change brightness, contrast and each channel's gain, by up to `most` of a deviation."""
    n, device = len(images), images.device
    gain = 1 + most * (2 * torch.rand(n, 3, 1, 1, device=device) - 1)
    contrast = 1 + most * (2 * torch.rand(n, 1, 1, 1, device=device) - 1)
    brightness = most * (2 * torch.rand(n, 1, 1, 1, device=device) - 1)
    return images * gain * contrast + brightness


def _covered(images: Tensor, patch: int, fraction: float) -> Tensor:
    """Set a fraction of the patches of each image to 0, the mean colour."""
    rows, columns = (side // patch for side in images.shape[2:])
    kept = (torch.rand(len(images), 1, rows, columns, device=images.device) >= fraction).float()
    return images * interpolate(kept, images.shape[2:], mode="nearest")
