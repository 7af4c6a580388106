"""Sample depth maps between pixels.

The *inverse* depth is interpolated, which is exact on planes. Where the four neighbours are not on
one surface, the nearest known one is extended by its own slope.

Legend of shapes: P any number of points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SMOOTH = 0.01
"""Relative step of the inverse depth that interrupts a surface. On a plane that is tilted by any
angle, the step from pixel to pixel stays the same."""
_STEEPEST = 0.05
"""Relative step of the inverse depth from pixel to pixel that is no slope, but an edge."""
_DIAGONAL = 2.0
"""The largest squared distance of a position from a corner of its cell."""
_PATCH = np.arange(-1, 3)
"""Pixels around a position along one axis, relative to the one before it."""


def inverse_depth_at(
    inverse: Floats,
    frames: NDArray[np.int64],
    positions: Floats,
    least: Floats | None = None,
) -> tuple[Floats, Mask]:
    """Return the inverse depths [P] at positions [P, 2] in frames [P], NaN where unknown.

    least: of neighbours on several surfaces, those with a smaller inverse depth [P] count only if
           there are no others

    Also returns where the four neighbours are on one surface [P], so that they were interpolated.
    """
    _, height, width = inverse.shape
    x = positions[:, 0].clip(0, width - 1)
    y = positions[:, 1].clip(0, height - 1)
    left = np.minimum(x.astype(np.int64), width - 2)
    top = np.minimum(y.astype(np.int64), height - 2)
    dx, dy = x - left, y - top
    rows = (top[:, None] + _PATCH).clip(0, height - 1)
    columns = (left[:, None] + _PATCH).clip(0, width - 1)
    patch = inverse[frames[:, None, None], rows[:, :, None], columns[:, None, :]]  # [P, 4, 4]
    corners = patch[:, 1:3, 1:3]
    smooth = np.isfinite(corners).all(axis=(1, 2))
    smooth &= _continues(patch[:, 1:3]) & _continues(patch[:, :, 1:3].swapaxes(1, 2))
    weights_x, weights_y = np.stack([1 - dx, dx], 1), np.stack([1 - dy, dy], 1)
    mixed = np.einsum("pij,pi,pj->p", corners, weights_y, weights_x)
    result = np.where(smooth, mixed, np.nan)
    rest = np.flatnonzero(~smooth)
    extended, distance = _extended(patch[rest], dx[rest], dy[rest])
    if least is not None:
        behind = extended < least[rest, None]
        distance += np.where(behind, 2 * _DIAGONAL, 0)  # so that those before them come first
    result[rest] = extended[np.arange(len(rest)), distance.argmin(axis=1)]
    return result, smooth


def _continues(lines: Floats) -> Mask:
    """Tell whether both lines of a cell's neighbours [P, 2, 4] go on through the cell: [P].

    The step across the cell is small, or as large as the step before it or after it.
    """
    before, step, after = np.moveaxis(np.diff(lines, axis=2), 2, 0)
    change = np.fmin(np.fmin(np.abs(step - before), np.abs(step - after)), np.abs(step))
    small: Mask = (change <= _SMOOTH * np.minimum(lines[..., 1], lines[..., 2])).all(axis=1)
    return small


def _extended(patch: Floats, dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Extend the surfaces of the four corners of a cell, each by its own slope.

    patch:  [P, 4, 4] around the cell; dx, dy: position in the cell [P]

    Returns the values at the position [P, 4], NaN for unknown corners, and how far each corner is
    from it, squared [P, 4]; infinite for unknown ones.
    """
    values, distances = [], []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # Of the two steps beside the corner, the smaller one stays on its surface.
        along_x = _smaller_step(patch[:, row + 1, column : column + 3])
        along_y = _smaller_step(patch[:, row : row + 3, column + 1])
        corner = patch[:, row + 1, column + 1]
        values.append(corner + along_x * (dx - column) + along_y * (dy - row))
        distance = (dx - column) ** 2 + (dy - row) ** 2
        distances.append(np.where(np.isfinite(corner), distance, np.inf))
    return np.stack(values, axis=1), np.stack(distances, axis=1)


def _smaller_step(line: Floats) -> Floats:
    """Return the smaller step to or from the middle of lines [P, 3]; 0 if both are edges."""
    before, after = np.diff(line, axis=1).T
    first = np.isnan(after) | (np.abs(before) < np.abs(after))
    step = np.where(first, before, after)
    return np.where(np.abs(step) <= _STEEPEST * line[:, 1], step, 0)
