"""The sorting networks equal diffsort's and sort."""

from __future__ import annotations

import pytest
import torch
from diffsort import DiffSortNet

from trainer.losses.sorting.network import Distribution, Network, soft_permutation

SIZES = [2, 5, 8, 11, 49, 64, pytest.param(100, marks=pytest.mark.slow)]


def rows(n: int, count: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (
        torch.randn(count, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 0.2
    ).to(dtype)


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("distribution", ["cauchy", "logistic"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-13, 1e-11), (torch.float32, 1e-5, 1e-3)],
)
def test_equals_diffsort(
    network: Network,
    distribution: Distribution,
    n: int,
    dtype: torch.dtype,
    tolerance: float,
    gradient_tolerance: float,
) -> None:
    x, target = (
        rows(n, dtype=dtype).requires_grad_(),
        torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(1)),
    )
    theirs = DiffSortNet(network, n, steepness=20.0, distribution=distribution)(x)[1]
    ours = soft_permutation(x, network, 20.0, distribution)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    (their_gradient,) = torch.autograd.grad((theirs * target).sum(), x)
    (our_gradient,) = torch.autograd.grad((ours * target).sum(), x)
    scale = their_gradient.abs().max().item()
    torch.testing.assert_close(
        our_gradient / scale, their_gradient / scale, rtol=0, atol=gradient_tolerance
    )


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [7, 8])
def test_gradient_against_finite_differences(network: Network, n: int) -> None:
    x = rows(n, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_permutation(x, network, 5.0), (x,))


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
def test_is_doubly_stochastic(network: Network) -> None:
    permutation = soft_permutation(rows(49, dtype=torch.float32), network, 20.0)
    torch.testing.assert_close(permutation.sum(dim=1), torch.ones(6, 49))
    torch.testing.assert_close(permutation.sum(dim=2), torch.ones(6, 49))


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [side * side for side in range(2, 12)])
def test_hard_steepness_sorts(network: Network, n: int) -> None:
    x = rows(n, 30)
    soft = torch.einsum("ri,rij->rj", x, soft_permutation(x, network, 1e12))
    torch.testing.assert_close(soft, x.sort(dim=1).values, rtol=0, atol=1e-6)


def test_equal_values_are_spread_evenly() -> None:
    torch.testing.assert_close(
        soft_permutation(torch.zeros(1, 64), "bitonic", 20.0), torch.full((1, 64, 64), 1 / 64)
    )


def test_stays_in_float32_under_autocast() -> None:
    x = rows(16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = soft_permutation(x, "bitonic", 20.0)
        assert soft_permutation(x.bfloat16(), "bitonic", 20.0).dtype == torch.float32
    assert inside.dtype == torch.float32
    assert torch.equal(inside, soft_permutation(x, "bitonic", 20.0))
