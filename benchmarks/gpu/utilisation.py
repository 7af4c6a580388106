"""How busy the GPU is while other code runs."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean

import torch

SAMPLE_S = 0.1
"""Seconds between two readings, each the share of the time since the last in which a kernel ran."""


class Samples:
    """Readings of the GPU's utilisation in %, each with its time."""

    def __init__(self) -> None:
        self.readings: list[tuple[float, float]] = []

    def between(self, start: float, end: float) -> float | None:
        """Return the mean from `start` to `end`, in seconds of `time.time`; None without any."""
        inside = [value for when, value in self.readings if start <= when <= end]
        return mean(inside) if inside else None


@contextmanager
def utilisation(device: str) -> Iterator[Samples]:
    """Collect the GPU's utilisation, as nvidia-smi reads it, while the block runs."""
    samples = Samples()
    if device == "cpu" or not shutil.which("nvidia-smi"):
        yield samples
        return
    # Its number may be another one here, where some GPUs are hidden.
    gpu = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(
        ["nvidia-smi", f"--id={gpu}", *query, f"--loop-ms={round(1e3 * SAMPLE_S)}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    output = process.stdout

    def read() -> None:
        for text in output:
            if text.strip().isdigit():
                samples.readings.append((time.time(), float(text)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        reader.join()
