"""Location errors: how far from its true place a point of the anchor frame is found in a view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainer.evaluate.heldout.clips import HeldOutClip
from trainer.evaluate.results import finite_mean
from trainer.evaluate.sets.encoding import angles_of
from trainer.model.feature_sampling import sample_points

ANGLE_EDGES = (0, 10, 20, 30, 45, 60, 90)
"""Degrees between optical axes at which bins begin; a bin contains its lower edge only."""


@dataclass(frozen=True)
class ViewError:
    """How well the points of an anchor frame are found in another view.

    clip, view: index of the clip, and of the view in its set
    angle:      degrees between the optical axes; NaN if unknown
    points:     number of points, at least 1
    error:      their mean |Δx| + |Δy|, in parts of the image
    """

    clip: int
    view: int
    angle: float
    points: int
    error: float


def location_error(anchor: Tensor, view: Tensor, queries: Tensor, targets: Tensor) -> float:
    """Return the mean city-block distance between targets and the most similar patches.

    anchor, view:     features [h, w, D]
    queries, targets: [n, 2] (x, y) as fractions of the image
    """
    h, w = view.shape[:2]
    size = 1 << 12  # pixels; only ratios matter
    pixels = queries[None] * size - 0.5
    vectors = normalize(sample_points(anchor[None], pixels, size, align_corners=False)[0], dim=-1)
    best = (vectors @ normalize(view.flatten(0, 1), dim=-1).T).argmax(dim=1)
    found = torch.stack([(best % w + 0.5) / w, (best // w + 0.5) / h], dim=-1)
    return float((found - targets).abs().sum(dim=-1).mean())


def view_errors(
    clips: Sequence[HeldOutClip], error: Callable[[int, int, Tensor, Tensor], float]
) -> list[ViewError]:
    """Measure each view of each clip that has a point in common with its anchor frame.

    error: clip index, view index, queries and targets [n, 2] → mean error
    """
    errors = []
    for i, clip in enumerate(clips):
        angles = angles_of(clip)
        for t in range(1, len(clip.frame_numbers)):
            queries, targets = clip.points(t)
            if len(queries):
                value = error(i, t, queries, targets)
                errors.append(ViewError(i, t, angles[t], len(queries), value))
    return errors


def still_error(_clip: int, _view: int, queries: Tensor, targets: Tensor) -> float:
    """Return the error of the answer that nothing has moved."""
    return float((queries - targets).abs().sum(dim=-1).mean())


def by_clip(
    errors: Sequence[ViewError], clips: int, low: float = -np.inf, high: float = np.inf
) -> NDArray[np.float64]:
    """Return the mean error of each clip over its views with `low` <= angle < `high`: [clips].

    NaN for a clip without any. Without bounds, views of unknown angle count too.
    """
    unbounded = low == -np.inf and high == np.inf
    values: list[list[float]] = [[] for _ in range(clips)]
    for e in errors:
        if unbounded or low <= e.angle < high:
            values[e.clip].append(e.error)
    return np.array([finite_mean(of_clip) for of_clip in values])


def angle_bins() -> list[tuple[str, float, float]]:
    """Return label, lower and upper edge of each bin of angles."""
    uppers = [*ANGLE_EDGES[1:], np.inf]
    return [
        (f"{low}-{high}" if np.isfinite(high) else f"{low}+", float(low), float(high))
        for low, high in zip(ANGLE_EDGES, uppers, strict=True)
    ]
