"""Triton kernel for the cross-entropy of two soft permutations and its gradients.

The method is that of `trainer.losses.sorting.cross_entropy`, the only module that imports this one.
Programs of one warp sort rows in three steps. Each program takes many rows in turn:

1. `_compare` sorts the values themselves, and stores what every layer exchanges.
2. `_state_row` takes the states of a few items at a time through the network and back. Items
   interact only in the sums of the gradient, one per pair of wires and layer.
3. `_by_values` takes these sums back through the network to the gradient by the values.

A state is a tuple of up to 16 tensors [items, h], one per wire of a run: wire 16 h + r is in tensor
r. Layers within a run therefore combine whole registers, and only distances from 16 on move numbers
between lanes. Items start on their own wires, and a block of the bitonic network doubles the run of
wires that they reach. Before a block, a state is stored for that run alone.

A merge of 2^k wires consists, after its first layer, of two independent merges of half as many.
`_merge_adjoint` takes them one after the other, forward and back: the differences that the gradient
needs stay in registers. The odd-even network has no such halves, so all its differences are stored.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005, SIM108 (Triton has neither starred tuples nor tuples in conditional expressions)

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.losses.sorting.network import Network, Sort

MOST_WIRES = 128
"""Widest network: with each doubling, a row takes about five times the instructions."""
PROGRAMS_PER_SM = 8
"""As many warps as the registers of a multiprocessor hold at 255 each."""
BITONIC_TILE, ODD_EVEN_TILE = 128, 32
"""Numbers in each tensor of a state: four per lane, or one where every layer is stored."""
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run in the interpreter, which has no inline assembly."""


@triton.constexpr_function
def _log2(size):
    return int(size).bit_length() - 1


# Loads and stores are inline assembly. Triton's coalescing pass takes time that is cubic in the
# number of its own memory operations, minutes here, for vector accesses that no layout here allows.
@triton.jit
def _read(at):
    """Load float32 numbers."""
    if INTERPRETED:
        value = tl.load(at)
    else:
        value = tl.inline_asm_elementwise(
            "ld.global.f32 $0, [$1];", "=f,l", [at.to(tl.int64)], tl.float32, False, 1
        )
    return value


@triton.jit
def _write(at, value):
    """Store float32 numbers. Lanes that share an address should store the same number."""
    if INTERPRETED:
        tl.store(tl.broadcast_to(at, value.shape), value)
    else:
        tl.inline_asm_elementwise(
            "st.global.f32 [$1], $2; mov.b32 $0, 0;", "=r,l,f", [at.to(tl.int64), value],
            tl.int32, False, 1,
        )  # fmt: skip


@triton.jit
def _write_where(at, value, mask):
    """Store float32 numbers where the mask is set."""
    if INTERPRETED:
        tl.store(tl.broadcast_to(at, value.shape), value, mask=mask)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.global.f32 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,f,r", [at.to(tl.int64), value, mask.to(tl.int32)], tl.int32, False, 1,
        )  # fmt: skip


@triton.jit
def _fast_log2(v):
    """Approximate the binary logarithm of normal numbers by one instruction, to 2^-22."""
    if INTERPRETED:
        result = tl.log2(v)
    else:
        result = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def _fast_exp2(v):
    """Approximate the power of two by one instruction, to a relative 2^-22."""
    if INTERPRETED:
        result = tl.exp2(v)
    else:
        result = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def _fast_inverse(v):
    """Approximate 1 / v of normal numbers by one instruction, to the last bit."""
    if INTERPRETED:
        result = 1 / v
    else:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [v], tl.float32, True, 1
        )
    return result


@triton.jit
def _atan(v):
    """Approximate the arctangent by Abramowitz and Stegun 4.4.49, to 2e-8."""
    # The polynomial holds for |v| <= 1; larger arguments use atan(v) = pi / 2 - atan(1 / v).
    size = tl.abs(v)
    z = tl.where(size > 1, _fast_inverse(tl.maximum(size, 1.0)), size)
    s = z * z
    p = 0.0028662257 * s - 0.0161657367
    p = p * s + 0.0429096138
    p = p * s - 0.0752896400
    p = p * s + 0.1065626393
    p = p * s - 0.1420889944
    p = p * s + 0.1999355085
    p = p * s - 0.3333314528
    angle = z + z * s * p
    angle = tl.where(size > 1, 1.5707963267948966 - angle, angle)
    return tl.where(v < 0, -angle, angle)


