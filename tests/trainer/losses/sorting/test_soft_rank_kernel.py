"""The Triton kernels for soft ranks: right, small, and used on CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.losses.settings import LossSettings
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.sorting.soft_rank import (
    correlation,
    gpu_kernels,
    hard_rank,
    soft_rank,
    soft_rank_torch,
    spearman_loss,
    standardised,
)

WORST_RANK, WORST_GRADIENT = 5e-5, 1e-6
"""Largest errors in float32: of ranks, and of gradients times the strength."""


def pooled(row: Tensor, strength: float, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the soft ranks of a row, and the gradient of <ranks, target> by it, in float64.

    Pools adjacent violators one by one. Neighbours with equal means are pooled too, as by
    torchsort, so that the gradient at such a tie is defined.
    """
    order = row.double().argsort(descending=True, stable=True)
    y = row.double()[order] / strength - torch.arange(len(row), 0, -1)
    blocks: list[list[int]] = []
    for i in range(len(row)):
        blocks.append([i])
        while len(blocks) > 1 and y[blocks[-2]].mean() <= y[blocks[-1]].mean():
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    ranks, gradient = torch.empty(2, len(row), dtype=torch.float64)
    for block in blocks:
        items = order[block]
        position = len(row) - torch.tensor(block, dtype=torch.float64).mean()
        of_block, of_target = row.double()[items], target.double()[items]
        ranks[items] = (of_block - of_block.mean()) / strength + position
        gradient[items] = (of_target - of_target.mean()) / strength
    return ranks, gradient


def assert_right(ranks: Tensor, gradient: Tensor, x: Tensor, strength: float, g: Tensor) -> None:
    for row, target, ours, our_gradient in zip(x, g, ranks, gradient, strict=True):
        expected, expected_gradient = pooled(row, strength, target)
        assert (ours - expected).abs().max() <= WORST_RANK, (len(row), strength, ours, expected)
        errors = (our_gradient - expected_gradient).abs() * strength
        assert errors.max() <= WORST_GRADIENT, (len(row), strength, our_gradient, expected_gradient)


def ordinary(n: int, rows: int = 1) -> Tensor:
    return standardised(torch.randn(rows, n, generator=torch.Generator().manual_seed(n)))


