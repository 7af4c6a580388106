"""Differentiable sorting networks (Petersen et al., 2021): a row of numbers → a soft permutation.

A layer compares wires in pairs. Its comparator on a pair (a, b) mixes the two values,
min = c a + (1 - c) b and max = (1 - c) a + c b, where c = F(steepness * (b - a)) is near 1 if a is
the smaller, and F is the distribution function of a Cauchy or a logistic variable. Seen from one
wire: it keeps the fraction F(steepness * sign * (partner - self)) of its own value, with sign +1 on
the wire that receives the smaller value and -1 on the other.

`soft_permutation` is the network as defined; autograd stores every layer of it. For a loss of two
permutations, `trainer.losses.sorting.cross_entropy` stores only the gradients of its inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Network = Literal["bitonic", "odd_even"]
Distribution = Literal["cauchy", "logistic"]


@dataclass(frozen=True)
class Sort:
    """How a row is sorted: network, steepness, and distribution function of the comparators."""

    network: Network
    steepness: float
    distribution: Distribution


def soft_permutation(
    x: Tensor, network: Network, steepness: float, distribution: Distribution = "cauchy"
) -> Tensor:
    """Sort rows softly, ascending: [rows, n] → [rows, n (item), n (position)].

    The result P is doubly stochastic. Entry [r, i, j] is the fraction of item i that ends at
    ascending position j; x @ P are the softly sorted values. Computed in float32 (float64 for
    float64 input), also under autocast: lower precision ruins the gradient.

    `n` need not be a power of two: as in `diffsort`, the bitonic network of the next power of two
    loses its first wires and every comparator on them. This still sorts for every square n up to
    121, but not for all n (not for 22 or 38), even at high steepness.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    rows, n = x.shape
    # [rows, position, item], the transpose of the result
    permutation = torch.eye(n, dtype=x.dtype, device=x.device).expand(rows, n, n)
    for partner, sign in _layer_tensors(network, n, x.device):
        # A wire without a comparator is its own partner: mixing it with itself changes nothing.
        other = x.index_select(1, partner)
        keep = _distribution(steepness * sign * (other - x), distribution)
        x = torch.lerp(other, x, keep)
        permutation = torch.lerp(
            permutation.index_select(1, partner), permutation, keep.unsqueeze(2)
        )
    return permutation.transpose(1, 2)


def expected_ranks(
    x: Tensor, network: Network, steepness: float, distribution: Distribution = "cauchy"
) -> Tensor:
    """Return each item's expected ascending position, from 0: [..., n] → [..., n].

    Equals `soft_permutation(x) @ arange(n)` without computing the permutation. Activation
    checkpointing: only `x` is stored, and backward recomputes the layers.
    """
    rows = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    ranks = checkpoint(
        _expected_ranks,
        rows,
        network,
        steepness,
        distribution,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return ranks.view(x.shape)  # type: ignore[no-any-return]


def _expected_ranks(
    x: Tensor, network: Network, steepness: float, distribution: Distribution
) -> Tensor:
    layers, keeps = _layer_tensors(network, x.shape[1], x.device), []
    ranks = torch.arange(x.shape[1], dtype=x.dtype, device=x.device).expand_as(x)
    for partner, sign in layers:
        other = x.index_select(1, partner)
        keeps.append(_distribution(steepness * sign * (other - x), distribution))
        x = torch.lerp(other, x, keeps[-1])
    # a layer's matrix is symmetric, so P @ positions applies the layers in reverse order
    for (partner, _), keep in zip(reversed(layers), reversed(keeps), strict=True):
        ranks = torch.lerp(ranks.index_select(1, partner), ranks, keep)
    return ranks


def network_layers(network: Network, n: int) -> list[tuple[list[int], list[int]]]:
    """Return a network's layers, each as (partners, signs) of its n wires.

    A wire that is its own partner has no comparator. Sign +1: the wire receives the smaller value,
    -1: the larger.
    """
    if network == "odd_even":
        return [_odd_even_layer(n, layer % 2) for layer in range(n)]
    blocks = (n - 1).bit_length()
    return [
        _bitonic_layer(n, block, 2**distance)
        for block in range(blocks)
        for distance in range(block, -1, -1)
    ]


def _bitonic_layer(n: int, block: int, distance: int) -> tuple[list[int], list[int]]:
    """Pair wires at a power-of-two distance.

    Runs of 2^(block + 1) wires of the full network are sorted ascending and descending alternately.
    """
    # Wires count from `missing`, their number in the full network, whose bits decide the pairing.
    missing = 2 ** (n - 1).bit_length() - n
    partners, signs = [], []
    for wire in range(missing, missing + n):
        partner = wire ^ distance
        upward = (wire >> (block + 1)) % 2 == 0
        partners.append((partner if partner >= missing else wire) - missing)
        signs.append(1 if upward == (wire < partner) else -1)
    return partners, signs


def _odd_even_layer(n: int, start: int) -> tuple[list[int], list[int]]:
    """Pair neighbouring wires from `start` on; the smaller value goes left."""
    partners, signs = list(range(n)), [1] * n
    for left in range(start, n - 1, 2):
        partners[left], partners[left + 1], signs[left + 1] = left + 1, left, -1
    return partners, signs


@lru_cache(maxsize=16)
def _layer_tensors(network: Network, n: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.tensor(p, device=device), torch.tensor(s, device=device))
        for p, s in network_layers(network, n)
    ]


def _distribution(x: Tensor, distribution: Distribution) -> Tensor:
    return torch.sigmoid(x) if distribution == "logistic" else torch.atan(x) / math.pi + 0.5
