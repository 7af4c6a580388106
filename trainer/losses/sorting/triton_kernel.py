"""Triton kernel for the cross-entropy of two soft permutations and its gradients.

The method is that of `trainer.losses.sorting.cross_entropy`, the only module that imports this one.

One program, of one warp, computes one row. It takes a few of the row's items at a time through the
whole computation, since items interact only in the sums of the gradient. The state [items, wires]
of these items is in registers, and a layer fetches each wire's partner from another lane. Layers
are unrolled, so the differences that the gradient needs also stay in registers or spill to the
nearest cache. Each of the two gradients has its own launch: registers do not hold the differences
of both networks.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.losses.sorting.network import Network, Sort, network_layers

ITEMS = 2
"""Items of a row per pass."""
MOST_LAYERS = 28
"""Depth of the deepest network: the bitonic one of 128 wires compiles in about a minute; 64 layers
take more than six minutes."""


@triton.jit
def _atan(v):
    """Approximate the arctangent by Abramowitz and Stegun 4.4.49, to 2e-8."""
    # The polynomial holds for |v| <= 1; larger arguments use atan(v) = pi / 2 - atan(1 / v).
    size = tl.abs(v)
    z = tl.where(size > 1, 1 / tl.maximum(size, 1.0), size)
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
def _layer(partners, signs, layer, WIRES: tl.constexpr):
    """Load the partner and the sign of every wire in a layer."""
    wires = layer * WIRES + tl.arange(0, WIRES)
    return tl.load(partners + wires), tl.load(signs + wires)


@triton.jit
def _partner(state, partner, ITEMS: tl.constexpr, WIRES: tl.constexpr):
    """Gather the state [items, wires] of each wire's partner."""
    return tl.gather(state, tl.broadcast_to(partner[None, :], (ITEMS, WIRES)), 1)


@triton.jit
def _compared(x, partner, scale, CAUCHY: tl.constexpr):
    """Return per wire: partner - self, the kept fraction, and its derivative by the difference."""
    difference = tl.gather(x, partner, 0) - x
    v = scale * difference
    if CAUCHY:
        keep = 0.5 + _atan(v) * 0.3183098861837907
        slope = scale * 0.3183098861837907 / (1 + v * v)
    else:
        keep = tl.sigmoid(v)
        slope = scale * keep * (1 - keep)
    return difference, keep, slope


@triton.jit
def _forward(
    x,
    state,
    partners,
    signs,
    steepness,
    LAYERS: tl.constexpr,
    ITEMS: tl.constexpr,
    WIRES: tl.constexpr,
    CAUCHY: tl.constexpr,
):
    """Return the state [items, wires] after all layers.

    Also returns, per layer, the values before it and the state's differences partner - self.
    """
    values, differences = (), ()
    for layer in tl.static_range(LAYERS):
        partner, sign = _layer(partners, signs, layer, WIRES)
        step, keep, _ = _compared(x, partner, steepness * sign, CAUCHY)
        difference = _partner(state, partner, ITEMS, WIRES) - state
        values = values + (x,)  # noqa: RUF005 (Triton has no starred tuples)
        differences = differences + (difference,)  # noqa: RUF005
        x += (1 - keep) * step
        state += (1 - keep)[None, :] * difference
    return state, values, differences


@triton.jit
def _gradient(
    target, values, differences, partners, signs, steepness,
    LAYERS: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr, CAUCHY: tl.constexpr,
):  # fmt: skip
    """Return the derivative of <state, target> by the row: [wires]."""
    by_x = tl.zeros((WIRES,), tl.float32)
    # Backward through the layers: each layer's matrix is symmetric, so the adjoint mixes alike.
    for layer in tl.static_range(LAYERS - 1, -1, -1):
        partner, sign = _layer(partners, signs, layer, WIRES)
        step, keep, slope = _compared(values[layer], partner, steepness * sign, CAUCHY)
        difference = _partner(target, partner, ITEMS, WIRES) - target
        by_step = tl.gather(by_x, partner, 0) - by_x
        by_keep = tl.sum(differences[layer] * difference, axis=0) + step * by_step
        by_x += (1 - keep) * by_step - slope * by_keep
        target += (1 - keep)[None, :] * difference
    return by_x


