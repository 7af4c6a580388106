"""One line of the table, and how device work is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Line:
    """A measured figure, and the bounds that it must keep, if any."""

    what: str
    value: float | str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the figure is outside its bounds. A figure that is not a number always is."""
        if isinstance(self.value, str):
            return False
        # written so that NaN is outside every bound
        above = self.at_most is not None and not self.value <= self.at_most
        below = self.at_least is not None and not self.value >= self.at_least
        return above or below

    @property
    def bounds(self) -> str:
        """What the figure must be, as text; empty without bounds."""
        if self.at_most is not None and self.at_most == self.at_least:
            return f"= {self.at_most:g}"
        parts = [] if self.at_least is None else [f"≥ {self.at_least:g}"]
        return ", ".join(parts + ([] if self.at_most is None else [f"≤ {self.at_most:g}"]))

    @property
    def shown(self) -> str:
        """The figure and its unit, as text."""
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return f"{value} {self.unit}".strip()


def synchronize(device: str) -> None:
    """Wait until all work on the device has been done."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], device: str, rounds: int = 7, warm: int = 2) -> float:
    """Return the median time of `work`, device work included, after `warm` untimed rounds."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the time of `work` once, device work included."""
    return milliseconds(work, device, rounds=1, warm=0) / 1e3


def peak_gigabytes(device: str) -> float:
    """Return the most memory allocated on the device since `reset_peak`; NaN on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")


def reset_peak(device: str) -> None:
    """Count the peak of allocated memory from now on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
