"""The sorting kernel, compiled without a GPU: registers, spills, instructions per row, variants."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
import subprocess, sys, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer.losses.sorting import triton_kernel

network, n, capability, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
constants = triton_kernel.KernelSize.of(network, n).constants()
names = triton_kernel.ARGUMENTS
types = ["*fp32"] * 6 + ["*i32"] + ["i32"] * 8 + ["fp32"] * 3
signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
kernel = triton.compile(
    ASTSource(triton_kernel._rows, signature, constexprs=constants),
    target=GPUTarget("cuda", capability, 32),
    options=triton_kernel.OPTIONS,
)
(folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for option in ("--dump-resource-usage", "-sass"):
    subprocess.run([tool, option, folder / "kernel.cubin"], check=True)
"""


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
@pytest.mark.parametrize("capability", [80, 90])
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
    network: str, n: int, stack: int, most: int, capability: int, tmp_path: Path
) -> None:
    if (n, capability) == (128, 80) and "PRETRACK_KERNELS" not in os.environ:
        pytest.skip("takes long, and differs from sm_90 by its arguments alone: make soak runs it")
    command = [sys.executable, "-c", COMPILE, network, str(n), str(capability), str(tmp_path)]
    ran = subprocess.run(
        command,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    used = re.search(r"REG:(\d+) STACK:(\d+)", ran.stdout)
    assert used is not None
    assert int(used[1]) <= 255
    assert int(used[2]) <= stack
    depth = n.bit_length() - 1
    if network == "bitonic":
        # the row; comparisons by layer; passes over items: two sides forward, two back; by layer
        layers, passes = depth * (depth + 1) // 2, {64: 2, 128: 16}[n]
        trips = [1, layers, passes, 2, 2, layers]
    else:
        passes = {64: 8, 128: 32}[n]
        trips = [1, n, passes, 2, n // 2, 2, n // 2, n]
    count = instructions_per_row(ran.stdout, trips)
    print(f"{network} n={n} sm_{capability}: {used[0]}, {count} instructions per row")
    assert most / 2 < count < most


def test_one_kernel_serves_all_rows_steepnesses_and_gradients() -> None:
    from trainer.losses.sorting.triton_kernel import ARGUMENTS, KernelSize, _rows

    constants = KernelSize.of("bitonic", 64).constants()
    assert KernelSize.of("bitonic", 49).constants() == constants
    assert KernelSize.of("odd_even", 49).constants() == KernelSize.of("odd_even", 64).constants()
    # Every other argument is passed at run time: no value of it compiles another kernel.
    assert [name for name in _rows.arg_names if name not in constants] == list(ARGUMENTS)
    assert all(
        parameter.do_not_specialize for parameter in _rows.params if parameter.name in ARGUMENTS
    )
