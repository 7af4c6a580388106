"""Whether a model's own matches lie on epipolar lines: needs cameras, and no tracked positions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.evaluate.heldout.measures import Measures, patch_centres, sample_features

EPIPOLAR_PX = 4.0
"""A match this near to its epipolar line lies on it, in pixels of the stored frame. Correct matches
do; of wrong ones, as many as chance says."""


def recall(positions: Tensor, lines: NDArray[np.float64], size: tuple[int, int]) -> Measures:
    """Tell which positions lie on their lines: 1 or 0 [n], NaN where there is no line.

    positions: [n, 2], as fractions of the image
    lines:     [n, 3], for pixels of the stored frame
    size:      width and height of the stored frame in pixels
    """
    return {"epipolar@4px": _on_line(positions.double().numpy(), lines, size)}


def chance(lines: NDArray[np.float64], size: tuple[int, int], grid: int) -> Measures:
    """Return the part of the image that is near each line, [n], from a fine grid of positions."""
    centres = patch_centres(4 * grid, 4 * grid).double().numpy()
    return {"epipolar@4px": _on_line(centres[:, None], lines, size).mean(axis=0)}


def refined_match(anchor: Tensor, later: Tensor, queries: Tensor) -> Tensor:
    """Match points as `measures.match`, then refine between patches: [n, 2].

    A parabola through the similarities of the best patch and its two neighbours, along each axis,
    has its top at most half a patch away. Along the border there is nothing to refine.
    """
    rows, columns = later.shape[:2]
    similarities = sample_features(anchor, queries) @ later.flatten(0, 1).T
    best = similarities.argmax(dim=1)
    top = similarities.max(dim=1).values
    row, column = best // columns, best % columns
    shifts = []
    for step, inner in (
        (1, (column > 0) & (column < columns - 1)),
        (columns, (row > 0) & (row < rows - 1)),
    ):
        last = rows * columns - 1
        before, after = (
            similarities.gather(1, neighbour.clamp(0, last)[:, None])[:, 0]
            for neighbour in (best - step, best + step)
        )
        bend = 2 * top - before - after
        shift = (after - before) / (2 * bend.clamp_min(1e-12))
        shifts.append(torch.where(inner, shift.clamp(-0.5, 0.5), 0.0))
    scale = torch.tensor([columns, rows])
    return patch_centres(rows, columns)[best] + torch.stack(shifts, dim=1) / scale


def _on_line(
    positions: NDArray[np.float64], lines: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Tell which positions [..., n, 2] are near lines [n, 3]: 1 or 0 [..., n], NaN without one."""
    pixels = positions * size - 0.5  # pixel centres are at integers
    distances = np.abs((pixels * lines[:, :2]).sum(axis=-1) + lines[:, 2])
    return np.where(np.isnan(distances), np.nan, distances <= EPIPOLAR_PX)
