"""Errors of following a point from one anchor to another and back, which need no cameras.

Legend of shapes: A anchors, T frames, N points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.clip import VISIBLE_THRESHOLD, Tracks

Floats = NDArray[np.float32]


def cycle_errors(tracks: Tracks) -> Floats:
    """Return the forward-backward errors [A, A, N] of all points, in pixels.

    `errors[a, b, n]` is that of point n of anchor a on its way to anchor b and back; NaN for those
    that cannot be judged, and for a = b.

    A point of one anchor's grid is followed along its own track to another anchor's frame. Its way
    back is interpolated bilinearly from the tracks of the four points around it in the other grid,
    because no stored track starts exactly there. The error is the distance between its start and
    its return (Kalal et al., ICPR 2010). All five points must be visible at both ends. At an
    object's edge, where neighbours move apart, the error is large although no track is wrong, so
    the median is more useful than the mean.
    """
    anchors, points = len(tracks.anchors), tracks.positions.shape[2]
    errors = np.full((anchors, anchors, points), np.nan, np.float32)
    side = round(points**0.5)
    if side < 2 or side * side != points:
        return errors  # no square grid, so no cells to interpolate in
    queries = tracks.positions[np.arange(anchors), tracks.anchors]  # [A, N, 2]
    # Queries of a square number that are no grid have cells of no size: their errors are NaN.
    with np.errstate(all="ignore"):
        _fill(errors, tracks, queries, side)
    errors[~np.isfinite(errors)] = np.nan
    return errors


def _fill(errors: Floats, tracks: Tracks, queries: Floats, side: int) -> None:
    """Write the errors of all pairs of anchors into `errors`."""
    rows = np.arange(len(queries))
    for b in range(len(queries)):
        # From every anchor a to b at once, and back along the tracks of b.
        others = rows != b
        arrived = tracks.positions[others, tracks.anchors[b]]  # [A - 1, N, 2]
        seen = tracks.visibility[others, tracks.anchors[b]] >= VISIBLE_THRESHOLD
        returned, interpolated = _carry(tracks, b, tracks.anchors[others], arrived, side)
        distances = np.sqrt(((returned - queries[others]) ** 2).sum(axis=-1))
        errors[others, b] = np.where(seen & interpolated, distances, np.nan)


def _carry(
    tracks: Tracks, anchor: int, frames: NDArray[np.int32], points: Floats, side: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """Move points of an anchor's frame to other frames, along the grid of tracks around them.

    frames: [F] to move to; points: [F, N, 2], those to move to each

    Returns the moved points [F, N, 2], and which could be interpolated [F, N]: those that lie
    inside the grid, between four tracks that are visible in their frame.
    """
    grid = tracks.positions[anchor, tracks.anchors[anchor]].reshape(side, side, 2)
    moved = tracks.positions[anchor, frames] - grid.reshape(-1, 2)  # [F, N, 2]
    visible = tracks.visibility[anchor, frames] >= VISIBLE_THRESHOLD  # [F, N]
    # the cell of each point, and its fractional position (u, v) in it
    xs, ys = grid[0, :, 0], grid[:, 0, 1]
    x, y = points[..., 0], points[..., 1]
    inside = (x >= xs[0]) & (x < xs[-1]) & (y >= ys[0]) & (y < ys[-1])
    column = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, side - 2)
    row = np.clip(np.searchsorted(ys, y, side="right") - 1, 0, side - 2)
    u = ((x - xs[column]) / (xs[column + 1] - xs[column]))[..., None]
    v = ((y - ys[row]) / (ys[row + 1] - ys[row]))[..., None]
    # bilinear interpolation of the displacements of its four corners
    corner, of_frame = row * side + column, np.arange(len(frames))[:, None]
    right, below, across = corner + 1, corner + side, corner + side + 1
    above = moved[of_frame, corner] * (1 - u) + moved[of_frame, right] * u
    under = moved[of_frame, below] * (1 - u) + moved[of_frame, across] * u
    for number in (corner, right, below, across):
        inside &= visible[of_frame, number]
    return points + above * (1 - v) + under * v, inside
