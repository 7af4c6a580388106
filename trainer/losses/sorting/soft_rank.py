"""Soft ranks (Blondel et al., 2020: fast differentiable sorting and ranking), and rank correlation.

The soft rank of a row is its projection, scaled by 1 / strength, onto the permutahedron (the convex hull of all permutations of
1..n). After sorting, this projection is an isotonic regression. `torchsort` does it in compiled code; where its extension is not
there, the same values and gradients come from PyTorch.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MEANS = 2**22
"""Means of the rows that are worked on together in PyTorch: n^2 a row."""


def soft_rank(values: Tensor, strength: float) -> Tensor:
    """Ascending soft ranks, from about 1 to about n: [rows, n] → [rows, n]; the smaller `strength`, the harder."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if has_torchsort(values.device.type):
        return import_module("torchsort").soft_rank(values, regularization_strength=strength)  # type: ignore[no-any-return]
    return soft_rank_torch(values, strength)


@lru_cache
def has_torchsort(device: str) -> bool:
    """Whether torchsort's compiled extension serves a type of device; logs once what is used."""
    try:
        import_module("torchsort")
        import_module(f"torchsort.isotonic_{device}")
    except ImportError as error:
        log.info(
            "soft ranks on %s: PyTorch (torchsort's extension is not there: %s)", device, error
        )
        return False
    log.info("soft ranks on %s: torchsort", device)
    return True


def soft_rank_torch(values: Tensor, strength: float) -> Tensor:
    """`soft_rank` in PyTorch alone; float64 inside, since the isotonic regression takes differences of running sums."""
    theta, order = (values.double() / strength).sort(dim=1, descending=True)
    weights = torch.arange(values.shape[1], 0, -1, dtype=theta.dtype, device=theta.device)
    ranks = theta - isotonic_decreasing(theta - weights)
    return torch.empty_like(ranks).scatter(1, order, ranks).to(values.dtype)


def isotonic_decreasing(y: Tensor) -> Tensor:
    """The non-increasing rows nearest to `y` [rows, n]: v_i = min over j <= i of max over k >= i of mean(y_j .. y_k).

    Gradients flow through the mean that was chosen for each i, which is the exact derivative: v averages y over blocks.
    """
    parts = [_blocks(rows) for rows in y.detach().split(max(1, MEANS // y.shape[1] ** 2))]
    start, end = (torch.cat(indices) for indices in zip(*parts, strict=True))
    sums = torch.nn.functional.pad(y.cumsum(dim=1), (1, 0))
    return (sums.gather(1, end + 1) - sums.gather(1, start)) / (end - start + 1)


@torch.no_grad()
def _blocks(y: Tensor) -> tuple[Tensor, Tensor]:
    """For each i the block [start_i, end_i] of the min-max formula: two [rows, n] of indices, from all n^2 means of a row."""
    n = y.shape[1]
    sums = torch.nn.functional.pad(y.cumsum(dim=1), (1, 0))
    index = torch.arange(n, device=y.device)
    length = index[None, :] - index[:, None] + 1
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / length
    means.masked_fill_(length < 1, -torch.inf)  # [rows, j, k]
    best, reversed_end = means.flip(2).cummax(
        dim=2
    )  # over k from the last down to i: now [rows, j, n - 1 - i]
    best = best.flip(2).masked_fill_(length < 1, torch.inf)  # [rows, j, i], allowed where j <= i
    start = best.argmin(dim=1)
    end = (n - 1 - reversed_end.flip(2)).gather(1, start[:, None, :])[:, 0]
    return start, end


def hard_rank(values: Tensor) -> Tensor:
    """Ascending ranks 0..n-1 of the last axis, equal values in the order they stand: [..., n] → float, no gradient."""
    values = values.detach()
    order = values.argsort(dim=-1, stable=True)
    ranks = torch.arange(
        values.shape[-1],
        device=values.device,
        dtype=torch.promote_types(values.dtype, torch.float32),
    )
    return torch.empty_like(order, dtype=ranks.dtype).scatter_(-1, order, ranks.expand_as(order))


def standardised(values: Tensor) -> Tensor:
    """Rows with mean 0 and standard deviation 1, the deviation taken as a constant: [..., n] → the same.

    Soft ranks depend on how far values are apart: at a spread of 0.1 any strength above 0.03 makes them affine in the values.
    """
    spread = values.detach().std(dim=-1, keepdim=True, correction=0)
    return (values - values.mean(dim=-1, keepdim=True)) / spread.clamp_min(
        torch.finfo(values.dtype).tiny ** 0.5
    )


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation along the last axis: [..., n], [..., n] → [...]; 0 where either is constant."""
    a = a - a.mean(dim=-1, keepdim=True)
    b = b - b.mean(dim=-1, keepdim=True)
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last axis, without gradient: [..., n], [..., n] → [...]."""
    return correlation(hard_rank(a), hard_rank(b))
