"""Soft ranks (Blondel et al., 2020: fast differentiable sorting and ranking) and rank correlation.

The soft rank of a row is the projection of row / strength onto the permutahedron, the convex hull
of all permutations of 1..n. After sorting, this projection is an isotonic regression. On CUDA,
`trainer.losses.sorting.soft_rank_kernel` computes it, on the CPU torchsort in compiled code. Where
these do not work, PyTorch gives the same values and gradients.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MEANS = 2**22
"""Block means held in memory at once by the PyTorch version: n^2 per row."""


def soft_rank(values: Tensor, strength: float) -> Tensor:
    """Return ascending soft ranks, from about 1 to about n: [rows, n] → [rows, n].

    strength: of the regularisation; the smaller it is, the nearer to hard ranks.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if (kernels := _kernels_for(values)) is not None:
        return kernels.soft_rank_rows(values, strength)  # type: ignore[no-any-return]
    if has_torchsort(values.device.type):
        return import_module("torchsort").soft_rank(values, regularization_strength=strength)  # type: ignore[no-any-return]
    return soft_rank_torch(values, strength)


def spearman_loss(values: Tensor, order: Tensor, strength: float) -> Tensor:
    """Return 1 - correlation of the soft ranks of standardised rows with the ranks `order`.

    [..., n], [..., n] → [...]; `order` may lack leading axes and has no gradient. One kernel on
    CUDA. Differentiable once.
    """
    if (kernels := _kernels_for(values)) is not None:
        return kernels.spearman_rows(values, order, strength)  # type: ignore[no-any-return]
    ranks = soft_rank(standardised(values).flatten(0, -2), strength).view_as(values)
    return 1 - correlation(ranks, order)


def _kernels_for(values: Tensor) -> ModuleType | None:
    """Return the Triton kernels if they can compute rows of these values, else None."""
    # The kernels compute in float32 only, and cannot be launched for no rows.
    if values.device.type == "cuda" and values.dtype == torch.float32 and values.numel() > 0:
        return gpu_kernels(values.shape[-1], values.device)
    return None


@lru_cache
def gpu_kernels(n: int, device: torch.device) -> ModuleType | None:
    """Return the Triton kernels for rows of n values after trying them on one row.

    Logs a warning and returns None if Triton is missing or the kernels fail.
    """
    try:
        kernels = import_module("trainer.losses.sorting.soft_rank_kernel")
        row = torch.zeros(1, n, device=device)
        kernels.spearman_rows(row, row, 1.0)
    except Exception as error:  # any failure to import, compile or launch: PyTorch takes over
        log.warning(
            "soft ranks on %s: PyTorch, because the Triton kernel does not work (%r). Results are "
            "the same, but a step for 8 clips with %d patches writes about %.0f GB more to memory, "
            "in hundreds of launches. Install Triton (it comes with PyTorch on Linux) and a C "
            "compiler",
            device, error, n, 2.7e-3 * n**2,
        )  # fmt: skip
        return None
    log.info("soft ranks on %s: Triton kernel", device)
    return kernels


@lru_cache
def has_torchsort(device: str) -> bool:
    """Return whether torchsort has a compiled extension for a device type; log the choice once."""
    try:
        import_module("torchsort")
        import_module(f"torchsort.isotonic_{device}")
    except ImportError as error:
        log.info(
            "soft ranks on %s: PyTorch (torchsort's extension is not installed: %s)", device, error
        )
        return False
    log.info("soft ranks on %s: torchsort", device)
    return True


def soft_rank_torch(values: Tensor, strength: float) -> Tensor:
    """Compute `soft_rank` in PyTorch alone.

    Works in float64, since the isotonic regression takes differences of cumulative sums.
    """
    # Sort descending, project, and undo the sorting: projection and permutation commute.
    theta, order = (values.double() / strength).sort(dim=1, descending=True)
    weights = torch.arange(values.shape[1], 0, -1, dtype=theta.dtype, device=theta.device)
    ranks = theta - isotonic_decreasing(theta - weights)
    return torch.empty_like(ranks).scatter(1, order, ranks).to(values.dtype)


def isotonic_decreasing(y: Tensor) -> Tensor:
    """Return the isotonic regression of rows: the nearest non-increasing rows to `y` [rows, n].

    By the min-max formula, v_i = min over j <= i of max over k >= i of mean(y_j .. y_k). Gradients
    flow through the block mean chosen for each i, which is the exact derivative: v averages y over
    blocks.
    """
    parts = [_blocks(rows) for rows in y.detach().split(max(1, MEANS // y.shape[1] ** 2))]
    start, end = (torch.cat(indices) for indices in zip(*parts, strict=True))
    # The mean of a block is a difference of cumulative sums, divided by the block's length.
    sums = torch.nn.functional.pad(y.cumsum(dim=1), (1, 0))
    return (sums.gather(1, end + 1) - sums.gather(1, start)) / (end - start + 1)


@torch.no_grad()
def _blocks(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the block [start_i, end_i] of the min-max formula for each i.

    Two tensors of indices [rows, n]. Compares all n^2 block means of a row.
    """
    n = y.shape[1]
    sums = torch.nn.functional.pad(y.cumsum(dim=1), (1, 0))
    index = torch.arange(n, device=y.device)
    length = index[None, :] - index[:, None] + 1
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / length
    means.masked_fill_(length < 1, -torch.inf)  # [rows, j, k]
    # max over k >= i: a running maximum from the last k down, indexed [rows, j, n - 1 - i]
    best, reversed_end = means.flip(2).cummax(dim=2)
    # min over j <= i, of [rows, j, i]
    best = best.flip(2).masked_fill_(length < 1, torch.inf)
    start = best.argmin(dim=1)
    end = (n - 1 - reversed_end.flip(2)).gather(1, start[:, None, :])[:, 0]
    return start, end


def hard_rank(values: Tensor) -> Tensor:
    """Return ascending ranks 0..n-1 along the last axis: [..., n] → float, without gradient.

    Equal values are ranked in their order of appearance.
    """
    values = values.detach()
    order = values.argsort(dim=-1, stable=True)
    ranks = torch.arange(
        values.shape[-1],
        device=values.device,
        dtype=torch.promote_types(values.dtype, torch.float32),
    )
    return torch.empty_like(order, dtype=ranks.dtype).scatter_(-1, order, ranks.expand_as(order))


def standardised(values: Tensor) -> Tensor:
    """Scale rows [..., n] to mean 0 and standard deviation 1.

    Gradients treat the standard deviation as a constant.

    Soft ranks depend on the scale of the values: at a standard deviation of 0.1, any strength above
    0.03 makes them affine in the values.
    """
    deviation = values.detach().std(dim=-1, keepdim=True, correction=0)
    # constant rows become 0, not NaN
    smallest = torch.finfo(values.dtype).tiny ** 0.5
    return (values - values.mean(dim=-1, keepdim=True)) / deviation.clamp_min(smallest)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation along the last axis: [..., n], [..., n] → [...].

    0 where either side is constant.
    """
    a = a - a.mean(dim=-1, keepdim=True)
    b = b - b.mean(dim=-1, keepdim=True)
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation along the last axis, without gradient.

    [..., n], [..., n] → [...].
    """
    return correlation(hard_rank(a), hard_rank(b))
