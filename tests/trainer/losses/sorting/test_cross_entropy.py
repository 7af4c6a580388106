"""The cross-entropy of soft permutations equals its formula with plain networks and diffsort."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from diffsort import DiffSortNet
from torch import Tensor

from trainer.losses.sorting import cross_entropy as sorting_loss
from trainer.losses.sorting.cross_entropy import (
    NetworkPass,
    cross_entropy_rows,
    gpu_kernel,
    sorting_cross_entropy,
)
from trainer.losses.sorting.network import (
    Distribution,
    Network,
    Sort,
    expected_ranks,
    soft_permutation,
)

NETWORKS = pytest.mark.parametrize("network", ["bitonic", "odd_even"])
DISTRIBUTIONS = pytest.mark.parametrize("distribution", ["cauchy", "logistic"])
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-13, 1e-12), (torch.float32, 1e-5, 5e-4)],
)
X_STEEPNESS, Y_STEEPNESS, EPSILON = 20.0, 3.0, 1e-6


def two_sides(n: int, dtype: torch.dtype, count: int = 6) -> tuple[Tensor, Tensor]:
    x, y = 0.2 * torch.randn(
        2, count, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64
    )
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def formula(p: Tensor, q: Tensor) -> Tensor:
    return -(p * (q + EPSILON).log()).sum(dim=-1).mean(dim=-1)


def plain(
    x: Tensor, y: Tensor, network: Network = "bitonic", distribution: Distribution = "cauchy"
) -> Tensor:
    p, q = (
        soft_permutation(x, network, X_STEEPNESS, distribution),
        soft_permutation(y, network, Y_STEEPNESS, distribution),
    )
    return formula(p, q)


def assert_equal(
    ours: Tensor,
    theirs: Tensor,
    inputs: tuple[Tensor, ...],
    tolerance: float,
    gradient_tolerance: float,
) -> None:
    """Compare values to `tolerance`, and gradients relative to their largest entry.

    Gradients are those of a sum with unequal weights.
    """
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    weights = torch.linspace(0.5, 2, ours.numel(), dtype=ours.dtype).view_as(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        assert (mine - other).abs().max() <= gradient_tolerance * other.abs().max()


@NETWORKS
@DISTRIBUTIONS
@PRECISIONS
@pytest.mark.parametrize("n", [2, 5, 8, 49, 64, 100])
def test_equals_the_plain_network(
    network: Network,
    distribution: Distribution,
    n: int,
    dtype: torch.dtype,
    tolerance: float,
    gradient_tolerance: float,
) -> None:
    x, y = two_sides(n, dtype)
    ours = sorting_cross_entropy(x, y, network, X_STEEPNESS, Y_STEEPNESS, distribution, EPSILON)
    assert_equal(ours, plain(x, y, network, distribution), (x, y), tolerance, gradient_tolerance)


@NETWORKS
@DISTRIBUTIONS
@PRECISIONS
@pytest.mark.parametrize("n", [8, 49])
def test_equals_diffsort(
    network: Network,
    distribution: Distribution,
    n: int,
    dtype: torch.dtype,
    tolerance: float,
    gradient_tolerance: float,
) -> None:
    x, y = two_sides(n, dtype)
    p = DiffSortNet(network, n, steepness=X_STEEPNESS, distribution=distribution)(x)[1]
    q = DiffSortNet(network, n, steepness=Y_STEEPNESS, distribution=distribution)(y)[1]
    ours = sorting_cross_entropy(x, y, network, X_STEEPNESS, Y_STEEPNESS, distribution, EPSILON)
    assert_equal(ours, formula(p, q), (x, y), tolerance, gradient_tolerance)


@NETWORKS
@DISTRIBUTIONS
@pytest.mark.parametrize("n", [8, pytest.param(49, marks=pytest.mark.slow)])
def test_gradient_against_finite_differences(
    network: Network, distribution: Distribution, n: int
) -> None:
    x, y = two_sides(n, torch.float64, count=1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sorting_cross_entropy(x, y, network, 5.0, 3.0, distribution, 1e-2)

    assert torch.autograd.gradcheck(loss, (x, y))


@pytest.mark.slow
def test_rows_beyond_one_chunk() -> None:
    x, y = two_sides(16, torch.float64, count=5000)
    assert_equal(sorting_cross_entropy(x, y), plain(x, y), (x, y), 1e-13, 1e-12)


def test_leading_axes_and_only_one_gradient() -> None:
    x, y = two_sides(9, torch.float64)
    shaped = sorting_cross_entropy(x.detach().view(2, 3, 9), y.view(2, 3, 9))
    assert_equal(shaped.flatten(), plain(x.detach(), y), (y,), 1e-13, 1e-12)
    shaped = sorting_cross_entropy(x.view(2, 3, 9), y.detach().view(2, 3, 9))
    assert_equal(shaped.flatten(), plain(x, y.detach()), (x,), 1e-13, 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(sorting_cross_entropy(x, y), plain(x, y), rtol=0, atol=1e-13)


@NETWORKS
@pytest.mark.parametrize("n", [9, 16])
@pytest.mark.parametrize("few_want", [False, True])
@pytest.mark.parametrize("few_first", [False, True])
def test_one_side_is_shared_by_all_frames_of_the_other(
    network: Network, n: int, few_want: bool, few_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sorting_loss, "CPU_STATE", 4 * n**2
    )  # chunks of 4 rows, with 6 rows per frame
    few, many = (values.detach() for values in two_sides(n, torch.float64))
    many = torch.stack([many, -many, many.flip(0)]).requires_grad_()
    few.requires_grad_(few_want)
    x, y = (few, many) if few_first else (many, few)
    full_x, full_y = (values.expand(many.shape).reshape(-1, n) for values in (x, y))
    theirs = plain(full_x, full_y, network).view(many.shape[:2])
    assert_equal(
        sorting_cross_entropy(x, y, network),
        theirs,
        (many, few) if few_want else (many,),
        1e-13,
        1e-12,
    )


def test_one_side_is_sorted_once_for_all_frames_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[tuple[int, float]] = []
    original = NetworkPass.__init__

    def counting(self: NetworkPass, x: Tensor, sort: Sort, keep: bool) -> None:
        runs.append((len(x), sort.steepness))
        original(self, x, sort, keep)

    monkeypatch.setattr(NetworkPass, "__init__", counting)
    x, y = two_sides(16, torch.float64)
    sorting_cross_entropy(x.expand(3, -1, -1), y.detach())
    assert sorted(runs) == [(6, Y_STEEPNESS), (6, X_STEEPNESS), (6, X_STEEPNESS), (6, X_STEEPNESS)]


@pytest.mark.parametrize(("x", "y"), [((2, 8), (1, 8)), ((2, 8), (2, 2, 9)), ((2, 3, 8), (2, 8))])
def test_rows_of_two_shapes_are_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"same shape, not {x} and {y}")):
        sorting_cross_entropy(torch.zeros(x), torch.zeros(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_sorted_in_float32(dtype: torch.dtype) -> None:
    x, y = (values.detach().to(dtype).requires_grad_() for values in two_sides(49, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        ours, ranks = sorting_cross_entropy(x, y), expected_ranks(x, "bitonic", X_STEEPNESS)
    assert ours.dtype == ranks.dtype == torch.float32
    assert torch.equal(ours, sorting_cross_entropy(x.float(), y.float()))
    assert torch.autograd.grad(ours.sum(), x)[0].dtype == dtype


def saved_bytes(make: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd saves for backward, counting every storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = make()
    assert result.requires_grad
    return sum(storages.values())


def test_saves_a_hundredth_of_the_plain_networks_memory_for_backward() -> None:
    x, y = two_sides(64, torch.float32, count=32)
    ours, theirs = (
        saved_bytes(lambda: sorting_cross_entropy(x, y)),
        saved_bytes(lambda: plain(x, y)),
    )
    assert ours == 2 * 32 * 64 * 4
    assert ours <= theirs / 100


@NETWORKS
@DISTRIBUTIONS
@pytest.mark.parametrize("n", [2, 8, 49, 100])
def test_expected_ranks_equal_the_permutation_times_positions(
    network: Network, distribution: Distribution, n: int
) -> None:
    x, _ = two_sides(n, torch.float64)
    theirs = soft_permutation(x, network, X_STEEPNESS, distribution) @ torch.arange(
        n, dtype=torch.float64
    )
    assert_equal(expected_ranks(x, network, X_STEEPNESS, distribution), theirs, (x,), 1e-11, 1e-11)


INTERPRETED = """
import torch
from trainer.losses.sorting.cross_entropy_kernel import launch
from trainer.losses.sorting.cross_entropy import cross_entropy_rows
from trainer.losses.sorting.network import Sort

