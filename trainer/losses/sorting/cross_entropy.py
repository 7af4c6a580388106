"""The cross-entropy of two soft permutations as one operator: value and gradient together, next to nothing kept for backward.

The value of a row is linear in P(x) and depends on nothing but that row, so its gradient is worked out beside it, a few rows at a
time, and only that, n numbers a row, waits for backward. It is had in adjoint form. With P = M1 ... ML, one symmetric matrix a
layer, a layer that keeps the part c of its wires a and b adds to the derivative of <P, T> by c the sum over items of
(X_a - X_b) (Y_a - Y_b), where X = M1 ... Ml is the state before that layer and Y = T ML ... M(l+2) the one after it, seen from T.

On CUDA a Triton kernel does this (`trainer.losses.sorting.triton_kernel`). In PyTorch a state is [wires, items, rows]: a layer's pairs are a
reshape of the first axis, and every operation runs along rows, which lie side by side. After a block of the bitonic network only
wires within its runs of 2^k have met: the state is then [wires, 2^k, rows], each wire's items being those of its run, which halves
the work.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.losses.sorting.network import Distribution, Network, Sort

log = logging.getLogger(__name__)

CPU_STATE, GPU_STATE = 2**20, 2**25
"""Numbers in a state of the rows that are worked on together: few enough for a cache, and enough to keep a device busy."""


def sorting_cross_entropy(
    x: Tensor,
    y: Tensor,
    network: Network = "bitonic",
    x_steepness: float = 20.0,
    y_steepness: float = 3.0,
    distribution: Distribution = "cauchy",
    epsilon: float = 1e-6,
) -> Tensor:
    """Mean over items of -sum over positions of P(x) log(P(y) + epsilon), P as `soft_permutation`: [..., n], [..., n] → [...].

    3DPoV's loss is that of the student's similarities x and the teacher's y; NeCo's is that of the teacher's x and the student's y.
    Either may lack leading axes of the other, such as y those of the frames that x has. Without gradient, and on the CPU, its
    permutations are then made once for all of them.

    Differentiable once, in both. Computed in float32 (or float64 for such input), whatever autocast says.
    """
    shape = max(x.shape, y.shape, key=len)
    if any(values.shape != shape[-values.ndim :] for values in (x, y)):
        raise ValueError(
            f"x and y should have the same shape, not {tuple(x.shape)} and {tuple(y.shape)}; only leading axes may be missing"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    sorts = Sort(network, x_steepness, distribution), Sort(network, y_steepness, distribution)
    wanted = tuple(values.requires_grad and torch.is_grad_enabled() for values in (x, y))
    full = [
        values.expand(shape) if want else values
        for values, want in zip((x, y), wanted, strict=True)
    ]
    rows = [values.reshape(-1, shape[-1]).to(dtype) for values in full]
    return _CrossEntropy.apply(*rows, sorts, epsilon, wanted).view(shape[:-1])


Compute = Callable[
    [Tensor, Tensor, tuple[Sort, Sort], float, tuple[bool, bool]],
    tuple[Tensor, Tensor | None, Tensor | None],
]
"""`cross_entropy_rows`, and what may stand in for it."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        sorts: tuple[Sort, Sort],
        epsilon: float,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        on_gpu = x.is_cuda and x.dtype == torch.float32 and len(x) > 0
        compute = gpu_kernel(sorts, x.shape[1], wanted, x.device) if on_gpu else cross_entropy_rows
        if compute is not cross_entropy_rows:  # a kernel makes both sides of every row
            x, y = x.repeat(max(1, len(y) // len(x)), 1), y.repeat(max(1, len(x) // len(y)), 1)
        values, *gradients = compute(x, y, sorts, epsilon, wanted)
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y = (None if saved is None else gradient[:, None] * saved for saved in ctx.saved_tensors)
        return x, y, None, None, None


@lru_cache
def gpu_kernel(
    sorts: tuple[Sort, Sort], n: int, wanted: tuple[bool, bool], device: torch.device
) -> Compute:
    """The Triton kernel, tried on one row; where it is missing or cannot be had for this, a warning and `cross_entropy_rows`."""
    try:
        kernel: Compute = import_module("trainer.losses.sorting.triton_kernel").cross_entropy_rows
        row = torch.zeros(1, n, device=device)
        kernel(row, row, sorts, 1e-6, wanted)
    except Exception as error:  # whatever it is, PyTorch does without
        log.warning(
            "the sorting loss on %s: PyTorch, several times slower (its Triton kernel does not work: %r)",
            device,
            error,
        )
        return cross_entropy_rows
    return kernel


def cross_entropy_rows(
    x: Tensor, y: Tensor, sorts: tuple[Sort, Sort], epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of x, y [rows, n] the values [rows] and, where `wanted`, their gradients by x and by y [rows, n]: PyTorch, any device.

    One of them, if its gradient is not wanted, may have fewer rows, which then come round: the same for every run of them.
    """
    n, rows = x.shape[1], min(len(x), len(y))
    runs = max(len(x), len(y)) // max(1, rows)
    values = x.new_empty(runs, rows)
    gradients = [
        torch.empty_like(side) if want else None for side, want in zip((x, y), wanted, strict=True)
    ]
    chunk = max(1, (CPU_STATE if x.device.type == "cpu" else GPU_STATE) // n**2)
    for start in range(0, rows, chunk):
        part = min(chunk, rows - start)
        for run in range(runs):
            here = slice(run * rows + start, run * rows + start + part)
            if run == 0 or len(x) > rows:
                p = NetworkPass(x[here], sorts[0], wanted[0])
            if run == 0 or len(y) > rows:
                q = NetworkPass(y[here], sorts[1], wanted[1])
                log_q = (q.state + epsilon).log_()
            if gradients[1] is not None:
                gradients[1][here] = q.gradient((p.state / (q.state + epsilon)).div_(-n))
            values[run, start : start + part] = (p.state * log_q)[p.first :, p.first :].sum(
                dim=(0, 1)
            ) / -n
            if gradients[0] is not None:
                gradients[0][here] = p.gradient(log_q / -n)
    return values.flatten(), gradients[0], gradients[1]


@dataclass(frozen=True)
class Layer:
    """Comparators of wires `start + 2 distance group + k` and those `distance` further, k below `distance`, in all `groups`."""

    start: int
    distance: int
    groups: int
    width: int
    """Neighbouring wires that have met when it is done."""
    signs: Tensor
    """[groups, 1, 1]: +1 to take the smaller to the first wire, -1 the larger."""
    missing: Tensor | None
    """[groups, distance, 1]: pairs that are left out."""

    def pairs(self, wires: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second wires of its pairs, as views: [wires, ...] → twice [groups, distance, ...]."""
        pairs = wires.narrow(0, self.start, 2 * self.groups * self.distance).unflatten(
            0, (self.groups, 2, self.distance)
        )
        return pairs[:, 0], pairs[:, 1]


class NetworkPass:
    """Rows [rows, n] on their way through a network. `state` [positions, items, rows] is its end, the soft permutation.

    A bitonic network has a power of two of wires; where n is none, the first ones, before `first`, meet no other.
    """

    def __init__(self, x: Tensor, sort: Sort, keep: bool) -> None:
        n = x.shape[1]
        self.layers = layers(sort.network, n, x.device)
        self.first = (2 ** (n - 1).bit_length() - n) if sort.network == "bitonic" else 0
        self.seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        values = torch.nn.functional.pad(x, (self.first, 0)).T.contiguous()
        state = values.new_ones(len(values), 1, len(x))
        for layer in self.layers:
            state = widened(state, layer.width)
            swap, slope = compared(values, layer, sort)
            steps = [mixed(t, layer, swap) for t in (values, state)]
            if keep:
                self.seen.append((swap, slope, *steps))  # type: ignore[arg-type]
        self.state = state if self.layers else values.new_ones(n, n, len(x))

    def gradient(self, target: Tensor) -> Tensor:
        """The derivative of <state, target> by the rows, [rows, n]; `target` is overwritten, and so is what was kept."""
        values = target.new_zeros(len(target), target.shape[2])
        while self.seen:
            layer, (swap, slope, value_step, step) = (
                self.layers[len(self.seen) - 1],
                self.seen.pop(),
            )
            target = narrowed(target, layer.width)
            value_step *= mixed(values, layer, swap)
            by_keep = step.mul_(mixed(target, layer, swap)).sum(dim=2).add_(value_step).mul_(slope)
            first, second = layer.pairs(values)
            first -= by_keep
            second += by_keep
        return values[self.first :].T


def compared(values: Tensor, layer: Layer, sort: Sort) -> tuple[Tensor, Tensor]:
    """The part that pairs exchange and the derivative of the part they keep by second - first: twice [groups, distance, rows]."""
    first, second = layer.pairs(values)
    scale = layer.signs * sort.steepness
    difference = (second - first) * scale
    if sort.distribution == "logistic":
        swap = torch.sigmoid(-difference)
        slope = swap * (1 - swap) * scale
    else:
        swap = torch.atan(difference).div_(-math.pi).add_(0.5)
        slope = scale / (difference.square_().add_(1).mul_(math.pi))
    if layer.missing is not None:
        swap.masked_fill_(layer.missing, 0)
        slope.masked_fill_(layer.missing, 0)
    return swap, slope


def mixed(wires: Tensor, layer: Layer, swap: Tensor) -> Tensor:
    """Takes wires [wires, ..., rows] through a layer in place; returns what second - first was."""
    first, second = layer.pairs(wires)
    difference = second - first
    swap = swap if wires.ndim == 2 else swap.unsqueeze(2)
    first.addcmul_(difference, swap)
    second.addcmul_(difference, swap, value=-1)
    return difference


def widened(state: Tensor, width: int) -> Tensor:
    """Gives wires [wires, items, rows] the items of all `width` wires of their run, which they have no part of yet."""
    wires, items, rows = state.shape
    if items == width:
        return state
    runs = width // items
    wide = state.new_zeros(wires // width, runs, items, runs, items, rows)
    wide.diagonal(dim1=1, dim2=3).copy_(
        state.view(-1, runs, items, items, rows).permute(0, 2, 3, 4, 1)
    )
    return wide.view(wires, width, rows)


def narrowed(state: Tensor, width: int) -> Tensor:
    """The other way: of [wires, items, rows] only the items of each wire's own run of `width` wires."""
    wires, items, rows = state.shape
    if items == width:
        return state
    runs = items // width
    own = state.view(wires // items, runs, width, runs, width, rows).diagonal(dim1=1, dim2=3)
    return own.permute(0, 4, 1, 2, 3).reshape(wires, width, rows)


@lru_cache(maxsize=16)
def layers(network: Network, n: int, device: torch.device) -> list[Layer]:
    """The layers of a network of n wires, or, for `bitonic`, of the next power of two (`trainer.losses.sorting.network.network_layers`)."""
    if network == "odd_even":
        starts = [layer % 2 for layer in range(n)]
        one = torch.ones(1, 1, 1, device=device)
        return [Layer(start, 1, (n - start) // 2, n, one, None) for start in starts]
    depth = (n - 1).bit_length()
    return [
        _bitonic_layer(n, 2**depth, block, 2**k, device)
        for block in range(depth)
        for k in range(block, -1, -1)
    ]


def _bitonic_layer(n: int, wires: int, block: int, distance: int, device: torch.device) -> Layer:
    groups = wires // (2 * distance)
    first = torch.arange(wires, device=device).view(groups, 2, distance)[:, 0, :, None]
    signs = 1 - 2 * ((first[:, :1] >> (block + 1)) % 2)
    missing = first < wires - n
    return Layer(0, distance, groups, 2 ** (block + 1), signs, missing if n < wires else None)
