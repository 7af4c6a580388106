"""Whole training runs on the device: host waits per step, resuming, several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.gpu.line import Line
from benchmarks.gpu.made_build import write_build
from trainer.config import TrainSettings
from trainer.train import train


def lines(device: str, small: bool) -> Iterator[Line]:
    """Train on made clips."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # So many that no run below reaches the end of an epoch, where a run reads its loss.
        clips = 16 if small else 96
        write_build(root / "build", clips, frames=12, height=96, width=128, grid=8)
        steps = 2 if small else 8
        first, second = (
            _train(root, name, device, 2 * steps, period=2 * steps) for name in ("first", "second")
        )
        spread = _largest_difference(first, second)
        yield Line("two equal runs: largest difference of weights", spread)
        _train(root, "resumed", device, steps, period=2 * steps)
        resumed = _train(root, "resumed", device, 2 * steps, period=2 * steps)
        # atomic additions on a GPU round in another order in each run
        difference = _largest_difference(first, resumed)
        yield Line("a run that was resumed: largest difference", difference, at_most=3 * spread)
        if device == "cuda":
            few, many = (_host_waits(root, f"waits {n}", n) for n in (4, 20))
            yield Line("times a step waits for the device", (many - few) / 16, at_most=0)
        if torch.cuda.device_count() > 1:
            yield _two_gpus(root, first)
        else:
            yield Line("two GPUs by NCCL", "not measured: there are fewer than two")


def _train(root: Path, name: str, device: str, steps: int, *, period: int) -> dict[str, Tensor]:
    """Train to a number of steps, resuming what there is; return the exported weights."""
    settings = TrainSettings.model_validate(
        {
            "data": {"out": str(root / "build"), "size": 64, "step": 2},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "weights": "random",
                "options": {"depth": 3, "patch_size": 8},
                "head": (32, 16),
            },
            "references": {"count": 3},
            "optim": {"lr": 1e-3, "period": period},
            "run": {
                "out": str(root / name),
                "steps": steps,
                "batch_size": 4,
                "workers": 0,
                "device": device,
                "log_every": 1000,
                "checkpoint_every": 1000,
                "pictures": 0,
                "resume": True,
            },
        }
    )
    return load_file(train(settings))


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two sets of weights."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


def _host_waits(root: Path, name: str, steps: int) -> int:
    """Count the times that the host waits for the device in a run of this many steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _train(root, name, "cuda", steps, period=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def _two_gpus(root: Path, alone: dict[str, Tensor]) -> Line:
    """Train the same steps on two GPUs by NCCL, from a copy of the settings."""
    (root / "two").mkdir()
    settings = (root / "first" / "settings.json").read_text()
    path = root / "two.yaml"  # JSON is YAML
    path.write_text(settings.replace(str(root / "first"), str(root / "two")))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *command, "-m", "trainer", str(path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (weights,) = sorted((root / "two" / "weights").glob("*.safetensors"))[-1:]
    # sums of two halves round differently, and Adam's first steps divide small gradients
    difference = _largest_difference(alone, load_file(weights))
    return Line("two GPUs by NCCL: largest difference from one", difference, at_most=1e-2)
