"""What the machine can do at most: the ceilings that other figures are compared with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.line import Line, attempt, milliseconds


def lines(device: str, small: bool) -> Iterator[Line]:
    """Measure the copy bandwidth, and the rate of large matrix products."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    yield Line("device", name)
    yield Line("processor cores", float(os.cpu_count() or 1))
    yield Line("torch", torch.__version__)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield Line("memory", total / 1e9, "GB")
        # CUDA itself takes half a gigabyte. With more, other programs make times too long.
        yield Line("memory that is in use", (total - free) / 1e9, "GB", at_most=2)
    yield from attempt("ceilings", partial(_ceilings, device, small))


def _ceilings(device: str, small: bool) -> Iterator[Line]:
    side, count = (256, 1 << 20) if small else (8192, 1 << 31)
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), device)
    yield Line("copy, bytes read and written", 2 * count / copied / 1e9, "TB/s")
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    multiplied = milliseconds(lambda: a @ b, device)
    yield Line("bfloat16 matrix product", 2 * side**3 / multiplied / 1e9, "TFLOP/s")