def awkward(n: int) -> Tensor:
    """Return rows with ties: constant, in two groups, in fives, and in steps of 1.

    At strength 1, the last row consists of blocks with equal means.
    """
    index = torch.arange(n)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    rows = [index * 0 + 0.3, index % 2 * 4.0, index // 5 * 3.0, index * 1.0]
    return torch.stack(rows)[:, shuffled]


def run_on_cpu(x: Tensor, strength: float, target: Tensor) -> tuple[Tensor, Tensor]:
    """Run the kernels in Triton's interpreter."""
    from trainer.losses.sorting.soft_rank_kernel import soft_rank_rows

    x.requires_grad_()
    ranks = soft_rank_rows(x, strength)
    (gradient,) = torch.autograd.grad((ranks * target).sum(), x)
    return ranks.detach(), gradient


def assert_spearman_is_right(
    losses: Tensor, gradient: Tensor, x: Tensor, order: Tensor, strength: float, weights: Tensor
) -> None:
    """Compare with PyTorch in float64; gradients relative to their largest entry."""
    exact = x.detach().cpu().double().requires_grad_()
    ranks = soft_rank_torch(standardised(exact).flatten(0, -2), strength).view_as(exact)
    expected = 1 - correlation(ranks, order.cpu().double())
    (expected_gradient,) = torch.autograd.grad((expected * weights.cpu()).sum(), exact)
    assert losses.shape == expected.shape
    assert (losses.cpu() - expected).abs().max() <= 2e-6, (losses, expected)
    errors = (gradient.cpu() - expected_gradient).abs().amax(dim=-1)
    # Blocks whose means are equal but for rounding may be pooled in one precision only.
    wrong = errors > 2e-5 * expected_gradient.abs().max()
    assert wrong.sum() <= 0.01 * wrong.numel(), (gradient, expected_gradient)


def frames_and_order(n: int, frames: int, tracks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return similarities [frames, tracks, n], hard ranks [tracks, n], and weights of losses."""
    generator = torch.Generator().manual_seed(n)
    similarities = 0.1 * torch.randn(frames, tracks, n, generator=generator) + 0.5
    order = hard_rank(torch.randn(tracks, n, generator=generator))
    return similarities, order, torch.rand(frames, tracks, generator=generator)


def compare_in_the_interpreter() -> None:
    """Compare the kernels with float64, in a process whose Triton interprets."""
    from trainer.losses.sorting import soft_rank_kernel

    soft_rank_kernel.NARROWEST = 2  # less padding: the interpreter's time grows with the width
    cases = [(awkward(n), 1.0) for n in (1, 2, 7, 24)]
    cases += [(ordinary(n), strength) for n in (2, 7, 49) for strength in (1e6, 0.1, 0.03)]
    cases += [(ordinary(n), 0.03) for n in (64, 100, 128, 196, 256)]
    # differences are small beside the values; ranks are hard
    cases += [(ordinary(49) + 1000, 0.01), (ordinary(49) - 1000, 0.01), (ordinary(49), 1e-7)]
    for x, strength in cases:
        target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        assert_right(*run_on_cpu(x, strength, target), x.detach(), strength, target)
    for n, strength in ((2, 0.03), (7, 1.0), (7, 0.1), (49, 0.03)):
        x, order, weights = frames_and_order(n, frames=3, tracks=2)
        x.requires_grad_()
        losses = soft_rank_kernel.spearman_rows(x, order, strength)
        (gradient,) = torch.autograd.grad((losses * weights).sum(), x)
        assert_spearman_is_right(losses.detach(), gradient, x, order, strength, weights)
    print("equal")


@pytest.mark.slow
def test_kernels_equal_float64_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    code = f"from {__name__} import compare_in_the_interpreter as compare; compare()"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "equal\n", ran.stderr


NUMBERS = {"orders": "i32", "strength": "fp32", "scale": "fp32", "blocks_at": "*i16"}
CONSTANTS = {"N": "constexpr", "WIDTH": "constexpr"}


def machine_code(kernel: str, n: int, capability: int, folder: Path) -> tuple[int, int, int]:
    """Compile a kernel; return its registers, its bytes of stack, and its instructions."""
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trainer.losses.sorting import soft_rank_kernel

    options = soft_rank_kernel._options(n)
    constants = {name: options.pop(name) for name in ("N", "WIDTH")}
    function = getattr(soft_rank_kernel, kernel)
    signature = {name: (NUMBERS | CONSTANTS).get(name, "*fp32") for name in function.arg_names}
    # torch aligns memory to more than 16 bytes
    pointers = [i for i, name in enumerate(signature) if name.endswith("_at")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    resources, code = (
        subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout
        for option in ("--dump-resource-usage", "-sass")
    )
    used = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert used
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\d )? *(?!NOP)[A-Z]", code)
    return int(used[1]), int(used[2]), len(instructions)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kernel", "n", "most_registers", "most_instructions"),
    [
        ("_spearman", 49, 48, 2000), ("_spearman", 64, 48, 2000), ("_spearman", 100, 80, 3000),
        ("_spearman", 196, 128, 5500), ("_spearman", 256, 128, 5500),
        ("_forward", 64, 48, 1500), ("_forward", 1024, 128, 4000),
        ("_backward", 64, 32, 500), ("_backward", 256, 72, 1000),
    ],
)  # fmt: skip
def test_kernels_fit_in_registers(
    kernel: str,
    n: int,
    most_registers: int,
    most_instructions: int,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    registers, stack, instructions = machine_code(kernel, n, capability, tmp_path)
    print(f"{kernel} sm_{capability} n {n}: {registers} registers, {instructions} instructions")
    assert stack == 0, "registers are spilled"
    assert registers <= most_registers
    assert instructions <= most_instructions


class Operations(TorchDispatchMode):
    """Name the operations that run, and count the bytes of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.written = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        name = operation.overloadpacket.__name__
        if tensors and not operation.is_view and name not in ("_unsafe_view", "empty_like"):
            self.names.append(name)
            self.written += sum(tensor.nbytes for tensor in tensors)
        return results


def default_loss_on_cuda() -> Operations:
    """Run the default loss of 8 clips with 64 patches, without a GPU."""
    clips, frames, tracks, patches, references, width = 8, 3, 256, 64, 5, 16
    with FakeTensorMode():
        student = torch.empty(clips, frames, tracks, width, device="cuda")
        crops = torch.empty(clips, references, patches, width, device="cuda")
        weights = torch.empty(clips, frames, tracks, device="cuda")
        objective = make_objective(LossSettings())
        gpu_kernels(patches, student.device)  # tries the kernels once
        with Operations() as ran:
            sorting_loss(
                student, student[:, 0], crops, weights, objective=objective, detach_teacher=True
            )
    print(f"{len(ran.names)} operations, {ran.written / 1e9:.2f} GB written")
    return ran


def test_the_default_loss_on_cuda_is_one_kernel_per_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    gpu_kernels.cache_clear()
    ours = default_loss_on_cuda()
    gpu_kernels.cache_clear()
    assert ours.names.count("spearman_loss") == 5
    assert len(ours.names) < 70, Counter(ours.names)

    monkeypatch.setitem(sys.modules, "trainer.losses.sorting.soft_rank_kernel", None)
    without_triton = default_loss_on_cuda()
    gpu_kernels.cache_clear()
    assert "spearman_loss" not in without_triton.names
    assert len(without_triton.names) > 10 * len(ours.names)
    assert without_triton.written > 100 * ours.written


def test_shapes_without_a_gpu_are_those_of_the_kernels() -> None:
    pytest.importorskip("triton")
    with FakeTensorMode():
        from trainer.losses.sorting import soft_rank_kernel

        x = torch.empty(2, 3, 49, device="cuda")
        losses, by_x = soft_rank_kernel.losses_and_gradient(x, x[0], 0.1)
        assert (losses.shape, by_x.shape) == ((2, 3), (2, 3, 49))
        ranks, blocks = soft_rank_kernel.ranks_and_blocks(x[0], 0.1)
        assert (ranks.dtype, ranks.shape) == (torch.float32, (3, 49))
        assert blocks.nbytes == 2 * 3 * 49  # all that the gradient needs
        assert soft_rank_kernel.gradient_by_values(ranks, blocks, 0.1).shape == (3, 49)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [1, 2, 7, 49, 64, 100, 128, 196, 256, 700, 1024])
@pytest.mark.parametrize("strength", [1e6, 1.0, 0.1, 0.03, 0.003, 1e-7])
def test_cuda_equals_float64_on_the_cpu(n: int, strength: float) -> None:
    x = torch.cat([ordinary(n, 500), ordinary(n, 2) + 1000]).cuda().requires_grad_()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ranks = soft_rank(x, strength)
    (gradient,) = torch.autograd.grad((ranks * target.cuda()).sum(), x)
    exact = x.detach().double().cpu().requires_grad_()
    expected = soft_rank_torch(exact, strength)
    (expected_gradient,) = torch.autograd.grad((expected * target).sum(), exact)
    assert gpu_kernels(n, x.device)
    assert (ranks.cpu() - expected).abs().max() <= WORST_RANK * max(1, n / 256)
    # Blocks whose means are equal but for rounding may be pooled in one precision only.
    errors = ((gradient.cpu() - expected_gradient) * strength).abs().amax(dim=1)
    assert (errors > WORST_GRADIENT).sum() <= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [2, 7, 24, 64])
def test_cuda_pools_ties(n: int) -> None:
    x = awkward(n)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    on_gpu = x.cuda().requires_grad_()
    ranks = soft_rank(on_gpu, 1.0)
    (gradient,) = torch.autograd.grad((ranks * target.cuda()).sum(), on_gpu)
    assert_right(ranks.detach().cpu(), gradient.cpu(), x, 1.0, target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [2, 7, 49, 64, 100, 196, 256, 1024])
@pytest.mark.parametrize("strength", [1.0, 0.1, 0.03])
def test_spearman_loss_on_cuda_equals_float64_on_the_cpu(n: int, strength: float) -> None:
    x, order, weights = (values.cuda() for values in frames_and_order(n, frames=3, tracks=100))
    x.requires_grad_()
    losses = spearman_loss(x, order, strength)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), x)
    assert_spearman_is_right(losses.detach(), gradient, x, order, strength, weights)


def test_pytorch_takes_over_with_a_warning_where_the_kernel_does_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu_kernels.cache_clear()
    for _ in range(2):
        assert gpu_kernels(64, torch.device("cpu")) is None
    assert len(caplog.records) == 1
    assert "about 11 GB more" in caplog.text
    assert "Install Triton" in caplog.text
