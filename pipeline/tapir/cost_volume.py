"""First estimates of tracks, from a query's correlation with whole frames (TAPIR, section 3.1).

Shapes: R pairs of a query and a frame; h and w the height and width of the low-resolution map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOFT_ARGMAX_RADIUS = 5
"""Cells: the soft argmax averages over those that are nearer than this to the best one."""


class CostVolume(nn.Module):
    """Estimate a point's position, occlusion and expected distance from its correlations."""

    def __init__(self) -> None:
        super().__init__()
        self.hid1 = nn.Conv2d(1, 16, 3, padding=1)
        self.hid2 = nn.Conv2d(16, 1, 3, padding=1)
        self.hid3 = nn.Conv2d(16, 32, 3, stride=2)
        self.hid4 = nn.Linear(32, 16)
        self.occ_out = nn.Linear(16, 2)

    def forward(self, correlation: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return positions [R, 2] (x, y), and logits [R, 2] of occlusion and expected distance.

        correlation: [R, h, w]
        temperature: factor of the scores before the softmax

        Positions are in cells of the map, from its upper left corner.
        """
        hidden = F.relu(self.hid1(correlation[:, None]))
        position = soft_argmax(temperature * self.hid2(hidden)[:, 0])
        pooled = F.relu(self.hid3(F.pad(hidden, (0, 2, 0, 2)))).mean(dim=(2, 3))
        return position, self.occ_out(F.relu(self.hid4(pooled)))


def soft_argmax(scores: Tensor) -> Tensor:
    """Average the cell centres around the best cell, weighted by the softmax of all scores.

    scores: [R, h, w]. Returns [R, 2] (x, y) in cells, from the upper left corner of the map.
    """
    height, width = scores.shape[1:]
    weights = scores.flatten(1).softmax(dim=1)
    best = weights.argmax(dim=1)
    rows = torch.arange(height, device=scores.device)
    columns = torch.arange(width, device=scores.device)
    from_best_y = (rows - (best // width)[:, None]).square()  # [R, h]
    from_best_x = (columns - (best % width)[:, None]).square()  # [R, w]
    near = from_best_y[:, :, None] + from_best_x[:, None] < SOFT_ARGMAX_RADIUS**2
    weights = weights.view_as(scores) * near
    total = weights.sum(dim=(1, 2)).clamp_min(1e-12)
    x = (weights.sum(dim=1) * (columns + 0.5)).sum(dim=1) / total
    y = (weights.sum(dim=2) * (rows + 0.5)).sum(dim=1) / total
    return torch.stack([x, y], dim=-1)
