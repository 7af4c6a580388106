"""Take states through the bitonic network and back.

Items start on their own wires, and a block of the network doubles the run of wires that they reach.
Before a block, a state is stored for that run alone.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005, SIM108 (Triton has neither starred tuples nor tuples in conditional expressions)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.instructions import log2, read, write
from trainer.losses.sorting.cross_entropy_kernel.lane_sums import (
    across,
    add_sums,
    join_sums,
    sum_over_lanes,
    sum_within_lanes,
)
from trainer.losses.sorting.cross_entropy_kernel.merges import merge, merge_adjoint


@triton.jit
def _single(start, first, RUN: tl.constexpr, RUNS: tl.constexpr):
    """Return the state of RUN items on their own wires, for several runs: one tensor [items, runs].

    Items before `first` are zero on every wire: they then contribute nothing.
    """
    items = tl.arange(0, RUNS)[None, :] * RUN + tl.arange(0, RUN)[:, None]
    return (tl.where(start + items >= first, 1.0, 0.0),)


@triton.jit
def _short_block(BLOCK: tl.constexpr, RUN: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr):
    """Return where a block's numbers are stored for each item's own run of 2^(BLOCK + 1) wires.

    Also returns whether the item is in the second half of this run. Both are [items, 1].
    """
    items = tl.arange(0, RUN)[:, None]
    LAYER: tl.constexpr = BLOCK * (BLOCK + 1) // 2
    return LAYER * WIRES + (items >> (BLOCK + 1) << (BLOCK + 1)) * HIGH, ((items >> BLOCK) & 1) == 1


@triton.jit
def _doubled(x, upper, swaps, COUNT: tl.constexpr, HIGH: tl.constexpr):
    """Apply a block's first layer: from COUNT wires that items have reached to twice as many."""
    first, second = (), ()
    for r in tl.static_range(COUNT):
        moved = read(swaps + r * HIGH) * x[r]
        kept = x[r] - moved
        first = first + (tl.where(upper, moved, kept),)
        second = second + (tl.where(upper, kept, moved),)
    return first + second


@triton.jit
def _doubled_adjoint(
    x, adjoint, upper, swaps, COUNT: tl.constexpr, HIGH: tl.constexpr
):  # fmt: skip
    """Take the adjoint back through `_doubled`. Also returns its products."""
    narrow, products = (), ()
    for r in tl.static_range(COUNT):
        by_step = adjoint[r + COUNT] - adjoint[r]
        step = read(swaps + r * HIGH) * by_step
        products = products + (tl.where(upper, x[r], -x[r]) * by_step,)
        narrow = narrow + (tl.where(upper, adjoint[r + COUNT] - step, adjoint[r] + step),)
    return narrow, products


@triton.jit
def _short_forward(
    x, swaps, BLOCK: tl.constexpr, RUN: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr
):  # fmt: skip
    """Apply a block whose runs are no longer than RUN to a tuple of 2^BLOCK wires."""
    place, upper = _short_block(BLOCK, RUN, HIGH, WIRES)
    x = _doubled(x, upper, swaps + place, 1 << BLOCK, HIGH)
    return merge(x, swaps + place + WIRES, 2 << BLOCK, BLOCK - 1, HIGH, WIRES)


