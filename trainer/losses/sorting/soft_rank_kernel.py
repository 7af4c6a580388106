"""Triton kernels for soft ranks, the Spearman loss, and their gradients.

They compute what `trainer.losses.sorting.soft_rank` defines, the only module that imports this one.

One program computes one row: it sorts the row, finds the blocks of the isotonic regression by
pooling adjacent violators, and writes results in the row's own order. Everything stays in
registers. Sums over blocks are segmented scans; differences of cumulative sums over the row would
lose digits in float32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 1024
"""Values in the longest row."""
NARROWEST = 32
"""Width that shorter rows are padded to: a warp's threads."""


@triton.jit
def _sorted(row_at, N: tl.constexpr, WIDTH: tl.constexpr):
    """Load a row and sort it in descending order, equal values in their order of appearance.

    Returns values and their indices in the row; both are 0 from N on.
    """
    index = tl.arange(0, WIDTH)
    bits = tl.load(row_at + index, mask=index < N, other=0.0).to(tl.int32, bitcast=True)
    # As integers, floats are ordered as they are, but negative ones backward: flip those.
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    # One sort for both: the value is in the upper 32 bits, the index in the lower ones.
    keys = (falling.to(tl.int64) << 32) | index.to(tl.int64)
    keys = tl.sort(tl.where(index < N, keys, 0x7FFFFFFFFFFFFFFF))
    rising = ~((keys >> 32).to(tl.int32))
    values = (rising ^ ((rising >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    order = (keys & 0xFFFFFFFF).to(tl.int32)
    return tl.where(index < N, values, 0.0), tl.where(index < N, order, 0)


@triton.jit
def _join(far_sum, far_code, near_sum, near_code):
    """Extend the sum of a block over a range that is nearer to the element it is computed for.

    A code holds the number of elements summed, from bit 2 up; bit 0: the range has a boundary, and
    the sum is of what is nearer than it; bit 1: the range ends in a boundary, which separates it
    from nearer ones.
    """
    reset = (near_code | (far_code >> 1)) & 1
    total = tl.where(reset == 1, near_sum, far_sum + near_sum)
    code = tl.where(reset == 1, near_code | 1, near_code + (far_code & -3))
    return total, code


@triton.jit
def _deviations(values, last):
    """Return values - mean of their block, the size of each one's block, and its place from 1.

    last: 1 for the last element of each block, else 0.
    """
    before, place = tl.associative_scan((values, 4 + 2 * last), 0, _join)
    after, remaining = tl.associative_scan((values, 4 + last), 0, _join, reverse=True)
    place, remaining = place >> 2, remaining >> 2
    size = (place + remaining - 1).to(tl.float32)
    return values - tl.div_rn(before + after - values, size), size, place


@triton.jit
def _pooled(values, strength, N: tl.constexpr, WIDTH: tl.constexpr):
    """Return 1 for the last element of each block of the isotonic regression, else 0.

    values: in descending order. Regression is of values / strength - (N, N - 1, .. 1). A block
    violates the order if its mean is not above that of the next block. All violating neighbours
    are pooled at once, until there are none.
    """
    index = tl.arange(0, WIDTH)
    following = tl.gather(values, tl.minimum(index + 1, WIDTH - 1), 0)
    last = index * 0 + 1
    violations = 1
    while violations > 0:
        # the block that ends here, and the block that begins with the next element
        here, size = tl.associative_scan((values, 4 + 2 * last), 0, _join)
        next, next_size = tl.associative_scan((following, 4 + 2 * last), 0, _join, reverse=True)
        size, next_size = (size >> 2).to(tl.float32), (next_size >> 2).to(tl.float32)
        # The means of N, N - 1, .. 1 over both differ by half their sizes. All is multiplied by
        # the sizes instead of divided, so that small integers are compared exactly.
        gap = here * next_size - next * size
        violates = gap <= strength * (0.5 * (size + next_size) * size * next_size)
        violates = (violates & (index < N - 1)).to(tl.int32) & last
        last -= violates
        violations = tl.max(violates, axis=0)
    return last


@triton.jit
def _ranked(values, strength, scale, N: tl.constexpr, WIDTH: tl.constexpr):
    """Return the soft ranks of values in descending order, and the last elements of blocks."""
    last = _pooled(values, strength, N, WIDTH)
    # Rounding of the first mean is relative to the values; of the second, to their deviations.
    deviations, size, place = _deviations(values, last)
    deviations, _, _ = _deviations(deviations, last)
    # the mean of N, N - 1, .. 1 over the block
    mean = (N - 1 - tl.arange(0, WIDTH) + place).to(tl.float32) - 0.5 * (size - 1)
    return mean + deviations * scale, last


@triton.jit
def _forward(values_at, ranks_at, blocks_at, strength, scale, N: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the soft ranks of a row, and what the gradient needs.

    Per sorted element: its index in the row, negative (-1 - index) if it is the last of its block.
    """
    row = tl.program_id(0).to(tl.int64) * N
    index = tl.arange(0, WIDTH)
    values, order = _sorted(values_at + row, N, WIDTH)
    # Ranks do not change with a shift, and smaller values have more digits after the point. The
    # smallest one is subtracted where all have the same sign: this loses no digit of the others.
    lowest = tl.min(tl.where(index < N, values, float("inf")), axis=0)
    highest = tl.max(tl.where(index < N, values, float("-inf")), axis=0)
    values -= tl.maximum(lowest, 0.0) + tl.minimum(highest, 0.0)
    ranks, last = _ranked(values, strength, scale, N, WIDTH)
    tl.store(ranks_at + row + order, ranks, mask=index < N)
    blocks = tl.where(last == 1, -1 - order, order).to(tl.int16)
    tl.store(blocks_at + row + index, blocks, mask=index < N)


@triton.jit
def _backward(gradient_at, blocks_at, result_at, scale, N: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the gradient by the values: (gradient - its mean over the block) * scale."""
    row = tl.program_id(0).to(tl.int64) * N
    index = tl.arange(0, WIDTH)
    blocks = tl.load(blocks_at + row + index, mask=index < N, other=-1).to(tl.int32)
    last = (blocks < 0).to(tl.int32)
    order = tl.where(last == 1, -1 - blocks, blocks)
    gradient = tl.load(gradient_at + row + order, mask=index < N, other=0.0)
    deviations, _, _ = _deviations(gradient, last)
    tl.store(result_at + row + order, deviations * scale, mask=index < N)


@triton.jit
def _centred(values, N: tl.constexpr, WIDTH: tl.constexpr):
    """Return values - mean, 0 from N on, and the root of the sum of their squares."""
    mean = tl.sum(values, axis=0) / N
    values = tl.where(tl.arange(0, WIDTH) < N, values - mean, 0.0)
    return values, tl.sqrt(tl.sum(values * values, axis=0))


@triton.jit
def _spearman(
    values_at, order_at, losses_at, result_at, orders, strength, scale,
    N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute the Spearman loss of a row, and its gradient by the values."""
    program = tl.program_id(0)
    row = program.to(tl.int64) * N
    index = tl.arange(0, WIDTH)
    values, order = _sorted(values_at + row, N, WIDTH)
    target_at = order_at + (program % orders).to(tl.int64) * N + order
    target = tl.load(target_at, mask=index < N, other=0.0)

    values, norm = _centred(values, N, WIDTH)
    # the square root of the smallest normal number, as in `standardised`
    deviation = tl.maximum(norm / tl.sqrt(N * 1.0), 1.0842021724855044e-19)
    ranks, last = _ranked(values / deviation, strength, scale, N, WIDTH)
    ranks, rank_norm = _centred(tl.where(index < N, ranks, 0.0), N, WIDTH)
    target, target_norm = _centred(target, N, WIDTH)
    # as in torch's `cosine_similarity`
    ranks, target = ranks / tl.maximum(rank_norm, 1e-8), target / tl.maximum(target_norm, 1e-8)
    correlation = tl.sum(ranks * target, axis=0)
    tl.store(losses_at + program, 1 - correlation)

    # back through the correlation, the regression and the scale
    by_rank = (correlation * ranks - target) / tl.maximum(rank_norm, 1e-8)
    by_value, _, _ = _deviations(by_rank, last)
    tl.store(result_at + row + order, by_value * scale / deviation, mask=index < N)


def soft_rank_rows(values: Tensor, strength: float) -> Tensor:
    """Compute the same as `trainer.losses.sorting.soft_rank.soft_rank` on a GPU.

    values: float32 [rows, n]. Differentiable once. Raises ValueError if the rows are too long.
    """
    return _SoftRank.apply(values, strength)  # type: ignore[no-any-return]


class _SoftRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ranks, blocks = ranks_and_blocks(values, strength)
        ctx.save_for_backward(blocks)
        ctx.strength = strength
        return ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient_by_values(gradient, *ctx.saved_tensors, ctx.strength), None


def spearman_rows(values: Tensor, order: Tensor, strength: float) -> Tensor:
    """Compute the same as `trainer.losses.sorting.soft_rank.spearman_loss` on a GPU, in float32.

    Raises ValueError if the rows are too long.
    """
    return _Spearman.apply(values, order, strength)  # type: ignore[no-any-return]


class _Spearman(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, strength: float) -> Tensor:
        losses, by_values = losses_and_gradient(values, order, strength)
        ctx.save_for_backward(by_values)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (by_values,) = ctx.saved_tensors
        return gradient.unsqueeze(-1) * by_values, None, None


# As operators of PyTorch, the kernels can be traced without a GPU (fake tensors) and compiled.
@torch.library.custom_op("pretrack::soft_rank", mutates_args=())
def ranks_and_blocks(values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return the soft ranks, and int16 [rows, n] with the order and the blocks of each row."""
    values = values.contiguous()
    ranks, blocks = torch.empty_like(values), torch.empty_like(values, dtype=torch.int16)
    with torch.cuda.device_of(values):
        _forward[(len(values),)](
            values, ranks, blocks, strength, 1 / strength, **_options(values.shape[1])
        )
    return ranks, blocks


@torch.library.custom_op("pretrack::soft_rank_gradient", mutates_args=())
def gradient_by_values(gradient: Tensor, blocks: Tensor, strength: float) -> Tensor:
    """Return the gradient by the values, from that by the ranks."""
    gradient = gradient.contiguous()
    result = torch.empty_like(gradient)
    with torch.cuda.device_of(gradient):
        _backward[(len(gradient),)](
            gradient, blocks, result, 1 / strength, **_options(gradient.shape[1])
        )
    return result


@torch.library.custom_op("pretrack::spearman_loss", mutates_args=())
def losses_and_gradient(values: Tensor, order: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Return the losses [...] of values [..., n], and their gradients by the values."""
    values, order = values.contiguous(), order.contiguous()
    n = values.shape[-1]
    losses, by_values = values.new_empty(values.shape[:-1]), torch.empty_like(values)
    with torch.cuda.device_of(values):
        _spearman[(losses.numel(),)](
            values, order, losses, by_values, order.numel() // n, strength, 1 / strength,
            **_options(n),
        )  # fmt: skip
    return losses, by_values


@losses_and_gradient.register_fake
def _(values: Tensor, order: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    contiguous = torch.empty_like(values, memory_format=torch.contiguous_format)
    return values.new_empty(values.shape[:-1]), contiguous


@ranks_and_blocks.register_fake
def _(values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    contiguous = torch.empty_like(values, memory_format=torch.contiguous_format)
    return contiguous, torch.empty_like(contiguous, dtype=torch.int16)


@gradient_by_values.register_fake
def _(gradient: Tensor, blocks: Tensor, strength: float) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def _options(n: int) -> dict[str, int | bool]:
    """Return the constants and launch options of all kernels for rows of n values."""
    if n > LONGEST:
        raise ValueError(f"rows of {n} values are too long, the limit is {LONGEST}")
    width = max(NARROWEST, 1 << (n - 1).bit_length())
    # Up to 8 values per thread, one warp is fastest: its threads need no barriers.
    warps = 1 if width <= 256 else width // 128
    # Without fused multiply-add, products of equal numbers stay equal: `_pooled` compares them.
    return {
        "N": n, "WIDTH": width, "num_warps": warps, "enable_fp_fusion": False,
    }  # fmt: skip
