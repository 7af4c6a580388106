"""Which device the parts use, and in one sentence why a GPU cannot be used."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Literal

from trainer.cuda_device import check_precision, choose_device

Device = Literal["cpu", "cuda"]


def in_another_process(asked: Literal["auto", "cuda"]) -> Device:
    """Call `usable_device` in a process that ends, so that none but the parts hold the GPU."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(usable_device, asked).result()


def usable_device(asked: Literal["auto", "cuda"]) -> Device:
    """Return the device to use: `auto` is CUDA if torch sees a GPU.

    Raises PretrackError if a GPU is there, or was asked for, and cannot be used.
    """
    device = choose_device(asked)
    check_precision(device, "bfloat16")
    return "cuda" if device.type == "cuda" else "cpu"
