"""A descriptor of raw pixels without a network: what any model should beat.

Histograms of gradients like SIFT's (Lowe, Distinctive image features, IJCV 2004), upright, at one
scale, on the same grid as the patches of the models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, normalize, pad, unfold

_CELL = 4  # pixels along a side of a cell; a patch has 2x2 of them, a descriptor 4x4
_ORIENTATIONS = 8
_LARGEST = 0.2  # of a unit descriptor's numbers: one strong edge should not decide


def gradient_histograms(images: Tensor, grid: int) -> Tensor:
    """Describe patches: uint8 RGB [B, 3, S, S] → unit vectors [B, grid, grid, 128].

    Each describes a window of two patches along a side, around its patch. Windows without any
    gradient are described by zeros.
    """
    side = 2 * _CELL * grid
    grey = images.float().mean(dim=1, keepdim=True)
    grey = interpolate(grey, (side, side), mode="bilinear", antialias=True, align_corners=False)
    padded = pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    # A gradient is shared between the two nearest orientations.
    turns = torch.atan2(down, across) / (2 * math.pi) * _ORIENTATIONS
    centres = torch.arange(_ORIENTATIONS).view(1, -1, 1, 1)
    away = (turns - centres + _ORIENTATIONS / 2) % _ORIENTATIONS - _ORIENTATIONS / 2
    histograms = torch.hypot(across, down) * (1 - away.abs()).clamp_min(0)
    cells = pad(avg_pool2d(histograms, _CELL), (1, 1, 1, 1), mode="replicate")
    windows = unfold(cells, kernel_size=4, stride=2).movedim(1, 2)  # [B, grid * grid, 128]
    clipped = normalize(windows, dim=-1).clamp_max(_LARGEST)
    return normalize(clipped, dim=-1).unflatten(1, (grid, grid))
