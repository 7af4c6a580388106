"""What people watch: a line on the console, figures over time, pictures of features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch.utils.tensorboard import SummaryWriter

from shards.errors import SettingsError
from trainer.config import RunSettings, TrainSettings
from trainer.distributed import Rank, all_reduce_mean

PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "4090": 165e12,
    "V100": 125e12,
}
"""Dense bfloat16 (V100: float16) operations per second, by what a device's name holds: NVIDIA's data sheets."""


class MetricLogger(Protocol):
    """Where figures go."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the figures of a step."""

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Writes a picture [H, W, 3], RGB."""

    def close(self) -> None:
        """Nothing comes after this."""


class TrainingMonitor:
    """Follows a run on its first rank, and does nothing on the others. A context manager."""

    def __init__(
        self, settings: TrainSettings, start: int, steps: int, epoch: int, rank: Rank, flops: float
    ) -> None:
        """From step `start` on to `steps`, `epoch` of which are an epoch; `flops` floating-point operations a step, all ranks'."""
        self.settings, self.start, self.steps, self.epoch, self.rank, self.flops = (
            settings,
            start,
            steps,
            epoch,
            rank,
            flops,
        )
        self.console = Console(quiet=not rank.first, soft_wrap=True, highlight=False)
        self.progress = Progress(
            console=self.console, disable=not (rank.first and self.console.is_terminal)
        )
        self.task = self.progress.add_task("training", total=steps, completed=start)

    def __enter__(self) -> TrainingMonitor:
        self.loggers = (
            [
                make_metric_logger(name, self.settings, self.start)
                for name in self.settings.run.watch
            ]
            if self.rank.first
            else []
        )
        self.progress.start()
        self.since, self.whole = MetricWindow(self.start), MetricWindow(self.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        for diary in self.loggers:
            diary.close()

    def step(self, done: int, loss: float, waited: float) -> None:
        """Counts a step, its loss, and the seconds that were waited for its clips; sums up epochs, if they are long.

        Every rank must call this: a sum is of all of them.
        """
        self.progress.update(self.task, completed=done)
        for span in (self.since, self.whole):
            span.add(loss, waited)
        if (
            done % self.epoch == 0 and self.epoch >= self.settings.run.log_every
        ) or done == self.steps:
            loss, waiting = all_reduce_mean(
                torch.tensor([self.whole.loss, self.whole.waiting]), self.rank
            )
            self.console.print(
                f"epoch {-(-done // self.epoch)}: mean loss {loss:.4f} over {self.whole.steps} steps, "
                f"{self.whole.rate * self.settings.run.batch_size:.1f} clips/s, {waiting:.0%} of it waiting for clips"
            )
            self.whole = MetricWindow(done)

    def figures(self, done: int, values: Mapping[str, float]) -> None:
        """Writes figures of the step that was counted last, and those of the time since the ones before."""
        if not self.rank.first:
            return
        rate = self.since.rate
        values = dict(values) | {
            "clips_per_second": rate * self.settings.run.batch_size,
            "loader_wait": self.since.waiting,
        }
        if self.rank.device.type == "cuda":
            values |= {
                "gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
                "teraflops": rate * self.flops / 1e12,
            }
            if peak := peak_flops(torch.cuda.get_device_name()):
                values |= {"mfu": rate * self.flops / peak / self.rank.world}
        for diary in self.loggers:
            diary.figures(done, values)
        self.console.print(
            f"step {done}/{self.steps}  loss {values['loss']:.4f}  spearman {values['spearman']:.3f}  "
            f"visible {values['visible']:.2f}  lr {values['lr']:.2e}  {values['clips_per_second']:.1f} clips/s"
        )
        self.since = MetricWindow(done)

    def picture(self, done: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Writes a picture [H, W, 3]."""
        for diary in self.loggers:
            diary.picture(done, name, picture)


class MetricWindow:
    """Some steps: their mean loss, their rate, and how much of their time went by in waiting for clips."""

    def __init__(self, start: int) -> None:
        self.start, self.steps, self.total, self.waited, self.begun = (
            start,
            0,
            0.0,
            0.0,
            time.perf_counter(),
        )

    def add(self, loss: float, waited: float) -> None:
        """Counts a step."""
        self.steps, self.total, self.waited = (
            self.steps + 1,
            self.total + loss,
            self.waited + waited,
        )

    @property
    def loss(self) -> float:
        """Its mean."""
        return self.total / max(1, self.steps)

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / (time.perf_counter() - self.begun)

    @property
    def waiting(self) -> float:
        """The part of the time."""
        return self.waited / (time.perf_counter() - self.begun)


def make_metric_logger(name: str, settings: TrainSettings, start: int) -> MetricLogger:
    """One that the settings name. Raises SettingsError if what it needs is not installed."""
    if name == "tensorboard":
        return TensorBoard(settings.run, start)
    try:
        module = import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"'run.watch' names {name}, which is not installed: pip install {name}"
        ) from error
    return Online(module, settings)


class TensorBoard:
    """Files in OUT/tensorboard. A run that goes on from a checkpoint takes back what was written after it."""

    def __init__(self, run: RunSettings, start: int) -> None:
        self.writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=start + 1)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Writes an image."""
        self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


class Online:
    """Weights & Biases, or trackio, which has the same functions. A run is known by the name of its folder."""

    def __init__(self, module: Any, settings: TrainSettings) -> None:
        self.module = module
        name = settings.run.out.name
        identity = {"id": name} if module.__name__ == "wandb" else {}
        module.init(
            project="pretrack",
            name=name,
            config=settings.model_dump(mode="json"),
            resume="allow",
            **identity,
        )

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars."""
        self.module.log(dict(values), step=step)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Writes an image."""
        self.module.log({name: self.module.Image(picture)}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.module.finish()


def peak_flops(device: str) -> float | None:
    """What a device of that name can do at most in bfloat16, per second; None where it is not known here."""
    return next((peak for name, peak in PEAK.items() if name in device), None)