@triton.jit
def _rows(
    x_at, y_at, values_at, by_x_at, by_y_at, partners, signs, x_steepness, y_steepness, epsilon,
    N: tl.constexpr, LAYERS: tl.constexpr, ITEMS: tl.constexpr, WIRES: tl.constexpr,
    CAUCHY: tl.constexpr, BY_X: tl.constexpr, BY_Y: tl.constexpr,
):  # fmt: skip
    """Compute one row: its value, and with BY_X and BY_Y its gradients.

    Wires from N on are padding; items from N on contribute nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    wires = tl.arange(0, WIRES)
    x = tl.load(x_at + row * N + wires, mask=wires < N, other=0.0)
    y = tl.load(y_at + row * N + wires, mask=wires < N, other=0.0)
    by_x = tl.zeros((WIRES,), tl.float32)
    by_y = tl.zeros((WIRES,), tl.float32)
    value = tl.zeros((WIRES,), tl.float32)
    for start in range(0, N, ITEMS):
        items = start + tl.arange(0, ITEMS)
        identity = tl.where(items[:, None] == wires[None, :], 1.0, 0.0)
        p, x_values, x_differences = _forward(
            x, identity, partners, signs, x_steepness, LAYERS, ITEMS, WIRES, CAUCHY
        )
        q, y_values, y_differences = _forward(
            y, identity, partners, signs, y_steepness, LAYERS, ITEMS, WIRES, CAUCHY
        )
        log_q = tl.log(q + epsilon)
        value += tl.sum(tl.where(items[:, None] < N, p * log_q, 0.0), axis=0)
        if BY_Y:
            by_y += _gradient(
                p / (q + epsilon), y_values, y_differences, partners, signs, y_steepness,
                LAYERS, ITEMS, WIRES, CAUCHY,
            )  # fmt: skip
        if BY_X:
            by_x += _gradient(
                log_q, x_values, x_differences, partners, signs, x_steepness,
                LAYERS, ITEMS, WIRES, CAUCHY,
            )  # fmt: skip
    tl.store(values_at + row, tl.sum(value, axis=0) / -N)
    if BY_X:
        tl.store(by_x_at + row * N + wires, by_x / -N, mask=wires < N)
    if BY_Y:
        tl.store(by_y_at + row * N + wires, by_y / -N, mask=wires < N)


def cross_entropy_rows(
    x: Tensor, y: Tensor, sorts: tuple[Sort, Sort], epsilon: float, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the same as `trainer.losses.sorting.cross_entropy.cross_entropy_rows` on a GPU.

    x, y: float32 [rows, n], at least one row, the same number in both. Raises ValueError if the
    network is too deep.
    """
    n = x.shape[1]
    partners, signs = _tables(sorts[0].network, n, x.device)
    if len(partners) > MOST_LAYERS:
        raise ValueError(f"a network of {len(partners)} layers is too deep to be unrolled")
    values = x.new_empty(len(x))
    gradients = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if want else None
        for want in wanted
    ]
    # (gradient by x, gradient by y) per launch; without gradients one launch for the values
    launches = [(True, False)] * wanted[0] + [(False, True)] * wanted[1] or [(False, False)]
    x_steepness, y_steepness = (sort.steepness for sort in sorts)
    with torch.cuda.device_of(x):
        for by_x, by_y in launches:
            _rows[(len(x),)](
                x.contiguous(), y.contiguous(), values, *gradients,
                partners, signs, x_steepness, y_steepness, epsilon,
                N=n, LAYERS=len(partners), ITEMS=ITEMS, WIRES=partners.shape[1],
                CAUCHY=sorts[0].distribution == "cauchy", BY_X=by_x, BY_Y=by_y, num_warps=1,
            )  # fmt: skip
    return values, gradients[0], gradients[1]


@lru_cache(maxsize=16)
def _tables(network: Network, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return each wire's partner and sign, [layers, wires] each.

    Wires are padded to a power of two by wires that are their own partners.
    """
    layers = network_layers(network, n)
    wires = max(2, 1 << (n - 1).bit_length())
    padding, ones = list(range(n, wires)), [1] * (wires - n)
    partners = [partner + padding for partner, _ in layers]
    signs = [sign + ones for _, sign in layers]
    return (
        torch.tensor(partners, dtype=torch.int32, device=device),
        torch.tensor(signs, dtype=torch.float32, device=device),
    )
