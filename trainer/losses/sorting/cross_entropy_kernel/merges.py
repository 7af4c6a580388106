"""Layers of the bitonic network within a run of wires, and their adjoint.

A merge of 2^k wires consists, after its first layer, of two independent merges of half as many.
`_run_adjoint` takes them one after the other, forward and back: the differences that the gradient
needs stay in registers.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005 (Triton has no starred tuples)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.instructions import log2, read
from trainer.losses.sorting.cross_entropy_kernel.lane_sums import (
    add_sums,
    join_sums,
    rejoin_sums,
    sum_over_lanes,
    sum_within_lanes,
)


@triton.jit
def _layer(x, swaps, RUN: tl.constexpr, D: tl.constexpr, HIGH: tl.constexpr):
    """Apply a layer of distance D to a tuple of RUN wires."""
    first, second = (), ()
    for pair in tl.static_range(RUN // 2):
        swap = read(swaps + (pair // D * 2 * D + pair % D) * HIGH)
        low = x[pair // D * 2 * D + pair % D]
        high = x[pair // D * 2 * D + pair % D + D]
        step = swap * (high - low)
        first = first + (low + step,)
        second = second + (high - step,)
    mixed = ()
    for r in tl.static_range(RUN):
        if r % (2 * D) < D:
            mixed = mixed + (first[r // (2 * D) * D + r % D],)
        else:
            mixed = mixed + (second[r // (2 * D) * D + r % D],)
    return mixed


@triton.jit
def merge(x, swaps, RUN: tl.constexpr, K: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr):
    """Apply the layers of distances 2^K to 1 to a tuple of RUN wires, each [items, h].

    swaps: pointers [1, h] to the fractions of the first layer.
    """
    for layer in tl.static_range(K + 1):
        x = _layer(x, swaps + layer * WIRES, RUN, 1 << (K - layer), HIGH)
    return x


@triton.jit
def _run_adjoint(
    x, target, swaps,
    START: tl.constexpr, K: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
    LANES: tl.constexpr, IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take the adjoint of wires START to START + 2^(K+1) back through layers of distances 2^K to 1.

    x: the wires before the layers. target: their adjoint after them, as a tuple or as a pointer
    tensor to wire 0's. Returns the adjoint before the layers and per layer the sums of its pairs.
    """
    D: tl.constexpr = 1 << K
    low, high, swap, difference = (), (), (), ()
    for k in tl.static_range(D):
        swap = swap + (read(swaps + (START + k) * HIGH),)
        difference = difference + (x[k + D] - x[k],)
        step = swap[k] * difference[k]
        low = low + (x[k] + step,)
        high = high + (x[k + D] - step,)
    deeper = ()
    if K > 0:
        # The two halves are independent from here on: one after the other needs fewer registers.
        low, low_sums = _run_adjoint(
            low, target, swaps + WIRES, START, K - 1, HIGH, WIRES, LANES, IN_MEMORY
        )
        if K > 0:
            # Keeps the compiler from loading the other half's numbers early: registers are scarce.
            tl.debug_barrier()
        high, high_sums = _run_adjoint(
            high, target, swaps + WIRES, START + D, K - 1, HIGH, WIRES, LANES, IN_MEMORY
        )
        for layer in tl.static_range(K):
            deeper = deeper + (
                join_sums(low_sums[layer], high_sums[layer], max(1, D // 2 // LANES), K - 1, LANES),
            )
    elif IN_MEMORY:
        SIZE: tl.constexpr = x[0].shape[0] * x[0].shape[1]
        low = (read(target + START * SIZE),)
        high = (read(target + (START + 1) * SIZE),)
    else:
        low = (target[START],)
        high = (target[START + 1],)
    if K > 0:
        swap = ()
        for k in tl.static_range(D):
            swap = swap + (read(swaps + (START + k) * HIGH),)
    first, second, products = (), (), ()
    for k in tl.static_range(D):
        by_step = high[k] - low[k]
        products = products + (sum_within_lanes(difference[k] * by_step, LANES),)
        step = swap[k] * by_step
        first = first + (low[k] + step,)
        second = second + (high[k] - step,)
    return first + second, (sum_over_lanes(products, K, LANES),) + deeper


@triton.jit
def merge_adjoint(
    x, target, swaps, sums_at,
    RUN: tl.constexpr, K: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
    LANES: tl.constexpr, SUMMED: tl.constexpr, IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take the adjoint of RUN wires back through the layers of distances 2^K to 1.

    Adds the sums of the layers, over runs of SUMMED lanes, to memory. Returns the adjoint before
    the layers.
    """
    SPAN: tl.constexpr = 2 << K
    adjoint = ()
    runs = ()
    for run in tl.static_range(RUN // SPAN):
        part = ()
        for r in tl.static_range(SPAN):
            part = part + (x[run * SPAN + r],)
        part, sums = _run_adjoint(part, target, swaps, run * SPAN, K, HIGH, WIRES, LANES, IN_MEMORY)
        adjoint = adjoint + part
        runs = runs + (sums,)
    BITS: tl.constexpr = log2(RUN // 2)
    for layer in tl.static_range(K + 1):
        sums = ()
        for run in tl.static_range(RUN // SPAN):
            sums = sums + runs[run][layer]
        sums = rejoin_sums(sums, K, BITS, LANES)
        add_sums(sums, sums_at + layer * WIRES, K - layer, BITS, HIGH, LANES, SUMMED)
    return adjoint
