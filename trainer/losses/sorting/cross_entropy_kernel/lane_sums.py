"""Sum tensors over lanes, with as few exchanges between lanes as possible."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005 (Triton has no starred tuples)

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.instructions import read, write


@triton.jit
def across(t, DISTANCE: tl.constexpr, AXIS: tl.constexpr):
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
def sum_within_lanes(product, LANES: tl.constexpr):
    """Sum a tensor [items, h] over items that one lane holds: [lanes, h]."""
    ITEMS: tl.constexpr = product.shape[0]
    if ITEMS > LANES:
        product = tl.sum(tl.reshape(product, (ITEMS // LANES, LANES, product.shape[1])), axis=0)
    return product


@triton.jit
def join_sums(low, high, COUNT: tl.constexpr, BIT: tl.constexpr, LANES: tl.constexpr):
    """Sum the tensors [lanes, h] of two tuples over lanes that differ in a bit.

    Lanes in which the bit is clear hold the sums of `low`, the others those of `high`.
    """
    if (1 << BIT) < LANES:
        upper = ((tl.arange(0, LANES)[:, None] >> BIT) & 1) == 1
        sums = ()
        for i in tl.static_range(COUNT):
            kept = tl.where(upper, high[i], low[i])
            given = tl.where(upper, low[i], high[i])
            sums = sums + (kept + across(given, 1 << BIT, 0),)
    else:
        sums = low + high
    return sums


@triton.jit
def rejoin_sums(sums, K: tl.constexpr, BITS: tl.constexpr, LANES: tl.constexpr):
    """Join the sums of runs of 2^K pairs to those of one run of 2^BITS pairs."""
    for bit in tl.static_range(K, BITS):
        if (1 << bit) < LANES:
            joined = ()
            for i in tl.static_range(1 << (BITS - 1 - bit)):
                joined = joined + join_sums((sums[2 * i],), (sums[2 * i + 1],), 1, bit, LANES)
            sums = joined
    return sums


@triton.jit
def sum_over_lanes(products, BITS: tl.constexpr, LANES: tl.constexpr):
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
        sums = join_sums(
            sum_over_lanes(low, BITS - 1, LANES),
            sum_over_lanes(high, BITS - 1, LANES),
            COUNT,
            BITS - 1,
            LANES,
        )
    return sums


@triton.jit
def add_sums(
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
                total += across(total, 1 << bit, 0)
        wire = i * LANES + (lane & ((1 << BITS) - 1))
        if K >= 0:
            wire = ((wire >> K) << (K + 1)) | (wire & ((1 << K) - 1))
        where = at + wire * HIGH
        write(where, read(where) + total)
