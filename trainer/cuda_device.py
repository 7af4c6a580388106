"""Which device to train on, and in one sentence why a GPU cannot be used.

Torch's own errors have many lines, or come late.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from shards.errors import PretrackError

BFLOAT16_CAPABILITY = (8, 0)
"""The first compute capability with bfloat16 in its tensor cores (A100)."""
OUT_OF_MEMORY = re.compile(r"out of memory|ALLOC_FAILED", re.IGNORECASE)
"""What torch, CUDA, cuBLAS and cuDNN say if memory runs out."""
_BUSY = re.compile(r"busy or unavailable", re.IGNORECASE)
_NO_KERNEL = re.compile(r"no kernel image", re.IGNORECASE)


def choose_device(device: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """Return the device of the rank `local_rank` of this machine.

    `auto` is CUDA if torch sees a CUDA device, else the CPU. Raises PretrackError if `cuda` was
    asked for and torch sees no device, if the driver is too old for torch, if there are fewer
    devices than ranks, and if the rank's device cannot run a kernel.
    """
    if device == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        _check_driver(" ".join(str(warning.message) for warning in caught))
        if device == "cuda":
            built = "sees no CUDA device here" if torch.version.cuda else "was built without CUDA"
            raise PretrackError(f"'run.device: cuda' was asked for, and torch {built}")
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise PretrackError(
            f"rank {local_rank} of this machine has no GPU of its own: torch sees "
            f"{torch.cuda.device_count()}, so give torchrun '--nproc-per-node "
            f"{torch.cuda.device_count()}'"
        )
    chosen = torch.device("cuda", local_rank)
    try:
        _run_kernel(chosen)
    except RuntimeError as error:
        raise PretrackError(_why_unusable(chosen, error)) from error
    return chosen


def _check_driver(warning: str) -> None:
    """Raise PretrackError if torch warned that the driver is too old for it."""
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", warning):
        version = int(found[1])
        raise PretrackError(
            f"the NVIDIA driver, which is for CUDA {version // 1000}.{version % 1000 // 10}, is "
            f"too old for this torch, which needs CUDA {torch.version.cuda}: update the driver, "
            "install a torch built for it, or set 'run.device=cpu'"
        )


def _run_kernel(device: torch.device) -> None:
    """Run one kernel on a device, and wait for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old device before it fails
        torch.ones(1, device=device).add_(1).item()


def _why_unusable(device: torch.device, error: RuntimeError) -> str:
    """Return a sentence for an error that the first use of a device raised."""
    message = " ".join(str(error).split())
    if OUT_OF_MEMORY.search(message):
        return out_of_memory(device)
    if _BUSY.search(message):
        return (
            f"GPU {device.index} is used by another program that has it to itself: choose another "
            "one with CUDA_VISIBLE_DEVICES, or 'run.device=cpu'"
        )
    if _NO_KERNEL.search(message):
        name = torch.cuda.get_device_name(device)
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"{name} has compute capability {major}.{minor}, for which this torch "
            f"({torch.__version__}) has no kernels ({', '.join(torch.cuda.get_arch_list())}): "
            "install a torch built for it, or set 'run.device=cpu'"
        )
    return f"GPU {device.index} does not work ({message[:200]}): set 'run.device=cpu' to do without"


def check_precision(device: torch.device, precision: str) -> None:
    """Raise PretrackError if a CUDA device is too old for bfloat16, and that is the precision."""
    if device.type != "cuda" or precision != "bfloat16":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < BFLOAT16_CAPABILITY:
        raise PretrackError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}."
            f"{capability[1]}, and bfloat16 needs {BFLOAT16_CAPABILITY[0]}."
            f"{BFLOAT16_CAPABILITY[1]}: set 'run.precision=float32'"
        )


@contextmanager
def explain_out_of_memory(device: torch.device) -> Iterator[None]:
    """Raise PretrackError, in one sentence, if the device's memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if device.type != "cuda" or not OUT_OF_MEMORY.search(str(error)):
            raise
        raise PretrackError(out_of_memory(device)) from error


def out_of_memory(device: torch.device) -> str:
    """Return a sentence on who holds a device's memory, and what to do."""
    name = f"GPU {device.index}"
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # not even a context fits
        return (
            f"{name} has no free memory: end the programs that use it ('nvidia-smi' lists them), "
            "or choose another one with CUDA_VISIBLE_DEVICES"
        )
    own = torch.cuda.memory_reserved(device)
    others = max(0, total - free - own)
    used = f"this run holds {own / 1e9:.1f} of its {total / 1e9:.1f} GB"
    if others > total / 10:
        return (
            f"{name} is out of memory: {used}, and other programs {others / 1e9:.1f} GB: end them "
            "('nvidia-smi' lists them), or choose another GPU with CUDA_VISIBLE_DEVICES"
        )
    return (
        f"{name} is out of memory: {used}; raise 'run.accumulate', or lower 'run.batch_size' or "
        "'data.size'"
    )
