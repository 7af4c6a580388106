"""Soft ranks equal torchsort's, isotonic regression scipy's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr
from torch import Tensor

from trainer.losses.sorting import soft_rank as soft_rank_module
from trainer.losses.sorting.soft_rank import (
    hard_rank,
    has_torchsort,
    isotonic_decreasing,
    soft_rank,
    soft_rank_torch,
    spearman,
    standardised,
)

torchsort = pytest.importorskip("torchsort")


def rows(n: int, count: int = 20) -> torch.Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 7, 49, 64, 100])
@pytest.mark.parametrize("strength", [1.0, 0.1, 0.03, 0.003])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_equals_torchsort(n: int, strength: float, dtype: torch.dtype, tolerance: float) -> None:
    x = standardised(rows(n)).to(dtype).requires_grad_()
    target = torch.randn(20, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )
    theirs, ours = (
        torchsort.soft_rank(x, regularization_strength=strength),
        soft_rank_torch(x, strength),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    (their_gradient,) = torch.autograd.grad((theirs * target).sum(), x)
    (our_gradient,) = torch.autograd.grad((ours * target).sum(), x)
    torch.testing.assert_close(
        our_gradient * strength, their_gradient * strength, rtol=0, atol=tolerance
    )


def test_gradient_against_finite_differences() -> None:
    x = standardised(rows(9, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_rank_torch(x, 0.3), (x,))


@pytest.mark.parametrize("together", [7, 20])
def test_isotonic_regression_equals_scipy(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_rank_module, "MEANS", together * 33**2)
    y = rows(33)
    expected = torch.stack(
        [torch.tensor(isotonic_regression(row.numpy(), increasing=False).x.copy()) for row in y]
    )
    torch.testing.assert_close(isotonic_decreasing(y), expected)


@pytest.mark.parametrize("rank", [soft_rank, soft_rank_torch])
def test_small_strength_ranks(rank: Callable[[Tensor, float], Tensor]) -> None:
    x = rows(64)
    torch.testing.assert_close(rank(x, 1e-7), hard_rank(x) + 1, rtol=0, atol=1e-3)


def test_spearman_equals_scipy() -> None:
    a, b = rows(49), rows(49).flip(0)
    expected = [spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(spearman(a, b), torch.tensor(expected, dtype=torch.float64))


def test_standardised_scale_is_a_constant_to_gradients() -> None:
    x = rows(16).requires_grad_()
    target = torch.randn(16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((standardised(x) * target).sum(), x)
    expected = (target - target.mean()) / x.detach().std(dim=1, keepdim=True, correction=0)
    torch.testing.assert_close(gradient, expected)


def test_equal_values_have_finite_ranks_and_gradients() -> None:
    x = torch.full((2, 8), 0.5, requires_grad=True)
    ranks = soft_rank(standardised(x), 0.03)
    ranks.square().sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(ranks).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_logs_once_which_implementation_is_used(caplog: pytest.LogCaptureFixture) -> None:
    has_torchsort.cache_clear()
    with caplog.at_level("INFO", "trainer.losses.sorting.soft_rank"):
        soft_rank(rows(4), 0.1)
        soft_rank(rows(4), 0.1)
    assert [record.message for record in caplog.records] == ["soft ranks on cpu: torchsort"]