@triton.jit
def _wiring(layers_at, layer, wires, first, last):
    """Return the partner of every wire [1, wires] in a layer and the sign of the comparison.

    A wire without a comparator is its own partner.
    """
    offset = tl.load(layers_at + 3 * layer)
    distance = tl.load(layers_at + 3 * layer + 1)
    run = tl.load(layers_at + 3 * layer + 2)
    partner = ((wires + offset) ^ distance) - offset
    compared = (wires >= first) & (wires < last) & (partner >= first) & (partner < last)
    compared &= partner != wires
    partner = tl.where(compared, partner, wires)
    upward = (wires & run) == 0
    sign = tl.where((wires < partner) == upward, 1.0, -1.0)
    return partner, tl.where(compared, sign, 0.0)


@triton.jit
def _place(wires, RUN: tl.constexpr, HIGH: tl.constexpr):
    """Return where the number of a wire is stored in a layer."""
    return (wires % RUN) * HIGH + wires // RUN


@triton.jit
def _compare(
    x, steepness, scratch, layers_at, layers, first, last, cauchy,
    ROOM: tl.constexpr, WIRES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Sort the values x [2, wires]; store, per layer and wire, exchanged fraction and difference.

    Clears the sums of the gradient.
    """
    HIGH: tl.constexpr = WIRES // RUN
    PART: tl.constexpr = ROOM * WIRES
    sides = tl.arange(0, 2)[:, None]
    wires = tl.arange(0, WIRES)[None, :]
    at = scratch + sides * PART + _place(wires, RUN, HIGH)
    for layer in range(layers):
        partner, sign = _wiring(layers_at, layer, wires, first, last)
        step = tl.gather(x, tl.broadcast_to(partner, (2, WIRES)), 1) - x
        v = steepness * sign * step
        if cauchy:
            swap = 0.5 - _atan(v) * 0.3183098861837907
        else:
            swap = _fast_inverse(1 + _fast_exp2(v * 1.4426950408889634))
        swap = tl.where(sign == 0, 0.0, swap)
        x += swap * step
        _write(at + layer * WIRES, swap)
        _write(at + 2 * PART + layer * WIRES, step)
        _write(at + 4 * PART + layer * WIRES, tl.zeros((2, WIRES), tl.float32))


@triton.jit
def _by_values(
    steepness, scratch, layers_at, layers, first, last, cauchy,
    ROOM: tl.constexpr, WIRES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Return the derivative by the values [2, wires], given the sums of the gradient."""
    HIGH: tl.constexpr = WIRES // RUN
    PART: tl.constexpr = ROOM * WIRES
    sides = tl.arange(0, 2)[:, None] * PART
    wires = tl.arange(0, WIRES)[None, :]
    at = scratch + sides + _place(wires, RUN, HIGH)
    by_x = tl.zeros((2, WIRES), tl.float32)
    for back in range(layers):
        layer = layers - 1 - back
        partner, sign = _wiring(layers_at, layer, wires, first, last)
        swap = _read(at + layer * WIRES)
        step = _read(at + 2 * PART + layer * WIRES)
        lower = _place(tl.minimum(wires, partner), RUN, HIGH)
        by_keep = _read(scratch + sides + lower + 4 * PART + layer * WIRES)
        scale = steepness * sign
        if cauchy:
            v = scale * step
            slope = scale * 0.3183098861837907 * _fast_inverse(1 + v * v)
        else:
            slope = scale * swap * (1 - swap)
        by_step = tl.gather(by_x, tl.broadcast_to(partner, (2, WIRES)), 1) - by_x
        by_x += swap * by_step - slope * (by_keep + step * by_step)
    return by_x


@triton.jit
def _across(t, DISTANCE: tl.constexpr, AXIS: tl.constexpr):
    """Return t [a, b] with indices along an axis XORed with a power of two."""
    A: tl.constexpr = t.shape[0]
    B: tl.constexpr = t.shape[1]
    bits = t.to(tl.int32, bitcast=True)
    # The sum of two integers minus one of them is the other one, also after an overflow. This
    # compiles to one shuffle.
    if AXIS == 0:
        pairs = tl.reshape(bits, (A // (2 * DISTANCE), 2, DISTANCE, B))
        other = tl.sum(pairs, axis=1, keep_dims=True) - pairs
    else:
        pairs = tl.reshape(bits, (A, B // (2 * DISTANCE), 2, DISTANCE))
        other = tl.sum(pairs, axis=2, keep_dims=True) - pairs
    return tl.reshape(other, (A, B)).to(tl.float32, bitcast=True)


@triton.jit
def _lane_sums(product, LANES: tl.constexpr):
    """Sum a tensor [items, h] over items that one lane holds: [lanes, h]."""
    ITEMS: tl.constexpr = product.shape[0]
    if ITEMS > LANES:
        product = tl.sum(tl.reshape(product, (ITEMS // LANES, LANES, product.shape[1])), axis=0)
    return product


@triton.jit
def _joined(low, high, COUNT: tl.constexpr, BIT: tl.constexpr, LANES: tl.constexpr):
    """Sum the tensors [lanes, h] of two tuples over lanes that differ in a bit.

    Lanes in which the bit is clear hold the sums of `low`, the others those of `high`.
    """
    if (1 << BIT) < LANES:
        upper = ((tl.arange(0, LANES)[:, None] >> BIT) & 1) == 1
        sums = ()
        for i in tl.static_range(COUNT):
            kept = tl.where(upper, high[i], low[i])
            given = tl.where(upper, low[i], high[i])
            sums = sums + (kept + _across(given, 1 << BIT, 0),)
    else:
        sums = low + high
    return sums


@triton.jit
def _summed(products, BITS: tl.constexpr, LANES: tl.constexpr):
    """Sum 2^BITS tensors [lanes, h] over as many lanes: lane k holds the sums of the k-th.

    Tensors beyond the number of lanes are further tensors of the result.
    """
    if BITS == 0:
        sums = products
    else:
        HALF: tl.constexpr = 1 << (BITS - 1)
        low, high = (), ()
        for i in tl.static_range(HALF):
            low = low + (products[i],)
            high = high + (products[HALF + i],)
        # tensors per half
        COUNT: tl.constexpr = max(1, HALF // LANES)
        sums = _joined(
            _summed(low, BITS - 1, LANES), _summed(high, BITS - 1, LANES), COUNT, BITS - 1, LANES
        )
    return sums


@triton.jit
def _add_sums(
    sums, at, K: tl.constexpr, BITS: tl.constexpr, HIGH: tl.constexpr, LANES: tl.constexpr,
    SUMMED: tl.constexpr,
):  # fmt: skip
    """Add the sums of 2^BITS pairs of wires, over runs of SUMMED lanes, to those in memory.

    The pairs have distance 2^K, or their numbers are wires if K is negative. at: pointers to the
    first wire's, [1, h] or [lanes, h].
    """
    lane = tl.arange(0, LANES)[:, None]
    for i in tl.static_range(max(1, (1 << BITS) // LANES)):
        total = sums[i]
        for bit in tl.static_range(BITS, 5):
            if (1 << bit) < SUMMED:
                total += _across(total, 1 << bit, 0)
        wire = i * LANES + (lane & ((1 << BITS) - 1))
        if K >= 0:
            wire = ((wire >> K) << (K + 1)) | (wire & ((1 << K) - 1))
        where = at + wire * HIGH
        _write(where, _read(where) + total)


@triton.jit
def _layer(x, swaps, RUN: tl.constexpr, D: tl.constexpr, HIGH: tl.constexpr):
    """Apply a layer of distance D to a tuple of RUN wires."""
    first, second = (), ()
    for pair in tl.static_range(RUN // 2):
        swap = _read(swaps + (pair // D * 2 * D + pair % D) * HIGH)
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
def _merged(x, swaps, RUN: tl.constexpr, K: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr):
    """Apply the layers of distances 2^K to 1 to a tuple of RUN wires, each [items, h].

    swaps: pointers [1, h] to the fractions of the first layer.
    """
    for layer in tl.static_range(K + 1):
        x = _layer(x, swaps + layer * WIRES, RUN, 1 << (K - layer), HIGH)
    return x


@triton.jit
def _merge_adjoint(
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
        swap = swap + (_read(swaps + (START + k) * HIGH),)
        difference = difference + (x[k + D] - x[k],)
        step = swap[k] * difference[k]
        low = low + (x[k] + step,)
        high = high + (x[k + D] - step,)
    deeper = ()
    if K > 0:
        # The two halves are independent from here on: one after the other needs fewer registers.
        low, low_sums = _merge_adjoint(
            low, target, swaps + WIRES, START, K - 1, HIGH, WIRES, LANES, IN_MEMORY
        )
        if K > 0:
            # Keeps the compiler from loading the other half's numbers early: registers are scarce.
            tl.debug_barrier()
        high, high_sums = _merge_adjoint(
            high, target, swaps + WIRES, START + D, K - 1, HIGH, WIRES, LANES, IN_MEMORY
        )
        for layer in tl.static_range(K):
            deeper = deeper + (
                _joined(low_sums[layer], high_sums[layer], max(1, D // 2 // LANES), K - 1, LANES),
            )
    elif IN_MEMORY:
        SIZE: tl.constexpr = x[0].shape[0] * x[0].shape[1]
        low = (_read(target + START * SIZE),)
        high = (_read(target + (START + 1) * SIZE),)
    else:
        low = (target[START],)
        high = (target[START + 1],)
    if K > 0:
        swap = ()
        for k in tl.static_range(D):
            swap = swap + (_read(swaps + (START + k) * HIGH),)
    first, second, products = (), (), ()
    for k in tl.static_range(D):
        by_step = high[k] - low[k]
        products = products + (_lane_sums(difference[k] * by_step, LANES),)
        step = swap[k] * by_step
        first = first + (low[k] + step,)
        second = second + (high[k] - step,)
    return first + second, (_summed(products, K, LANES),) + deeper


@triton.jit
def _runs_adjoint(
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
        part, sums = _merge_adjoint(
            part, target, swaps, run * SPAN, K, HIGH, WIRES, LANES, IN_MEMORY
        )
        adjoint = adjoint + part
        runs = runs + (sums,)
    BITS: tl.constexpr = _log2(RUN // 2)
    for layer in tl.static_range(K + 1):
        sums = ()
        for run in tl.static_range(RUN // SPAN):
            sums = sums + runs[run][layer]
        sums = _rejoined(sums, K, BITS, LANES)
        _add_sums(sums, sums_at + layer * WIRES, K - layer, BITS, HIGH, LANES, SUMMED)
    return adjoint


@triton.jit
def _rejoined(sums, K: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr):
    """Join the sums of runs of 2^K pairs to those of one run of 2^BITS pairs."""
    for bit in tl.static_range(K, BITS):
        if (1 << bit) < LANES:
            joined = ()
            for i in tl.static_range(1 << (BITS - 1 - bit)):
                joined = joined + _joined((sums[2 * i],), (sums[2 * i + 1],), 1, bit, LANES)
            sums = joined
    return sums


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
        moved = _read(swaps + r * HIGH) * x[r]
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
        step = _read(swaps + r * HIGH) * by_step
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
    return _merged(x, swaps + place + WIRES, 2 << BLOCK, BLOCK - 1, HIGH, WIRES)


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
        adjoint = _runs_adjoint(
            _doubled(x, upper, here, 1 << BLOCK, HIGH), target,
            here + WIRES, sums_at + place + WIRES,
            2 << BLOCK, BLOCK - 1, HIGH, WIRES, RUN, 2 << BLOCK, IN_MEMORY,
        )  # fmt: skip
    elif IN_MEMORY:
        adjoint = (_read(target), _read(target + SIZE))
    else:
        adjoint = target
    narrow, products = _doubled_adjoint(x, adjoint, upper, here, 1 << BLOCK, HIGH)
    sums = _summed(products, BLOCK, RUN)
    _add_sums(sums, sums_at + place, -1, BLOCK, HIGH, RUN, 2 << BLOCK)
    return narrow


@triton.jit
def _first_blocks(
    swaps, start, first,
    RUN: tl.constexpr, RUNS: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Apply the blocks that sort runs of up to RUN wires. Returns the state [items, runs]."""
    x = _single(start, first, RUN, RUNS)
    for block in tl.static_range(_log2(RUN)):
        x = _short_forward(x, swaps, block, RUN, HIGH, WIRES)
    return x


@triton.jit
def _first_blocks_adjoint(
    target, swaps, sums_at, start, first,
    RUN: tl.constexpr, RUNS: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Add the sums of the blocks that sort runs of up to RUN wires."""
    BLOCKS: tl.constexpr = _log2(RUN)
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
    swap = _read(swaps)
    x = value * tl.where(own, 1 - swap, swap)
    differences = ()
    for layer in tl.static_range(1, _log2(SPAN)):
        swap = _read(swaps + layer * WIRES)
        difference = _across(x, SPAN >> (layer + 1), 1) - x
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
        value = _read(starts + r * (ITEMS * SPAN // 2))
        entered, _ = _entered(value, own, swaps + r * HIGH, SPAN, WIRES)
        x = x + (entered,)
    return x


@triton.jit
def _block_adjoint(
    starts, swaps, own, target, narrow_at, sums_at, RUN: tl.constexpr, ITEMS: tl.constexpr,
    SPAN: tl.constexpr, HIGH: tl.constexpr, WIRES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Take the adjoint back through a block and store that of the own half of the run."""
    ACROSS: tl.constexpr = _log2(SPAN)
    K: tl.constexpr = _log2(RUN) - 1
    x = _block_start(starts, swaps, own, RUN, ITEMS, SPAN, HIGH, WIRES)
    adjoint = _runs_adjoint(
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
                whole = whole + (part + _across(part, SPAN // 2, 1),)
            sums = whole
        _add_sums(sums, sums_at + layer * WIRES, -1, K + 1, HIGH, LANES, LANES)
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
            _read(starts + START * (ITEMS * SPAN // 2)), own, swaps + START * HIGH, adjoint[START],
            ITEMS, SPAN, WIRES, LANES,
        )  # fmt: skip
        _write(narrow_at + START * (ITEMS * SPAN // 2), narrow)
        for layer in tl.static_range(_log2(SPAN)):
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
        for layer in tl.static_range(_log2(SPAN)):
            joined = _joined(low[layer], high[layer], max(1, HALF // LANES), BITS - 1, LANES)
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
    ACROSS: tl.constexpr = _log2(SPAN)
    _, differences = _entered(value, own, swaps, SPAN, WIRES)
    products = ()
    for back in tl.static_range(1, ACROSS):
        by_step = _across(adjoint, SPAN >> (ACROSS - back + 1), 1) - adjoint
        product = _lane_sums(differences[ACROSS - back - 1] * by_step, LANES)
        products = (product,) + products
        adjoint += _read(swaps + (ACROSS - back) * WIRES) * by_step
    if own.shape[0] > 1:
        product = value * tl.where(own, adjoint, -adjoint)
    else:
        product = value * adjoint  # the sign is that of all items: the caller applies it
    products = (_lane_sums(product, LANES),) + products
    swap = _read(swaps)
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
    return _merged(x, here + _log2(SPAN) * WIRES, RUN, _log2(RUN) - 1, HIGH, WIRES)


@triton.jit
def _bitonic_forward(
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
        to = _starts(starts_at, _log2(RUN), RUN, ITEMS)
        to += tl.arange(0, RUN)[:, None] + runs * RUN
        for r in tl.static_range(RUN):
            _write(to + r * ITEMS, x[r])
        tl.debug_barrier()
        items = tl.arange(0, ITEMS)
        for block in tl.static_range(_log2(RUN), _log2(WIRES)):
            x = _block_forward(swaps, starts_at, start, items, block, RUN, ITEMS, WIRES)
            if 2 << block < WIRES:
                to = _starts(starts_at, block + 1, RUN, ITEMS)
                to += items[:, None] * ((2 << block) // RUN) + tl.arange(0, (2 << block) // RUN)
                for r in tl.static_range(RUN):
                    _write(to + r * ITEMS * ((2 << block) // RUN), x[r])
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
def _bitonic_adjoint(
    swaps, sums_at, starts_at, targets_at, start, first,
    RUN: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
):  # fmt: skip
    """Add the sums of all layers for some items, given the target in memory."""
    HIGH: tl.constexpr = WIRES // RUN
    RUNS: tl.constexpr = ITEMS // RUN
    items = tl.arange(0, ITEMS)
    BLOCKS: tl.constexpr = _log2(WIRES)
    for back in tl.static_range(BLOCKS - _log2(RUN)):
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


@triton.jit
def _targets(p, q, at, epsilon, SIDE: tl.constexpr, RUN: tl.constexpr):
    """Store the derivatives by P and Q of the sum over p log(q + epsilon); return the sum."""
    SIZE: tl.constexpr = p[0].shape[0] * p[0].shape[1]
    value = tl.zeros(p[0].shape, tl.float32)
    for r in tl.static_range(RUN):
        log2_q = _fast_log2(q[r] + epsilon)
        log_q = log2_q * 0.6931471805599453
        value += p[r] * log_q
        _write(at + r * SIZE, log_q)
        _write(at + SIDE + r * SIZE, p[r] * _fast_exp2(-log2_q))
    return value


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
        step = _read(swaps + (2 * k + START) * HIGH) * difference
        if BACK:
            product = _read(differences_at + k * SIZE) * difference
            products = products + (_lane_sums(product, LANES),)
        else:
            _write(differences_at + k * SIZE, difference)
        first = first + (low + step,)
        if 2 * k + 1 + START < RUN:
            second = second + (high - step,)
        else:
            # The pair's second wire is the first of the next h.
            is_first = (tl.arange(0, HIGH) == 0)[None, :]
            second = second + (x[0] - tl.where(is_first, 0.0, _neighbour(step, -1)),)
    if BACK:
        BITS: tl.constexpr = _log2(RUN) - 1
        sums = _summed(products, BITS, LANES)
        _add_sums(sums, sums_at + START * HIGH, 0, BITS, HIGH, LANES, LANES)
    mixed = ()
    for r in tl.static_range(RUN):
        if (r - START) % 2 == 0:
            mixed = mixed + (first[(r - START) // 2],)
        else:
            mixed = mixed + (second[(r - START - 1 + RUN) % RUN // 2],)
    return mixed


@triton.jit
def _odd_even_forward(
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
def _odd_even_adjoint(
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
        y = y + (_read(targets_at + own + r * ITEMS * HIGH),)
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
                p = _bitonic_forward(swaps, saved, start, first, RUN, ITEMS, WIRES)
            else:
                p = _odd_even_forward(swaps, saved, start, layers, last, RUN, ITEMS, WIRES)
        items = tl.arange(0, ITEMS)[:, None]
        at = targets_at + items * HIGH + tl.arange(0, HIGH)[None, :]
        # The value is kept in memory, since registers are scarce from here on.
        tl.store(value_at, tl.load(value_at) + tl.sum(_targets(p, q, at, epsilon, TARGETS, RUN)))
        tl.debug_barrier()
        for side in range(first_side, last_side):
            swaps, sums = scratch + side * PART, scratch + (4 + side) * PART
            saved, targets = saved_at + side * SAVED, targets_at + side * TARGETS
            if BITONIC:
                _bitonic_adjoint(swaps, sums, saved, targets, start, first, RUN, ITEMS, WIRES)
            else:
                _odd_even_adjoint(swaps, sums, saved, targets, layers, RUN, ITEMS, WIRES)
        tl.debug_barrier()


# None of these is compiled into the kernel.
ARGUMENTS = (
    "x_at", "y_at", "values_at", "by_x_at", "by_y_at", "scratch_at", "layers_at", "rows", "x_rows",
    "y_rows", "n", "layers", "cauchy", "first_side", "last_side", "x_steepness", "y_steepness",
    "epsilon",
)  # fmt: skip


@triton.jit(do_not_specialize=ARGUMENTS)
def _rows(
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
        x = _read(x_at + (row % x_rows) * n + places)
        y = _read(y_at + (row % y_rows) * n + places)
        values = tl.where(real, tl.where(sides == 0, x, y), 0.0)
        tl.store(values_at + row, 0.0)
        _compare(
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
            by_values = _by_values(
                steepness, scratch, layers_at, layers, first, first + n, cauchy, ROOM, WIRES, RUN
            )
            by_values = -by_values / n
            if first_side == 0:
                _write_where(by_x_at + row * n + places, by_values, real & (sides == 0))
            if last_side == 2:
                _write_where(by_y_at + row * n + places, by_values, real & (sides == 1))
        tl.debug_barrier()


def cross_entropy_rows(
    x: Tensor, y: Tensor, sorts: tuple[Sort, Sort], epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the same as `trainer.losses.sorting.cross_entropy.cross_entropy_rows` on a GPU.

    x, y: float32 [rows, n], at least one row; one may have a fraction of the other's rows, which it
    then repeats. Raises ValueError if the network has too many wires.
    """
    n, rows = x.shape[1], max(len(x), len(y))
    size = KernelSize.of(sorts[0].network, n)
    layers = _layer_table(sorts[0].network, n, x.device)
    values = x.new_empty(rows)
    gradients = [x.new_empty(rows, n) if want else None for want in wanted]
    programs = min(rows, _programs(x.device))
    scratch = x.new_empty(programs, size.scratch)
    with torch.cuda.device_of(x):
        _rows[(programs,)](
            x.contiguous(), y.contiguous(), values,
            *(values if gradient is None else gradient for gradient in gradients),
            scratch, layers, rows, len(x), len(y), n, size.layers,
            int(sorts[0].distribution == "cauchy"), 0 if wanted[0] else 1, 2 if wanted[1] else 1,
            *(float(sort.steepness) for sort in sorts), float(epsilon),
            **size.constants(), **OPTIONS,
        )  # fmt: skip
    return values, gradients[0], gradients[1]


OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
"""How the kernel is compiled."""


@dataclass(frozen=True)
class KernelSize:
    """Sizes of a kernel: one is compiled for each network and number of wires."""

    network: Network
    wires: int
    """A power of two."""
    layers: int
    run: int
    """Wires whose states are in one lane's registers."""
    items: int
    """Items of a row per pass."""

    @classmethod
    def of(cls, network: Network, n: int) -> KernelSize:
        """Return the sizes for rows of n. Raises ValueError if there are more than MOST_WIRES."""
        wires = max(2, 1 << (n - 1).bit_length())
        if wires > MOST_WIRES:
            raise ValueError(f"rows of {n} numbers are too long: the kernel sorts {MOST_WIRES}")
        # Half as many registers compile in half the time: 128 wires take 12 s then.
        run = 8 if network == "bitonic" and wires > 64 else min(16, wires)
        if network == "odd_even":
            return cls(network, wires, n, run, min(wires, ODD_EVEN_TILE * run // wires))
        depth = wires.bit_length() - 1
        items = min(wires, 32, BITONIC_TILE * run // wires)
        return cls(network, wires, depth * (depth + 1) // 2, run, items)

    @property
    def room(self) -> int:
        """Most layers of a network of as many wires."""
        return self.wires if self.network == "odd_even" else self.layers

    @property
    def scratch(self) -> int:
        """Numbers that a program stores in global memory."""
        state = self.wires * self.items
        saved = (
            state * self.room // 2 if self.network == "odd_even" else state - self.run * self.items
        )
        return 6 * self.room * self.wires + 2 * saved + 2 * state

    def constants(self) -> dict[str, int | bool]:
        """Return the kernel's compile-time arguments."""
        return {
            "BITONIC": self.network == "bitonic",
            "WIRES": self.wires,
            "RUN": self.run,
            "ITEMS": self.items,
            "ROOM": self.room,
            "SCRATCH": self.scratch,
        }


@lru_cache(maxsize=16)
def _layer_table(network: Network, n: int, device: torch.device) -> Tensor:
    """Return the layers [layers, 3] as `_wiring` takes them.

    Per layer: an offset of the wires' numbers, the distance of partners, and the bit of a wire's
    number that alternates the direction of sorting.
    """
    if network == "odd_even":
        rows = [(-(layer % 2), 1, 0) for layer in range(n)]
    else:
        depth = max(1, (n - 1).bit_length())
        rows = [(0, 1 << k, 2 << block) for block in range(depth) for k in range(block, -1, -1)]
    # One layer more, without comparators.
    return torch.tensor([*rows, (0, 0, 0)], dtype=torch.int32, device=device)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
