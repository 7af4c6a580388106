"""The cross-entropy of two soft permutations: one operator computes value and gradient together.

The value of a row is linear in P(x) and depends on that row alone. Its gradient is therefore
computed in the forward pass, for a few rows at a time, and only the gradient, n numbers per row, is
stored for backward.

Computed by the adjoint method. P = M1 ... ML has one symmetric matrix per layer. Let a layer keep
the fraction c of its wires a and b. Its contribution to the derivative of <P, T> by c is the sum
over items of (X_a - X_b) (Y_a - Y_b), where X = M1 ... Ml is the state before the layer and
Y = T ML ... M(l+2) is the adjoint state after it.

On CUDA, `trainer.losses.sorting.cross_entropy_kernel.launch` computes this. In PyTorch a state is
[wires, items, rows]: the pairs of a layer are a reshape of the first axis, and every operation runs
along rows, which are contiguous. After a block of the bitonic network, only wires within its runs
of 2^k have been compared: the state is then [wires, 2^k, rows], where a wire's items are those of
its run. This halves the work.
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
"""Numbers in the state of a chunk of rows: few enough for a cache, enough to occupy the device."""


def sorting_cross_entropy(
    x: Tensor,
    y: Tensor,
    network: Network = "bitonic",
    x_steepness: float = 20.0,
    y_steepness: float = 3.0,
    distribution: Distribution = "cauchy",
    epsilon: float = 1e-6,
) -> Tensor:
    """Return the mean over items of -sum over positions of P(x) log(P(y) + epsilon).

    [..., n], [..., n] → [...], with P as `soft_permutation`. For 3DPoV's loss x are the student's
    similarities and y the teacher's; for NeCo's x are the teacher's and y the student's. Either may
    lack leading axes of the other, for example y the axis of frames that x has. On the CPU its
    permutations are then computed once for all of them, unless it needs a gradient.

    Differentiable once, in both inputs. Computed in float32 (float64 for float64 input), also under
    autocast. Raises ValueError for shapes that differ in more than leading axes.
    """
    shape = max(x.shape, y.shape, key=len)
    if any(values.shape != shape[-values.ndim :] for values in (x, y)):
        raise ValueError(
            f"x and y should have the same shape, not {tuple(x.shape)} and {tuple(y.shape)}; "
            "only leading axes may be missing"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    sorts = Sort(network, x_steepness, distribution), Sort(network, y_steepness, distribution)
    # A side that needs a gradient is expanded to all rows, so that autograd sums its gradient.
    wanted = tuple(values.requires_grad and torch.is_grad_enabled() for values in (x, y))
    full = [
        values.expand(shape) if want else values
        for values, want in zip((x, y), wanted, strict=True)
    ]
    rows = [values.reshape(-1, shape[-1]).to(dtype) for values in full]
    return _CrossEntropy.apply(*rows, sorts, epsilon, wanted).view(shape[:-1])


RowFunction = Callable[
    [Tensor, Tensor, tuple[Sort, Sort], float, tuple[bool, bool]],
    tuple[Tensor, Tensor | None, Tensor | None],
]
"""The signature of `cross_entropy_rows` and of the Triton kernel."""


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
        # The kernel computes in float32 only, and cannot be launched for no rows.
        on_gpu = x.device.type == "cuda" and x.dtype == torch.float32 and len(x) > 0
        compute = gpu_kernel(sorts, x.shape[1], wanted, x.device) if on_gpu else cross_entropy_rows
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
) -> RowFunction:
    """Return the Triton kernel after trying it on one row.

    Logs a warning and returns `cross_entropy_rows` if Triton is missing or the kernel fails.
    """
    try:
        kernel: RowFunction = import_module(
            "trainer.losses.sorting.cross_entropy_kernel.launch"
        ).cross_entropy_rows
        row = torch.zeros(1, n, device=device)
        kernel(row, row, sorts, 1e-6, wanted)
    except Exception as error:  # any failure to import, compile or launch: PyTorch takes over
        log.warning(
            "the sorting loss on %s: PyTorch, several times slower "
            "(its Triton kernel does not work: %r)",
            device,
            error,
        )
        return cross_entropy_rows
    return kernel


def cross_entropy_rows(
    x: Tensor, y: Tensor, sorts: tuple[Sort, Sort], epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return values [rows] and, where `wanted`, gradients by x and by y [rows, n]; on any device.

    x, y: [rows, n]. One side may have fewer rows if its gradient is not wanted; the other then has
    a multiple of them, in `runs` that each pair with the same rows.
    """
    n, rows = x.shape[1], min(len(x), len(y))
    runs = max(len(x), len(y)) // max(1, rows)
    values = x.new_empty(runs, rows)
    gradients = [
        torch.empty_like(side) if want else None for side, want in zip((x, y), wanted, strict=True)
    ]
    # A row's state has n x n numbers, and memory holds the states of one chunk at a time.
    chunk = max(1, (CPU_STATE if x.device.type == "cpu" else GPU_STATE) // n**2)
    for start in range(0, rows, chunk):
        part = min(chunk, rows - start)
        for run in range(runs):
            chunk_rows = slice(run * rows + start, run * rows + start + part)
            # The side with fewer rows is sorted once and compared with every run of the other.
            if run == 0 or len(x) > rows:
                p = NetworkPass(x[chunk_rows], sorts[0], wanted[0])
            if run == 0 or len(y) > rows:
                q = NetworkPass(y[chunk_rows], sorts[1], wanted[1])
                log_q = (q.state + epsilon).log_()
            if gradients[1] is not None:
                # d value / dQ = -P / (Q + epsilon) / n
                gradients[1][chunk_rows] = q.gradient((p.state / (q.state + epsilon)).div_(-n))
            values[run, start : start + part] = (p.state * log_q)[p.first :, p.first :].sum(
                dim=(0, 1)
            ) / -n
            if gradients[0] is not None:
                # d value / dP = -log(Q + epsilon) / n
                gradients[0][chunk_rows] = p.gradient(log_q / -n)
    return values.flatten(), gradients[0], gradients[1]


@dataclass(frozen=True)
class Layer:
    """A layer of comparators at one distance.

    In each of the `groups`, wires `start + 2 distance group + k` with k < distance are compared
    with the wires `distance` further on.
    """

    start: int
    distance: int
    groups: int
    width: int
    """Length of the runs of wires that have exchanged values after this layer."""
    signs: Tensor
    """[groups, 1, 1]: +1 if the first wire receives the smaller value, -1 if the larger."""
    missing: Tensor | None
    """[groups, distance, 1] bool: pairs without a comparator."""

    def pairs(self, wires: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the second wire of every pair, as views.

        [wires, ...] → twice [groups, distance, ...].
        """
        used = wires.narrow(0, self.start, 2 * self.groups * self.distance)
        pairs = used.unflatten(0, (self.groups, 2, self.distance))
        return pairs[:, 0], pairs[:, 1]


class NetworkPass:
    """A forward pass of rows [rows, n] through a network, and with `keep` its adjoint pass.

    `state` [positions, items, rows] is the soft permutation. The wires of a bitonic network are a
    power of two; if n is not, the wires before `first` have no comparators.
    """

    def __init__(self, x: Tensor, sort: Sort, keep: bool) -> None:
        n = x.shape[1]
        self.layers = layers(sort.network, n, x.device)
        self.first = (2 ** (n - 1).bit_length() - n) if sort.network == "bitonic" else 0
        # per layer: exchanged fraction, its derivative, and second - first of values and state
        self.saved: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        values = torch.nn.functional.pad(x, (self.first, 0)).T.contiguous()
        state = values.new_ones(len(values), 1, len(x))
        for layer in self.layers:
            state = widened(state, layer.width)
            swap, slope = compared(values, layer, sort)
            steps = [mixed(t, layer, swap) for t in (values, state)]
            if keep:
                self.saved.append((swap, slope, *steps))  # type: ignore[arg-type]
        self.state = state if self.layers else values.new_ones(n, n, len(x))

    def gradient(self, target: Tensor) -> Tensor:
        """Return the derivative of <state, target> by the rows, [rows, n].

        Overwrites `target` and consumes the saved layers: call it once.
        """
        # `adjoint` [wires, rows] is the derivative by the values, taken back layer by layer
        adjoint = target.new_zeros(len(target), target.shape[2])
        while self.saved:
            layer = self.layers[len(self.saved) - 1]
            swap, slope, value_step, step = self.saved.pop()
            target = narrowed(target, layer.width)
            # the mixing matrix is symmetric: the same `mixed` takes the adjoint states back
            value_step *= mixed(adjoint, layer, swap)
            by_keep = step.mul_(mixed(target, layer, swap)).sum(dim=2).add_(value_step).mul_(slope)
            # the kept fraction depends on second - first
            first, second = layer.pairs(adjoint)
            first -= by_keep
            second += by_keep
        return adjoint[self.first :].T


def compared(values: Tensor, layer: Layer, sort: Sort) -> tuple[Tensor, Tensor]:
    """Return the fraction that each pair exchanges, and the derivative of the kept fraction.

    The derivative is by second - first. Both are [groups, distance, rows].
    """
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
    """Apply a layer to wires [wires, ..., rows] in place; return second - first from before."""
    first, second = layer.pairs(wires)
    difference = second - first
    # A state has an axis of items between wires and rows; all items move by the same fraction.
    swap = swap if wires.ndim == 2 else swap.unsqueeze(2)
    first.addcmul_(difference, swap)
    second.addcmul_(difference, swap, value=-1)
    return difference


def widened(state: Tensor, width: int) -> Tensor:
    """Extend a state [wires, items, rows] with zeros to the items of runs of `width` wires.

    Returns [wires, width, rows]. A wire holds nothing yet of the items it gains.
    """
    wires, items, rows = state.shape
    if items == width:
        return state
    # A run of `width` wires consists of `runs` shorter ones. Only the diagonal blocks are filled:
    # items of one short run have not reached the wires of another yet.
    runs = width // items
    wide = state.new_zeros(wires // width, runs, items, runs, items, rows)
    wide.diagonal(dim1=1, dim2=3).copy_(
        state.view(-1, runs, items, items, rows).permute(0, 2, 3, 4, 1)
    )
    return wide.view(wires, width, rows)


def narrowed(state: Tensor, width: int) -> Tensor:
    """Undo `widened`: keep only the items of each wire's own run of `width` wires."""
    wires, items, rows = state.shape
    if items == width:
        return state
    runs = items // width
    diagonal = state.view(wires // items, runs, width, runs, width, rows).diagonal(dim1=1, dim2=3)
    return diagonal.permute(0, 4, 1, 2, 3).reshape(wires, width, rows)


@lru_cache(maxsize=16)
def layers(network: Network, n: int, device: torch.device) -> list[Layer]:
    """Return the layers of a network of n wires; for `bitonic`, of the next power of two.

    The same networks as `trainer.losses.sorting.network.network_layers`, as reshapes of the wires.
    """
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
    # Bit block + 1 of a wire's number alternates the direction of sorting from run to run.
    first = torch.arange(wires, device=device).view(groups, 2, distance)[:, 0, :, None]
    signs = 1 - 2 * ((first[:, :1] >> (block + 1)) % 2)
    missing = first < wires - n
    return Layer(0, distance, groups, 2 ** (block + 1), signs, missing if n < wires else None)
