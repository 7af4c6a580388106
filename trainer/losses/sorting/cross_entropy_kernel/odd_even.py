"""Take states through the odd-even network and back.

It has no independent halves as the bitonic network has, so the differences of all its layers are
stored.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005, SIM108 (Triton has neither starred tuples nor tuples in conditional expressions)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.instructions import log2, read, write
from trainer.losses.sorting.cross_entropy_kernel.lane_sums import (
    add_sums,
    sum_over_lanes,
    sum_within_lanes,
)


@triton.jit
def _neighbour(t, STEP: tl.constexpr):
    """Return t [items, h] of h + STEP; the outermost h keeps its own."""
    HIGH: tl.constexpr = t.shape[1]
    if HIGH > 1:
        h = tl.arange(0, HIGH)[None, :]
        index = tl.minimum(tl.maximum(h + STEP, 0), HIGH - 1)
        t = tl.gather(t, tl.broadcast_to(index, t.shape), 1)
    return t


@triton.jit
def _neighbours(
    x, swaps, sums_at, differences_at,
    RUN: tl.constexpr, HIGH: tl.constexpr, START: tl.constexpr, LANES: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """Apply a layer of neighbours, from wire START = 0 or 1 on, to a state or with BACK an adjoint.

    A state's differences are stored; with BACK they are read, and their products with the
    adjoint's are summed up.
    """
    SIZE: tl.constexpr = x[0].shape[0] * HIGH
    first, second, products = (), (), ()
    for k in tl.static_range(RUN // 2):
        low = x[2 * k + START]
        if 2 * k + 1 + START < RUN:
            high = x[2 * k + 1 + START]
        else:
            high = _neighbour(x[0], 1)
        difference = high - low
        step = read(swaps + (2 * k + START) * HIGH) * difference
        if BACK:
            product = read(differences_at + k * SIZE) * difference
            products = products + (sum_within_lanes(product, LANES),)
        else:
            write(differences_at + k * SIZE, difference)
        first = first + (low + step,)
        if 2 * k + 1 + START < RUN:
            second = second + (high - step,)
        else:
            # The pair's second wire is the first of the next h.
            is_first = (tl.arange(0, HIGH) == 0)[None, :]
            second = second + (x[0] - tl.where(is_first, 0.0, _neighbour(step, -1)),)
    if BACK:
        BITS: tl.constexpr = log2(RUN) - 1
        sums = sum_over_lanes(products, BITS, LANES)
        add_sums(sums, sums_at + START * HIGH, 0, BITS, HIGH, LANES, LANES)
    mixed = ()
    for r in tl.static_range(RUN):
        if (r - START) % 2 == 0:
            mixed = mixed + (first[(r - START) // 2],)
        else:
            mixed = mixed + (second[(r - START - 1 + RUN) % RUN // 2],)
    return mixed


@triton.jit
def odd_even_forward(
    swaps, differences_at, start, layers, last,
    RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Return the state of some items after all layers; store the differences of every layer."""
    HIGH: tl.constexpr = WIRES // RUN
    LANES: tl.constexpr = min(ITEMS, 32 // HIGH)
    LAYER: tl.constexpr = WIRES // 2 * ITEMS
    items = tl.arange(0, ITEMS)[:, None]
    h = tl.arange(0, HIGH)[None, :]
    x = ()
    for r in tl.static_range(RUN):
        own = (start + items == h * RUN + r) & (start + items < last)
        x = x + (tl.where(own, 1.0, 0.0),)
    at = differences_at + items * HIGH + h
    for layer in range(0, layers, 2):
        here = swaps + layer * WIRES + h
        x = _neighbours(x, here, here, at + layer * LAYER, RUN, HIGH, 0, LANES, False)
        here += WIRES
        x = _neighbours(x, here, here, at + (layer + 1) * LAYER, RUN, HIGH, 1, LANES, False)
    return x


@triton.jit
def odd_even_adjoint(
    swaps, sums_at, differences_at, targets_at, layers,
    RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Add the sums of all layers for some items, given the target in memory."""
    HIGH: tl.constexpr = WIRES // RUN
    LANES: tl.constexpr = min(ITEMS, 32 // HIGH)
    LAYER: tl.constexpr = WIRES // 2 * ITEMS
    h = tl.arange(0, HIGH)[None, :]
    own = tl.arange(0, ITEMS)[:, None] * HIGH + h
    y = ()
    for r in tl.static_range(RUN):
        y = y + (read(targets_at + own + r * ITEMS * HIGH),)
    at = differences_at + own
    for back in range(0, layers, 2):
        layer = layers - 1 - back
        here = layer * WIRES + h
        y = _neighbours(
            y, swaps + here, sums_at + here, at + layer * LAYER, RUN, HIGH, 1, LANES, True
        )
        here -= WIRES
        y = _neighbours(
            y, swaps + here, sums_at + here, at + (layer - 1) * LAYER, RUN, HIGH, 0, LANES, True
        )
