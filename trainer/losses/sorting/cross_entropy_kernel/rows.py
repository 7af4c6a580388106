"""The kernel: programs of one warp that take one row after the other.

Each row takes three steps:

1. `compare` sorts the values themselves, and stores what every layer exchanges.
2. `_state_row` takes the states of a few items at a time through the network and back. Items
   interact only in the sums of the gradient, one per pair of wires and layer.
3. `derivative_by_values` takes these sums back through the network to the gradient by the values.

A state is a tuple of up to 16 tensors [items, h], one per wire of a run: wire 16 h + r is in tensor
r. Layers within a run therefore combine whole registers, and only distances from 16 on move numbers
between lanes.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005 (Triton has no starred tuples)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.bitonic import bitonic_adjoint, bitonic_forward
from trainer.losses.sorting.cross_entropy_kernel.instructions import (
    fast_exp2,
    fast_log2,
    read,
    write,
    write_where,
)
from trainer.losses.sorting.cross_entropy_kernel.odd_even import odd_even_adjoint, odd_even_forward
from trainer.losses.sorting.cross_entropy_kernel.values import compare, derivative_by_values


@triton.jit
def _targets(p, q, at, epsilon, SIDE: tl.constexpr, RUN: tl.constexpr):
    """Store the derivatives by P and Q of the sum over p log(q + epsilon); return the sum."""
    SIZE: tl.constexpr = p[0].shape[0] * p[0].shape[1]
    value = tl.zeros(p[0].shape, tl.float32)
    for r in tl.static_range(RUN):
        log2_q = fast_log2(q[r] + epsilon)
        log_q = log2_q * 0.6931471805599453
        value += p[r] * log_q
        write(at + r * SIZE, log_q)
        write(at + SIDE + r * SIZE, p[r] * fast_exp2(-log2_q))
    return value


@triton.jit
def _state_row(
    value_at, scratch, epsilon, first_side, last_side, layers, first, last,
    ROOM: tl.constexpr, WIRES: tl.constexpr, RUN: tl.constexpr, ITEMS: tl.constexpr,
    BITONIC: tl.constexpr,
):  # fmt: skip
    """Return the sum over items and wires of p log(q + epsilon); add the sums of the gradient."""
    HIGH: tl.constexpr = WIRES // RUN
    PART: tl.constexpr = ROOM * WIRES
    TARGETS: tl.constexpr = RUN * ITEMS * HIGH
    SAVED: tl.constexpr = RUN * ITEMS * (HIGH - 1) if BITONIC else PART // 2 * ITEMS
    saved_at = scratch + 6 * PART
    targets_at = saved_at + 2 * SAVED
    for start in range(first // ITEMS * ITEMS, last, ITEMS):
        p, q = (), ()
        for _ in tl.static_range(RUN):
            p = p + (tl.zeros((ITEMS, HIGH), tl.float32),)
            q = q + (tl.zeros((ITEMS, HIGH), tl.float32),)
        for back in range(2):
            side = 1 - back
            swaps, saved = scratch + side * PART, saved_at + side * SAVED
            q = p
            if BITONIC:
                p = bitonic_forward(swaps, saved, start, first, RUN, ITEMS, WIRES)
            else:
                p = odd_even_forward(swaps, saved, start, layers, last, RUN, ITEMS, WIRES)
        items = tl.arange(0, ITEMS)[:, None]
        at = targets_at + items * HIGH + tl.arange(0, HIGH)[None, :]
        # The value is kept in memory, since registers are scarce from here on.
        tl.store(value_at, tl.load(value_at) + tl.sum(_targets(p, q, at, epsilon, TARGETS, RUN)))
        tl.debug_barrier()
        for side in range(first_side, last_side):
            swaps, sums = scratch + side * PART, scratch + (4 + side) * PART
            saved, targets = saved_at + side * SAVED, targets_at + side * TARGETS
            if BITONIC:
                bitonic_adjoint(swaps, sums, saved, targets, start, first, RUN, ITEMS, WIRES)
            else:
                odd_even_adjoint(swaps, sums, saved, targets, layers, RUN, ITEMS, WIRES)
        tl.debug_barrier()


# None of these is compiled into the kernel.
ARGUMENTS = (
    "x_at", "y_at", "values_at", "by_x_at", "by_y_at", "scratch_at", "layers_at", "rows", "x_rows",
    "y_rows", "n", "layers", "cauchy", "first_side", "last_side", "x_steepness", "y_steepness",
    "epsilon",
)  # fmt: skip


@triton.jit(do_not_specialize=ARGUMENTS)
def compute_rows(
    x_at, y_at, values_at, by_x_at, by_y_at, scratch_at, layers_at,
    rows, x_rows, y_rows, n, layers, cauchy, first_side, last_side,
    x_steepness, y_steepness, epsilon,
    BITONIC: tl.constexpr, WIRES: tl.constexpr, RUN: tl.constexpr, ITEMS: tl.constexpr,
    ROOM: tl.constexpr, SCRATCH: tl.constexpr,
):  # fmt: skip
    """Compute the rows program_id, program_id + num_programs and so on."""
    # Wires without comparators fill up to a power of two: before the others in the bitonic network
    # and behind them in the other one.
    first = WIRES - n if BITONIC else 0
    scratch = scratch_at + tl.program_id(0).to(tl.int64) * SCRATCH
    sides = tl.arange(0, 2)[:, None]
    wires = tl.arange(0, WIRES)[None, :]
    real = (wires >= first) & (wires < first + n)
    places = tl.minimum(tl.maximum(wires - first, 0), n - 1)
    steepness = tl.where(sides == 0, x_steepness, y_steepness)
    # odd-even layers are taken in twos; one without comparators is added to an odd number of them
    padded = (layers + 1) // 2 * 2 if not BITONIC else layers
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x = read(x_at + (row % x_rows) * n + places)
        y = read(y_at + (row % y_rows) * n + places)
        values = tl.where(real, tl.where(sides == 0, x, y), 0.0)
        tl.store(values_at + row, 0.0)
        compare(
            values, steepness, scratch, layers_at, padded, first, first + n, cauchy,
            ROOM, WIRES, RUN,
        )  # fmt: skip
        tl.debug_barrier()
        _state_row(
            values_at + row, scratch, epsilon, first_side, last_side, padded, first, first + n,
            ROOM, WIRES, RUN, ITEMS, BITONIC,
        )  # fmt: skip
        tl.store(values_at + row, tl.load(values_at + row) / -n)
        if first_side < last_side:
            by_values = derivative_by_values(
                steepness, scratch, layers_at, layers, first, first + n, cauchy, ROOM, WIRES, RUN
            )
            by_values = -by_values / n
            if first_side == 0:
                write_where(by_x_at + row * n + places, by_values, real & (sides == 0))
            if last_side == 2:
                write_where(by_y_at + row * n + places, by_values, real & (sides == 1))
        tl.debug_barrier()
