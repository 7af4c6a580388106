"""The location loss of multi-view training: where a point is found.

Legend of shapes: B sets of M views, h x w patches of D channels, N tracks, Q correspondences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from shards.geometry import normalised
from trainer.model.feature_sampling import sample_points
from trainer.multiview.correspondences import Correspondences


def location_errors(
    features: Tensor,
    positions: Tensor,
    pairs: Correspondences,
    *,
    size: int,
    temperature: float,
    corners: bool = False,
) -> Tensor:
    """Return how far from its target each query is found by a soft maximum: [B, Q].

    The mean over both axes of |found - target|, with the image's borders at -1 and 1: the same
    number as |Δx| + |Δy| in parts of the image.

    features:  [B, M, h, w, D]
    positions: [B, M, N, 2] (x, y) in pixels of views of `size` x `size`
    corners:   centres of the outer patches lie at the borders, as published
    """
    b, _, h, w, _ = features.shape
    sets = torch.arange(b, device=features.device)[:, None]
    queries = positions[sets, pairs.query, pairs.point]
    # Every view is sampled at every query, and the query's own view is picked.
    everywhere = sample_points(
        features.flatten(0, 1),
        queries.repeat_interleave(features.shape[1], dim=0),
        size,
        align_corners=False,
    ).unflatten(0, features.shape[:2])
    numbers = torch.arange(queries.shape[1], device=features.device)
    vectors = normalize(everywhere[sets, pairs.query, numbers], dim=-1)
    # [B, M, Q, h w]: cosines with all patches of all views; then only those of the target's view.
    patches = normalize(features.flatten(2, 3), dim=-1)
    cosines = torch.einsum("bqd,bmpd->bmqp", vectors, patches)[sets, pairs.target, numbers]
    weights = (cosines / temperature).softmax(dim=-1)
    found = weights @ patch_positions(h, w, like=weights, corners=corners)
    targets = normalised(positions[sets, pairs.target, pairs.point], size)
    return (found - targets).abs().mean(dim=-1)


def patch_positions(h: int, w: int, *, like: Tensor, corners: bool) -> Tensor:
    """Return (x, y) of patches row by row, the image's borders at -1 and 1: [h w, 2].

    like: a tensor of the wanted type and device
    """

    def along(count: int) -> Tensor:
        if corners:
            return torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
        return normalised(torch.arange(count, dtype=like.dtype, device=like.device), count)

    y, x = torch.meshgrid(along(h), along(w), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def still_errors(positions: Tensor, pairs: Correspondences, size: int) -> Tensor:
    """Return the errors [B, Q] of an answer that never moves from the query's position."""
    sets = torch.arange(len(positions), device=positions.device)[:, None]
    queries, targets = (positions[sets, view, pairs.point] for view in (pairs.query, pairs.target))
    return (normalised(queries, size) - normalised(targets, size)).abs().mean(dim=-1)


def mean_over_sets(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of values [B, Q] over those that count, then over all sets: a scalar.

    A set without any adds 0 and still counts.
    """
    return ((values * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)).mean()