launch.ODD_EVEN_TILE = 512  # fewer operations: the interpreter's time grows with them
cauchy = [("bitonic", "cauchy", (True, True)), ("odd_even", "cauchy", (True, False))]
logistic = [("bitonic", "logistic", (False, True)), ("odd_even", "logistic", (False, False))]
# Of 13 wires all are in one run and one program takes two rows; of 49, some are padding.
for n, rows, cases in ((13, 3, cauchy + logistic), (49, 1, cauchy), (64, 1, logistic)):
    x, y = 0.2 * torch.randn(2, rows, n, generator=torch.Generator().manual_seed(n))
    for network, distribution, wanted in cases:
        sorts = Sort(network, 20.0, distribution), Sort(network, 3.0, distribution)
        ours = launch.cross_entropy_rows(x, y, sorts, 1e-6, wanted)
        theirs = cross_entropy_rows(x, y, sorts, 1e-6, wanted)
        for mine, other in zip(ours, theirs):
            assert (mine is None) == (other is None)
            if other is not None:
                assert (mine - other).abs().max() <= 2e-5 * other.abs().max(), (n, mine, other)
print("equal")
"""


@pytest.mark.slow
def test_triton_kernel_equals_pytorch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "equal\n", ran.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@NETWORKS
@DISTRIBUTIONS
@pytest.mark.parametrize("n", [8, 49, 64, 100, 128])
def test_cuda_equals_the_cpu(network: Network, distribution: Distribution, n: int) -> None:
    x, y = two_sides(n, torch.float32)
    steepness = X_STEEPNESS, Y_STEEPNESS
    on_gpu = sorting_cross_entropy(x.cuda(), y.cuda(), network, *steepness, distribution, EPSILON)
    assert_equal(
        on_gpu.cpu(),
        sorting_cross_entropy(x, y, network, *steepness, distribution, EPSILON),
        (x, y),
        1e-5,
        5e-4,
    )
    frames = torch.stack([x, -x])
    on_gpu = sorting_cross_entropy(
        frames.cuda(), y.detach().cuda(), network, *steepness, distribution, EPSILON
    )
    on_cpu = sorting_cross_entropy(frames, y.detach(), network, *steepness, distribution, EPSILON)
    assert_equal(on_gpu.cpu(), on_cpu, (x,), 1e-5, 5e-4)


def test_pytorch_takes_over_where_the_kernel_does_not_run(caplog: pytest.LogCaptureFixture) -> None:
    sorts = Sort("bitonic", 20.0, "cauchy"), Sort("bitonic", 3.0, "cauchy")
    for _ in range(2):
        assert gpu_kernel(sorts, 8, (True, True), torch.device("cpu")) is cross_entropy_rows
    assert len(caplog.records) == 1
    assert "PyTorch, several times slower" in caplog.text
    # The device is the reason, and not that the kernel's module was moved.
    assert "No module named 'trainer" not in caplog.text


@pytest.mark.slow
def test_triton_is_imported_only_where_it_is_used() -> None:
    code = (
        "import sys, trainer.losses.sorting.network, trainer.losses.sorting.cross_entropy, "
        "trainer.losses.sorting.objective; print('triton' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
