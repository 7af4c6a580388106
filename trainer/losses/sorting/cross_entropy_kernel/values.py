"""Sort the values of a row, and take the sums of the gradient back to them."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from trainer.losses.sorting.cross_entropy_kernel.instructions import (
    atan,
    fast_exp2,
    fast_inverse,
    read,
    write,
)


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
def compare(
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
            swap = 0.5 - atan(v) * 0.3183098861837907
        else:
            swap = fast_inverse(1 + fast_exp2(v * 1.4426950408889634))
        swap = tl.where(sign == 0, 0.0, swap)
        x += swap * step
        write(at + layer * WIRES, swap)
        write(at + 2 * PART + layer * WIRES, step)
        write(at + 4 * PART + layer * WIRES, tl.zeros((2, WIRES), tl.float32))


@triton.jit
def derivative_by_values(
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
        swap = read(at + layer * WIRES)
        step = read(at + 2 * PART + layer * WIRES)
        lower = _place(tl.minimum(wires, partner), RUN, HIGH)
        by_keep = read(scratch + sides + lower + 4 * PART + layer * WIRES)
        scale = steepness * sign
        if cauchy:
            v = scale * step
            slope = scale * 0.3183098861837907 * fast_inverse(1 + v * v)
        else:
            slope = scale * swap * (1 - swap)
        by_step = tl.gather(by_x, tl.broadcast_to(partner, (2, WIRES)), 1) - by_x
        by_x += swap * by_step - slope * (by_keep + step * by_step)
    return by_x
