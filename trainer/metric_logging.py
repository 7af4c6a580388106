"""Reports of a run: console lines; metrics and pictures for TensorBoard, W&B and trackio."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from math import isfinite
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from shards.errors import SettingsError
from trainer.config import RunSettings, TrainSettings
from trainer.distributed import Rank, all_reduce_mean

PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "4090": 165e12,
    "V100": 125e12,
}
"""Dense bfloat16 (V100: float16) operations per second, from NVIDIA's data sheets.

The first key that is part of a device's name applies, so a longer key comes before its prefix."""


class MetricLogger(Protocol):
    """A destination of metrics and pictures."""

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a step by name."""

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image [H, W, 3], RGB."""

    def close(self) -> None:
        """Flush and close; nothing is logged after this."""


class TrainingMonitor:
    """Report a run on its first rank, and do nothing on the others. A context manager."""

    def __init__(
        self,
        settings: TrainSettings,
        rank: Rank,
        *,
        first_step: int,
        last_step: int,
        steps_per_epoch: int,
        flops_per_step: float,
        shown: Mapping[str, int],
    ) -> None:
        """Prepare for the steps after `first_step` up to `last_step`.

        flops_per_step: floating-point operations per step, summed over all ranks
        shown:          metrics on the console's lines beside the loss, and their digits
        """
        self.settings, self.rank = settings, rank
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch, self.flops_per_step = steps_per_epoch, flops_per_step
        self.shown = shown
        self.console = Console(quiet=not rank.first, soft_wrap=True, highlight=False)
        show_progress = rank.first and self.console.is_terminal
        self.progress = Progress(console=self.console, disable=not show_progress)
        self.task = self.progress.add_task("training", total=last_step, completed=first_step)

    def __enter__(self) -> TrainingMonitor:
        names = self.settings.run.watch if self.rank.first else ()
        self.loggers = [make_metric_logger(name, self.settings, self.first_step) for name in names]
        self.progress.start()
        self.since_log, self.this_epoch = MetricWindow(), MetricWindow()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        for logger in self.loggers:
            logger.close()

    def count_step(self, step: int, loss: Tensor, waited: float) -> None:
        """Count a step with its loss, a scalar, and the seconds that it waited for its batch.

        The loss is read only for a summary, so that the host does not wait for the device.

        Prints a summary at the end of an epoch, averaged over all ranks: every rank must call this.
        Epochs shorter than `log_every` have no summary, except the last one.
        """
        self.progress.update(self.task, completed=step)
        for window in (self.since_log, self.this_epoch):
            window.add(loss, waited)
        long_epochs = self.steps_per_epoch >= self.settings.run.log_every
        if (step % self.steps_per_epoch == 0 and long_epochs) or step == self.last_step:
            self._summarise_epoch(step)

    def _summarise_epoch(self, step: int) -> None:
        window = self.this_epoch
        local = torch.tensor([window.mean_loss, window.wait_fraction])
        loss, wait_fraction = all_reduce_mean(local, self.rank)
        clips_per_second = window.steps_per_second * self.settings.run.batch_size
        self.console.print(
            f"epoch {-(-step // self.steps_per_epoch)}: mean loss {loss:.4f} over "
            f"{window.steps} steps, {clips_per_second:.1f} clips/s, {wait_fraction:.0%} of the "
            "time waiting for clips"
        )
        self.this_epoch = MetricWindow()

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of the latest step, and rates since the previous call."""
        if not self.rank.first:
            return
        window = self.since_log
        values = dict(values) | {
            "clips_per_second": window.steps_per_second * self.settings.run.batch_size,
            "loader_wait": window.wait_fraction,
        }
        if self.rank.device.type == "cuda":
            values["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            values |= compute_rates(
                window.steps_per_second * self.flops_per_step,
                torch.cuda.get_device_name(),
                self.rank.world,
            )
        for logger in self.loggers:
            logger.log_metrics(step, values)
        shown = "".join(
            f"{name} {values[name]:.{digits}f}  "
            for name, digits in self.shown.items()
            if name in values
        )
        self.console.print(
            f"step {step}/{self.last_step}  loss {values['loss']:.4f}  {shown}"
            f"lr {values['lr']:.2e}  {values['clips_per_second']:.1f} clips/s"
        )
        self.since_log = MetricWindow()

    def log_scores(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of held-out clips; NaN, of a metric that they do not have, is left out."""
        finite = {name: value for name, value in values.items() if isfinite(value)}
        for logger in self.loggers:
            logger.log_metrics(step, {f"heldout/{name}": v for name, v in finite.items()})
        text = "  ".join(f"{name} {value:.3f}" for name, value in finite.items())
        self.console.print(f"step {step}/{self.last_step}  held-out clips: {text}")

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image [H, W, 3], RGB."""
        for logger in self.loggers:
            logger.log_image(step, name, image)


class MetricWindow:
    """Sums over the steps since it was made: losses, time, and time spent waiting for batches."""

    def __init__(self) -> None:
        self.steps, self.waited = 0, 0.0
        self.loss_sum: Tensor | None = None
        """On the losses' device, float64."""
        self.started = perf_counter()

    def add(self, loss: Tensor, waited: float) -> None:
        """Add a step with its loss, a scalar, and the seconds that it waited for its batch."""
        self.steps += 1
        self.waited += waited
        self.loss_sum = loss.double() if self.loss_sum is None else self.loss_sum + loss

    @property
    def mean_loss(self) -> float:
        """Mean loss of the steps, read from their device; 0 before the first one."""
        return 0.0 if self.loss_sum is None else self.loss_sum.item() / self.steps

    @property
    def steps_per_second(self) -> float:
        """Steps per second of wall time."""
        return self.steps / (perf_counter() - self.started)

    @property
    def wait_fraction(self) -> float:
        """Fraction 0..1 of the wall time that was spent waiting for batches."""
        return self.waited / (perf_counter() - self.started)


def compute_rates(flops: float, device_name: str, world: int) -> dict[str, float]:
    """Return the compute rate of all `world` devices, and how much of their peak it is.

    teraflops: 10^12 floating-point operations per second, all devices together
    mfu:       model FLOPs utilisation, 0..1; only for devices in `PEAK_FLOPS`

    flops: floating-point operations per second, all devices together
    """
    rates = {"teraflops": flops / 1e12}
    if peak := peak_flops(device_name):
        rates["mfu"] = flops / peak / world
    return rates


def peak_flops(device_name: str) -> float | None:
    """Return a device's peak bfloat16 operations per second, or None for an unknown device."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def make_metric_logger(name: str, settings: TrainSettings, first_step: int) -> MetricLogger:
    """Make the logger that `run.watch` names.

    Raises SettingsError if the package it needs is not installed.
    """
    if name == "tensorboard":
        return TensorBoardLogger(settings.run, first_step)
    try:
        module = import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"'run.watch' names {name}, which is not installed: pip install {name}"
        ) from error
    return WandbLogger(module, settings)


class TensorBoardLogger:
    """Log to OUT/tensorboard. A resumed run replaces what was logged after its checkpoint."""

    def __init__(self, run: RunSettings, first_step: int) -> None:
        self.writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=first_step + 1)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image [H, W, 3], RGB."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class WandbLogger:
    """Log to Weights & Biases, or to trackio, which has the same functions.

    A run is identified by the name of its folder.
    """

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

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars."""
        self.module.log(dict(values), step=step)

    def log_image(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image [H, W, 3], RGB."""
        self.module.log({name: self.module.Image(image)}, step=step)

    def close(self) -> None:
        """End the run."""
        self.module.finish()