@triton.jit
def _short_adjoint(
    x, target, swaps, sums_at,
    BLOCK: tl.constexpr, RUN: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
    IN_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take the adjoint back through `_short_forward`, and add the sums of its layers."""
    place, upper = _short_block(BLOCK, RUN, HIGH, WIRES)
    here = swaps + place
    SIZE: tl.constexpr = RUN * x[0].shape[1]
    if BLOCK > 0:
        adjoint = merge_adjoint(
            _doubled(x, upper, here, 1 << BLOCK, HIGH), target,
            here + WIRES, sums_at + place + WIRES,
            2 << BLOCK, BLOCK - 1, HIGH, WIRES, RUN, 2 << BLOCK, IN_MEMORY,
        )  # fmt: skip
    elif IN_MEMORY:
        adjoint = (read(target), read(target + SIZE))
    else:
        adjoint = target
    narrow, products = _doubled_adjoint(x, adjoint, upper, here, 1 << BLOCK, HIGH)
    sums = sum_over_lanes(products, BLOCK, RUN)
    add_sums(sums, sums_at + place, -1, BLOCK, HIGH, RUN, 2 << BLOCK)
    return narrow


@triton.jit
def _first_blocks(
    swaps, start, first,
    RUN: tl.constexpr, RUNS: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Apply the blocks that sort runs of up to RUN wires. Returns the state [items, runs]."""
    x = _single(start, first, RUN, RUNS)
    for block in tl.static_range(log2(RUN)):
        x = _short_forward(x, swaps, block, RUN, HIGH, WIRES)
    return x


@triton.jit
def _first_blocks_adjoint(
    target, swaps, sums_at, start, first,
    RUN: tl.constexpr, RUNS: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Add the sums of the blocks that sort runs of up to RUN wires."""
    BLOCKS: tl.constexpr = log2(RUN)
    x = _single(start, first, RUN, RUNS)
    starts = (x,)
    for block in tl.static_range(BLOCKS - 1):
        x = _short_forward(x, swaps, block, RUN, HIGH, WIRES)
        starts = starts + (x,)
    adjoint = _short_adjoint(x, target, swaps, sums_at, BLOCKS - 1, RUN, HIGH, WIRES, True)
    for back in tl.static_range(1, BLOCKS):
        adjoint = _short_adjoint(
            starts[BLOCKS - 1 - back], adjoint, swaps, sums_at,
            BLOCKS - 1 - back, RUN, HIGH, WIRES, False,
        )  # fmt: skip


@triton.jit
def _own(start, BLOCK: tl.constexpr, SPAN: tl.constexpr, ITEMS: tl.constexpr):
    """Return which h are in an item's own half of its run: [items, h], or [1, h] if all agree."""
    upper = (tl.arange(0, SPAN) // (SPAN // 2))[None, :]
    if (1 << BLOCK) < ITEMS:
        half = ((start + tl.arange(0, ITEMS)) >> BLOCK)[:, None] & 1
    else:
        half = (start >> BLOCK) & 1
    return upper == half


@triton.jit
def _entered(
    value, own, swaps, SPAN: tl.constexpr, WIRES: tl.constexpr
):  # fmt: skip
    """Apply a block's layers across h to one register of wires.

    value [items, h]: the own half of a run, repeated. Returns the state after the layers, and the
    values and differences before each of them.
    """
    swap = read(swaps)
    x = value * tl.where(own, 1 - swap, swap)
    differences = ()
    for layer in tl.static_range(1, log2(SPAN)):
        swap = read(swaps + layer * WIRES)
        difference = across(x, SPAN >> (layer + 1), 1) - x
        differences = differences + (difference,)
        x += swap * difference
    return x, differences


@triton.jit
def _block_start(
    starts, swaps, own, RUN: tl.constexpr, ITEMS: tl.constexpr, SPAN: tl.constexpr,
    HIGH: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Load the state before a block and apply the layers across h. Returns [items, h] per wire."""
    x = ()
    for r in tl.static_range(RUN):
        value = read(starts + r * (ITEMS * SPAN // 2))
        entered, _ = _entered(value, own, swaps + r * HIGH, SPAN, WIRES)
        x = x + (entered,)
    return x


@triton.jit
def _block_adjoint(
    starts, swaps, own, target, narrow_at, sums_at, RUN: tl.constexpr, ITEMS: tl.constexpr,
    SPAN: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Take the adjoint back through a block and store that of the own half of the run."""
    ACROSS: tl.constexpr = log2(SPAN)
    K: tl.constexpr = log2(RUN) - 1
    x = _block_start(starts, swaps, own, RUN, ITEMS, SPAN, HIGH, WIRES)
    adjoint = merge_adjoint(
        x, target, swaps + ACROSS * WIRES, sums_at + ACROSS * WIRES,
        RUN, K, HIGH, WIRES, LANES, LANES, True,
    )  # fmt: skip
    tl.debug_barrier()
    entered = _entered_adjoints(
        adjoint, starts, swaps, own, narrow_at, 0, K + 1, ITEMS, SPAN, HIGH, WIRES, LANES
    )
    for layer in tl.static_range(ACROSS):
        sums = entered[layer]
        if layer == 0:
            # The first layer's products lack the partner's part.
            whole = ()
            for i in tl.static_range(max(1, RUN // LANES)):
                part = sums[i]
                if own.shape[0] == 1:
                    part = tl.where(own, part, -part)
                whole = whole + (part + across(part, SPAN // 2, 1),)
            sums = whole
        add_sums(sums, sums_at + layer * WIRES, -1, K + 1, HIGH, LANES, LANES)
    tl.debug_barrier()


@triton.jit
def _entered_adjoints(
    adjoint, starts, swaps, own, narrow_at,
    START: tl.constexpr, BITS: tl.constexpr, ITEMS: tl.constexpr, SPAN: tl.constexpr,
    HIGH: tl.constexpr, WIRES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Take 2^BITS registers of an adjoint, from START on, back through a block's layers across h.

    Stores the adjoints of the own half. Returns the sums per layer.
    """
    sums = ()
    if BITS == 0:
        narrow, products = _entered_adjoint(
            read(starts + START * (ITEMS * SPAN // 2)), own, swaps + START * HIGH, adjoint[START],
            ITEMS, SPAN, WIRES, LANES,
        )  # fmt: skip
        write(narrow_at + START * (ITEMS * SPAN // 2), narrow)
        for layer in tl.static_range(log2(SPAN)):
            sums = sums + ((products[layer],),)
    else:
        HALF: tl.constexpr = 1 << (BITS - 1)
        low = _entered_adjoints(
            adjoint, starts, swaps, own, narrow_at,
            START, BITS - 1, ITEMS, SPAN, HIGH, WIRES, LANES,
        )  # fmt: skip
        if BITS > 2:
            tl.debug_barrier()
        high = _entered_adjoints(
            adjoint, starts, swaps, own, narrow_at,
            START + HALF, BITS - 1, ITEMS, SPAN, HIGH, WIRES, LANES,
        )  # fmt: skip
        for layer in tl.static_range(log2(SPAN)):
            joined = join_sums(low[layer], high[layer], max(1, HALF // LANES), BITS - 1, LANES)
            sums = sums + (joined,)
    return sums


@triton.jit
def _entered_adjoint(
    value, own, swaps, adjoint, ITEMS: tl.constexpr, SPAN: tl.constexpr, WIRES: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Take an adjoint [items, h] back through a block's layers across h.

    Returns the adjoint of the own half and the products per layer, [lanes, h] each.
    """
    ACROSS: tl.constexpr = log2(SPAN)
    _, differences = _entered(value, own, swaps, SPAN, WIRES)
    products = ()
    for back in tl.static_range(1, ACROSS):
        by_step = across(adjoint, SPAN >> (ACROSS - back + 1), 1) - adjoint
        product = sum_within_lanes(differences[ACROSS - back - 1] * by_step, LANES)
        products = (product,) + products
        adjoint += read(swaps + (ACROSS - back) * WIRES) * by_step
    if own.shape[0] > 1:
        product = value * tl.where(own, adjoint, -adjoint)
    else:
        product = value * adjoint  # the sign is that of all items: the caller applies it
    products = (sum_within_lanes(product, LANES),) + products
    swap = read(swaps)
    adjoint *= tl.where(own, 1 - swap, swap)
    return tl.sum(tl.reshape(adjoint, (ITEMS, 2, SPAN // 2)), axis=1), products


@triton.jit
def _starts(starts_at, BLOCK: tl.constexpr, RUN: tl.constexpr, ITEMS: tl.constexpr):
    """Return where the state before a block is stored."""
    return starts_at + RUN * ITEMS * ((1 << BLOCK) // RUN - 1)


@triton.jit
def _block_forward(
    swaps, starts_at, start, items,
    BLOCK: tl.constexpr, RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Load the state before a block of long runs and apply the block."""
    SPAN: tl.constexpr = (2 << BLOCK) // RUN
    LAYER: tl.constexpr = BLOCK * (BLOCK + 1) // 2
    HIGH: tl.constexpr = WIRES // RUN
    h = tl.arange(0, SPAN)
    here = swaps + LAYER * WIRES + ((start >> (BLOCK + 1)) * SPAN + h)[None, :]
    own = _own(start, BLOCK, SPAN, ITEMS)
    stored = _starts(starts_at, BLOCK, RUN, ITEMS)
    stored += items[:, None] * (SPAN // 2) + (h % (SPAN // 2))[None, :]
    x = _block_start(stored, here, own, RUN, ITEMS, SPAN, HIGH, WIRES)
    return merge(x, here + log2(SPAN) * WIRES, RUN, log2(RUN) - 1, HIGH, WIRES)


@triton.jit
def bitonic_forward(
    swaps, starts_at, start, first,
    RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Return the state of some items after all layers, one tensor [items, h] per wire of a run.

    Stores the states before the blocks whose runs have more than RUN wires.
    """
    HIGH: tl.constexpr = WIRES // RUN
    RUNS: tl.constexpr = ITEMS // RUN
    runs = tl.arange(0, RUNS)[None, :]
    x = _first_blocks(swaps + start // RUN + runs, start, first, RUN, RUNS, HIGH, WIRES)
    if HIGH > 1:
        to = _starts(starts_at, log2(RUN), RUN, ITEMS)
        to += tl.arange(0, RUN)[:, None] + runs * RUN
        for r in tl.static_range(RUN):
            write(to + r * ITEMS, x[r])
        tl.debug_barrier()
        items = tl.arange(0, ITEMS)
        for block in tl.static_range(log2(RUN), log2(WIRES)):
            x = _block_forward(swaps, starts_at, start, items, block, RUN, ITEMS, WIRES)
            if 2 << block < WIRES:
                to = _starts(starts_at, block + 1, RUN, ITEMS)
                to += items[:, None] * ((2 << block) // RUN) + tl.arange(0, (2 << block) // RUN)
                for r in tl.static_range(RUN):
                    write(to + r * ITEMS * ((2 << block) // RUN), x[r])
                tl.debug_barrier()
    return x


@triton.jit
def _long_block_adjoint(
    swaps, sums_at, starts_at, targets_at, start, items,
    BLOCK: tl.constexpr, RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Take the adjoint in memory back through a block of long runs; add the sums of its layers."""
    SPAN: tl.constexpr = (2 << BLOCK) // RUN
    LAYER: tl.constexpr = BLOCK * (BLOCK + 1) // 2
    HIGH: tl.constexpr = WIRES // RUN
    h = tl.arange(0, SPAN)
    where = LAYER * WIRES + ((start >> (BLOCK + 1)) * SPAN + h)[None, :]
    stored = _starts(starts_at, BLOCK, RUN, ITEMS)
    stored += items[:, None] * (SPAN // 2) + (h % (SPAN // 2))[None, :]
    narrow = items[:, None] * (SPAN // 2) + tl.arange(0, SPAN // 2)[None, :]
    _block_adjoint(
        stored, swaps + where, _own(start, BLOCK, SPAN, ITEMS),
        targets_at + items[:, None] * SPAN + h[None, :], targets_at + narrow, sums_at + where,
        RUN, ITEMS, SPAN, HIGH, WIRES, min(ITEMS, 32 // SPAN),
    )  # fmt: skip


@triton.jit
def bitonic_adjoint(
    swaps, sums_at, starts_at, targets_at, start, first,
    RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Add the sums of all layers for some items, given the target in memory."""
    HIGH: tl.constexpr = WIRES // RUN
    RUNS: tl.constexpr = ITEMS // RUN
    items = tl.arange(0, ITEMS)
    BLOCKS: tl.constexpr = log2(WIRES)
    for back in tl.static_range(BLOCKS - log2(RUN)):
        _long_block_adjoint(
            swaps, sums_at, starts_at, targets_at, start, items,
            BLOCKS - 1 - back, RUN, ITEMS, WIRES,
        )  # fmt: skip
    runs = tl.arange(0, RUNS)[None, :]
    _first_blocks_adjoint(
        targets_at + tl.arange(0, RUN)[:, None] + runs * RUN,
        swaps + start // RUN + runs, sums_at + start // RUN + runs, start, first,
        RUN, RUNS, HIGH, WIRES,
    )  # fmt: skip
