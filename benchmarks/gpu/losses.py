"""The sorting losses on the device against float64 references on the CPU, and their speed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.line import Line, attempt, milliseconds, peak_gigabytes, reset_peak, seconds
from trainer.losses.sorting.cross_entropy import sorting_cross_entropy
from trainer.losses.sorting.network import Distribution, Network
from trainer.losses.sorting.soft_rank import (
    soft_rank,
    soft_rank_torch,
    spearman_loss,
    standardised,
)

STRENGTH = 0.03
ROWS_OF_A_STEP = 8 * 3 * 256 * 5
"""Clips, times compared frames, tracks and references."""
PROGRAMS = (2, 4, 8, 16)
"""Programs per multiprocessor that the cross-entropy's kernel is timed with."""


def lines(device: str, small: bool) -> Iterator[Line]:
    """Compare soft ranks and cross-entropies with their references, then time them."""
    sizes = (9, 16) if small else (49, 64, 100, 128)
    rows = 256 if small else ROWS_OF_A_STEP
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        for n in dict.fromkeys((sizes[1], sizes[-1])):
            name = f"cross-entropy, n = {n}: first call"
            yield from attempt(name, partial(_first_call, name, n, device))
        for n in sizes:
            yield from attempt(f"soft ranks, n = {n}", partial(_soft_rank_errors, n, device))
        cases = [
            (sizes[0], network, distribution)
            for network in get_args(Network)
            for distribution in get_args(Distribution)
        ]
        for n, network, distribution in [*cases, *((n, "bitonic", "cauchy") for n in sizes[1:])]:
            name = f"cross-entropy, {network}, {distribution}, n = {n}"
            errors = partial(_cross_entropy_errors, n, device, network, distribution)
            yield from attempt(name, partial(errors, name))
        for n in sizes[:2]:
            yield from attempt(f"times, n = {n}", partial(_times, n, rows, device))
        if device == "cpu":
            yield Line("programs per multiprocessor", "not measured: no GPU")
            return
        for n in sizes[:2]:
            yield from attempt(f"programs, n = {n}", partial(_programs, n, rows, device))


def _rows(n: int, rows: int, seed: int) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad((function(x) * weights.to(x)).sum(), x)[0]


def _soft_rank_errors(n: int, device: str) -> Iterator[Line]:
    """Compare values, for rows with and without ties, and gradients.

    Not the gradients of ties: where means of blocks are equal, the reference may choose others.
    """
    distinct = standardised(_rows(n, 512, seed=n))
    for kind, x in (("distinct", distinct), ("tied", (distinct * 4).round() / 4)):
        expected = soft_rank_torch(x.double(), STRENGTH)
        error = (soft_rank(x.to(device), STRENGTH).cpu() - expected).abs().max().item()
        yield Line(f"soft ranks, n = {n}, {kind}: value", error, "ranks", at_most=1e-3)
    weights = _rows(n, 512, seed=n + 1)
    reference = _gradient(partial(soft_rank_torch, strength=STRENGTH), distinct.double(), weights)
    ranks = partial(soft_rank, strength=STRENGTH)
    gradient = _gradient(ranks, distinct.to(device), weights).cpu()
    relative = ((gradient - reference).abs().max() / reference.abs().max()).item()
    yield Line(f"soft ranks, n = {n}: gradient", relative, at_most=1e-4)


def _cross_entropy_errors(
    n: int, device: str, network: Network, distribution: Distribution, name: str
) -> Iterator[Line]:
    """Compare values and the gradients for both sides."""
    x, y = 0.1 * _rows(n, 64, seed=n), 0.1 * _rows(n, 64, seed=n + 1)
    values, gradients = [], []
    for inputs in ((x.double(), y.double()), (x.to(device), y.to(device))):
        leaves = a, b = [side.detach().requires_grad_() for side in inputs]
        result = sorting_cross_entropy(a, b, network=network, distribution=distribution)
        values.append(result.detach().cpu())
        gradients.append([g.cpu() for g in torch.autograd.grad(result.sum(), leaves)])
    yield Line(f"{name}: value", (values[1] - values[0]).abs().max().item(), at_most=1e-4)
    error = max(
        ((got - expected).abs().max() / expected.abs().max()).item()
        for expected, got in zip(*gradients, strict=True)
    )
    yield Line(f"{name}: gradients", error, at_most=1e-4)


def _times(n: int, rows: int, device: str) -> Iterator[Line]:
    """Time forward and backward of the rows of a training step of 8 clips."""
    x, y = (0.1 * _rows(n, rows, seed=seed).to(device) for seed in (0, 1))
    ones = torch.ones((), device=device)
    order = y.argsort().float()
    functions: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("default loss", partial(spearman_loss, order=order, strength=STRENGTH)),
        ("soft ranks", partial(soft_rank, strength=STRENGTH)),
        ("soft ranks by PyTorch", partial(soft_rank_torch, strength=STRENGTH)),
    )
    for name, function in functions:
        reset_peak(device)
        work = partial(_gradient, function, x, ones)
        yield Line(f"{name}, n = {n}, {rows} rows", milliseconds(work, device), "ms")
        if device == "cuda":
            yield Line(f"{name}, n = {n}: peak memory", peak_gigabytes(device), "GB")

    loss = partial(_cross_entropy_gradients, x, y)
    yield Line(f"cross-entropy, n = {n}, {rows} rows", milliseconds(loss, device), "ms")


def _cross_entropy_gradients(x: Tensor, y: Tensor) -> object:
    leaves = a, b = [side.detach().requires_grad_() for side in (x, y)]
    return torch.autograd.grad(sorting_cross_entropy(a, b).sum(), leaves)


def _first_call(name: str, n: int, device: str) -> Iterator[Line]:
    """Time the first call, which compiles the kernel on a GPU."""
    x, y = (0.1 * _rows(n, 64, seed=seed).to(device) for seed in (0, 1))
    taken = seconds(partial(_cross_entropy_gradients, x, y), device)
    # Kernels of 128 wires, more than any default needs, take longer.
    yield Line(name, taken, "s", at_most=10 if n <= 64 else None)


def _programs(n: int, rows: int, device: str) -> Iterator[Line]:
    """Time the cross-entropy with other numbers of programs per multiprocessor."""
    from trainer.losses.sorting.cross_entropy_kernel import launch

    x, y = (0.1 * _rows(n, rows, seed=seed).to(device) for seed in (0, 1))
    loss, chosen = partial(_cross_entropy_gradients, x, y), launch.PROGRAMS_PER_SM
    times = {}
    for count in PROGRAMS:
        with patch.object(launch, "PROGRAMS_PER_SM", count):
            times[count] = milliseconds(loss, device, rounds=5)
        name = f"cross-entropy, n = {n}, {count} programs per multiprocessor"
        yield Line(name, times[count], "ms")
    name = f"cross-entropy, n = {n}: time with {chosen} programs, of the fastest"
    yield Line(name, times[chosen] / min(times.values()), "x", at_most=1.1)
