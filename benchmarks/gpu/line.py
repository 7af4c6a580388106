"""One line of the table, and how device work is timed."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import torch

from shards.errors import first_line


@dataclass(frozen=True)
class Line:
    """A measured figure, and the bounds that it must keep, if any.

    failed: whether this is instead a reason why figures could not be measured
    """

    what: str
    value: float | str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    failed: bool = False

    @property
    def missed(self) -> bool:
        """Whether the figure failed or is outside its bounds. NaN is outside of all bounds."""
        if self.failed or isinstance(self.value, str):
            return self.failed
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


def attempt(name: str, section: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Yield a section's lines; if it raises, a line that says why, so that the next sections run.

    After an error of CUDA itself the next ones fail too: the process cannot use the GPU any more.
    """
    try:
        yield from section()
    except Exception as error:  # anything that a driver, a library or a full GPU may raise
        traceback.print_exc(file=sys.stderr)
        reason = f"{type(error).__name__}: {first_line(error)}"
    else:
        return
    # Only now that the error is gone can the tensors of its traceback be freed.
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # CUDA may not work any more
            torch.cuda.empty_cache()
    yield Line(name, reason, failed=True)


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
