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
from trainer.losses.sorting.soft_rank import gpu_kernel, soft_rank, soft_rank_torch, standardised

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


def compare_in_the_interpreter() -> None:
    """Compare the kernels with `pooled`, in a process whose Triton interprets."""
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
    print("equal")


@pytest.mark.slow
def test_kernels_equal_pooling_by_hand_in_the_interpreter() -> None:
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


FORWARD = {"values_at": "*fp32", "ranks_at": "*fp32", "blocks_at": "*i16"}
BACKWARD = {"gradient_at": "*fp32", "blocks_at": "*i16", "result_at": "*fp32"}
NUMBERS = {"strength": "fp32", "scale": "fp32", "N": "constexpr", "WIDTH": "constexpr"}


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
    types = FORWARD | BACKWARD | NUMBERS
    # as torch allocates: pointers to multiples of 16 bytes
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    signature = {name: types[name] for name in function.arg_names}
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
@pytest.mark.parametrize(
    ("capability", "n", "most_registers", "most_instructions"),
    [
        (80, 64, 48, 1500), (80, 196, 128, 4500),
        (90, 49, 48, 1500), (90, 64, 48, 1500), (90, 100, 80, 2500), (90, 256, 128, 4500),
        (90, 1024, 128, 4500),
    ],
)  # fmt: skip
def test_kernels_fit_in_registers(
    capability: int,
    n: int,
    most_registers: int,
    most_instructions: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, share in (("_forward", 1.0), ("_backward", 0.5)):
        registers, stack, instructions = machine_code(kernel, n, capability, tmp_path)
        print(f"{kernel} sm_{capability} n {n}: {registers} registers, {instructions} instructions")
        assert stack == 0, f"{kernel} spills"
        assert registers <= most_registers, kernel
        assert instructions <= most_instructions * share, kernel


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
        if tensors and not operation.is_view:
            self.names.append(operation.overloadpacket.__name__)
            self.written += sum(tensor.nbytes for tensor in tensors)
        return results


def test_the_default_loss_on_cuda_launches_one_kernel_per_reference() -> None:
    pytest.importorskip("triton")
    gpu_kernel.cache_clear()
    clips, frames, tracks, patches, references, width = 8, 3, 256, 64, 5, 16
    with FakeTensorMode():
        student = torch.empty(clips, frames, tracks, width, device="cuda")
        crops = torch.empty(clips, references, patches, width, device="cuda")
        weights = torch.empty(clips, frames, tracks, device="cuda")
        objective = make_objective(LossSettings())
        soft_rank(torch.empty(1, patches, device="cuda"), 0.03)  # tries the kernels once
        with Operations() as ran:
            sorting_loss(
                student, student[:, 0], crops, weights, objective=objective, detach_teacher=True
            )
    gpu_kernel.cache_clear()
    assert ran.names.count("soft_rank") == references
    # The PyTorch version runs 800 operations, which write 8 GB.
    assert len(ran.names) < 250, Counter(ran.names)
    assert ran.written < 0.25e9


def test_gradients_need_two_bytes_per_value() -> None:
    pytest.importorskip("triton")
    with FakeTensorMode():
        from trainer.losses.sorting.soft_rank_kernel import gradient_by_values, ranks_and_blocks

        ranks, blocks = ranks_and_blocks(torch.empty(6, 49, device="cuda"), 0.1)
        assert (ranks.dtype, ranks.shape) == (torch.float32, (6, 49))
        assert blocks.nbytes == 2 * 6 * 49
        assert gradient_by_values(ranks, blocks, 0.1).shape == (6, 49)


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
    assert gpu_kernel(n, x.device) is not soft_rank_torch
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


def test_pytorch_takes_over_with_a_warning_where_the_kernel_does_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu_kernel.cache_clear()
    for _ in range(2):
        assert gpu_kernel(64, torch.device("cpu")) is soft_rank_torch
    assert len(caplog.records) == 1
    assert "about 11 GB more" in caplog.text
    assert "Install Triton" in caplog.text
