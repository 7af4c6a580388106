"""The sorting kernel, compiled without a GPU: registers, spills, instructions per row, variants."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainer.losses.sorting.network import Network

triton = pytest.importorskip("triton")
from triton.backends import nvidia  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from trainer.losses.sorting.cross_entropy_kernel import launch, rows  # noqa: E402

TOOL = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


def machine_code(network: Network, n: int, folder: Path) -> dict[int, tuple[str, str]]:
    """Compile a kernel; return its resource usage and instructions by compute capability.

    Both targets start from one Triton IR, and get the same code as from the source.
    """
    constants = launch.KernelSize.of(network, n).constants()
    types = ["*fp32"] * 6 + ["*i32"] + ["i32"] * 8 + ["fp32"] * 3
    signature = dict(zip(rows.ARGUMENTS, types, strict=True))
    signature |= dict.fromkeys(constants, "constexpr")
    source: Any = ASTSource(rows.compute_rows, signature, constexprs=constants)
    code = {}
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        kernel = triton.compile(source, target=target, options=launch.OPTIONS)
        (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        usage, instructions = (
            subprocess.check_output([TOOL, option, folder / "kernel.cubin"], text=True)
            for option in ("--dump-resource-usage", "-sass")
        )
        code[capability] = usage, instructions
        source = str(folder / "kernel.ttir")
        Path(source).write_text(kernel.asm["ttir"])
    return code


def instructions_per_row(sass: str, trips: list[int]) -> int:
    """Count executed instructions, given the iterations of every loop in order of their starts.

    Branches within a loop are counted as taken.
    """
    lines = [
        (int(address, 16), text)
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)
    ]
    loops = sorted(
        (int(target[1], 16), -address)
        for address, text in lines
        if (target := re.search(r"\bBRA\b.*(0x[0-9a-f]+)", text)) and int(target[1], 16) < address
    )
    assert len(loops) == len(trips)
    count = 0
    for address, _ in lines:
        times = 1
        for (start, end), iterations in zip(loops, trips, strict=True):
            if start <= address <= -end:
                times *= iterations
        count += times
    return count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "n", "stack", "most"),
    [
        ("bitonic", 64, 0, 38_000),
        # ptxas of Triton 3.9 keeps a pointer in memory, which is read twice per row.
        ("bitonic", 128, 8, 200_000),
        ("odd_even", 64, 0, 190_000),
        ("odd_even", 128, 0, 1_400_000),
    ],
)
def test_kernel_spills_nothing_and_keeps_to_its_instructions(
    network: Network,
    n: int,
    stack: int,
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    depth = n.bit_length() - 1
    if network == "bitonic":
        # the row; comparisons by layer; passes over items: two sides forward, two back; by layer
        layers, passes = depth * (depth + 1) // 2, {64: 2, 128: 16}[n]
        trips = [1, layers, passes, 2, 2, layers]
    else:
        passes = {64: 8, 128: 32}[n]
        trips = [1, n, passes, 2, n // 2, 2, n // 2, n]
    for capability, (usage, instructions) in machine_code(network, n, tmp_path).items():
        used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert used is not None
        count = instructions_per_row(instructions, trips)
        print(f"{network} n={n} sm_{capability}: {used[0]}, {count} instructions per row")
        assert int(used[1]) <= 255
        assert int(used[2]) <= stack
        assert most / 2 < count < most


def test_one_kernel_serves_all_rows_steepnesses_and_gradients() -> None:
    size, kernel = launch.KernelSize.of, rows.compute_rows
    constants = size("bitonic", 64).constants()
    assert size("bitonic", 49).constants() == constants
    assert size("odd_even", 49).constants() == size("odd_even", 64).constants()
    # Every other argument is passed at run time: no value of it compiles another kernel.
    arguments = [name for name in kernel.arg_names if name not in constants]
    assert arguments == list(rows.ARGUMENTS)
    assert all(
        parameter.do_not_specialize for parameter in kernel.params if parameter.name in arguments
    )
