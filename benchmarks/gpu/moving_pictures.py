"""Clips of a window that moves over a smooth random picture: cheap to make, with true motion."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOTION = (2, 1)
"""(x, y) in pixels by which the window moves in a frame."""


def moving_pictures(clips: int, frames: int, height: int = 384, width: int = 512) -> Tensor:
    """Make clips [clips, frames, 3, height, width] uint8; the window moves by MOTION."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(clips, 3, height // 8, width // 8, generator=generator)
    dx, dy = MOTION
    margin = (height + dy * frames, width + dx * frames)
    pictures = F.interpolate(noise, margin, mode="bicubic").clamp(0, 1).mul(255).byte()
    return torch.stack(
        [pictures[..., dy * t : dy * t + height, dx * t : dx * t + width] for t in range(frames)],
        dim=1,
    )
