"""Whole training runs on the device: every method against the CPU, resuming, speed, two GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from benchmarks.gpu.line import Line, attempt
from benchmarks.gpu.made_build import write_build
from benchmarks.gpu.utilisation import utilisation
from trainer.config import TrainSettings
from trainer.export import weights_path
from trainer.train import train

LOSSES = {
    "loss": {
        "info_nce": {},
        "smooth_ap": {},
        "clusters": {},
        "track_mean": {},
        "self_supervision": {},
        "keep_base": {},
        "lifted": {},
        "timetuning": {},
        "view_agreement": {},
    },
    "optim": {"clip_norm": 1.0},
    "run": {"accumulate": 2},
    "data": {"resize": "device", "colour": {"jitter": 1.0, "student_only": True}},
}
PUBLISHED = {
    "loss": {"objective": "published", "sorter": "bitonic", "detach_teacher": False},
    "references": {"kind": "queue"},
}
MULTIVIEW = {
    "method": "multiview",
    "data": {"frames": 4},
    "multiview": {"ray_width": 0, "heads": 3, "pool": 2},
    "references": None,
    "model": {"head": None},
}
DEFAULTS: dict[str, Any] = {
    "data": {"size": 224, "step": None},
    "model": {"backbone": "dinov2_reg_small", "options": None, "head": None},
    "references": None,
    "run": {"batch_size": 32},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "every loss": LOSSES,
    "published loss": PUBLISHED,
    "multi-view": MULTIVIEW,
}


def lines(device: str, small: bool) -> Iterator[Line]:
    """Train on made clips."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # So many that no run below reaches the end of an epoch, where a run reads its loss.
        clips = 16 if small else 96
        write_build(root / "build", clips, frames=12, height=96, width=128, grid=8)
        yield from attempt("resuming", partial(_resuming, root, device, 2 if small else 8))
        for name, changes in list(VARIANTS.items())[-1 if small else 0 :]:
            against_cpu = partial(_against_cpu, root, name, device, changes)
            yield from attempt(f"{name}, against the CPU", against_cpu)
        for name, changes in VARIANTS.items() if device == "cuda" else ():
            yield from attempt(f"{name}, waits", partial(_waits, root, name, changes))
        yield from attempt("speed", partial(_speed, root, device, small))
        if device == "cuda" and torch.cuda.device_count() > 1:
            yield from attempt("two GPUs by NCCL", partial(_two_gpus, root))
        else:
            yield Line("two GPUs by NCCL", "not measured: there are fewer than two")


def _resuming(root: Path, device: str, steps: int) -> Iterator[Line]:
    """Compare a run that stopped half-way and was resumed with one that did not stop."""
    first, second = (
        _train(settings(root, name, device, 2 * steps, period=2 * steps))
        for name in ("first", "second")
    )
    spread = _largest_difference(first, second)
    yield Line("two equal runs: largest difference of weights", spread)
    _train(settings(root, "resumed", device, steps, period=2 * steps))
    resumed = _train(settings(root, "resumed", device, 2 * steps, period=2 * steps))
    # Atomic additions on a GPU round in another order in each run.
    limit = 0.0 if device == "cpu" else max(3 * spread, 1e-4)
    difference = _largest_difference(first, resumed)
    yield Line("a run that was resumed: largest difference", difference, at_most=limit)


def _against_cpu(root: Path, name: str, device: str, changes: dict[str, Any]) -> Iterator[Line]:
    """Compare what two steps in float32 change on the device with what they change on a CPU."""
    updates = []
    for where in (device, "cpu"):
        out = f"{name} on {where}"
        run = changes.get("run", {}) | {"precision": "float32"}
        after = _train(settings(root, out, where, 2, period=2, changes=changes | {"run": run}))
        before = _weights(weights_path(root / out, 0))
        updates.append(torch.cat([(after[key] - before[key]).flatten() for key in after]))
    # Adam's first steps are nearly signs of gradients, and small gradients change theirs.
    cosine = torch.cosine_similarity(updates[0], updates[1], dim=0).item()
    yield Line(f"{name}, against the CPU: change of weights", cosine, "cosine", at_least=0.95)


def _waits(root: Path, name: str, changes: dict[str, Any]) -> Iterator[Line]:
    few, many = (_host_waits(root, f"{name}, waits {n}", n, changes) for n in (4, 20))
    # SmoothAP needs the number of near pairs of points, in each of two parts.
    limit = 2 if "smooth_ap" in changes.get("loss", {}) else 0
    yield Line(f"{name}: times a step waits for the device", (many - few) / 16, at_most=limit)


def _speed(root: Path, device: str, small: bool) -> Iterator[Line]:
    """Train with the default settings, workers included; measure the second half of the run."""
    side, clips, steps = (64, 8, 4) if small else (256, 128, 300)
    write_build(root / "large", clips, frames=24, height=side, width=4 * side // 3, grid=16)
    changes: dict[str, Any] = {} if small else DEFAULTS
    data = changes.get("data", {}) | {"out": str(root / "large")}
    workers = 0 if small else min(8, os.cpu_count() or 1)
    run = changes.get("run", {}) | {"workers": workers, "log_every": steps // 2}
    changes = changes | {"data": data, "run": run}
    started = time.time()
    with utilisation(device) as samples:
        _train(settings(root, "speed", device, steps, period=steps, changes=changes))
    ended = time.time()
    events = EventAccumulator(str(root / "speed" / "tensorboard")).Reload()
    clips_per_second, waiting = (
        events.Scalars(name)[-1].value for name in ("clips_per_second", "loader_wait")
    )
    yield Line("default settings: speed", clips_per_second, "clips/s")
    yield Line("default settings: waiting for clips", 100 * waiting, "%")
    if device == "cuda":
        memory = events.Scalars("gpu_memory_gb")[-1].value
        yield Line("default settings: peak memory", memory, "GB")
    if (busy := samples.between((started + ended) / 2, ended - 2)) is not None:
        yield Line("default settings: GPU busy in the second half", busy, "%")


def _train(run: TrainSettings) -> dict[str, Tensor]:
    """Train to the last step, resuming what there is; return the exported weights."""
    return _weights(train(run))


def settings(
    root: Path,
    name: str,
    device: str,
    steps: int,
    *,
    period: int,
    changes: Mapping[str, Any] | None = None,
) -> TrainSettings:
    """Return the settings of a run on small clips.

    changes: part by part; None leaves a part or a field out
    """
    values: dict[str, Any] = {
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
    for part, change in (changes or {}).items():
        values[part] = values.get(part, {}) | change if isinstance(change, dict) else change
        if isinstance(change, dict):
            values[part] = {k: v for k, v in values[part].items() if v is not None}
    values = {part: value for part, value in values.items() if value is not None}
    return TrainSettings.model_validate(values)


def _weights(exported: Path) -> dict[str, Tensor]:
    """Load exported weights, those of adapters too."""
    adapters = exported.with_suffix(".multiview.safetensors")
    return load_file(exported) | (load_file(adapters) if adapters.exists() else {})


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two sets of weights."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


def _host_waits(root: Path, name: str, steps: int, changes: Mapping[str, Any]) -> int:
    """Count the times that the host waits for the device in a run of this many steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _train(settings(root, name, "cuda", steps, period=steps, changes=changes))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def _two_gpus(root: Path) -> Iterator[Line]:
    """Train the same steps on one GPU and, by NCCL, on two, from a copy of the settings."""
    alone = _train(settings(root, "one", "cuda", 8, period=8))
    (root / "two").mkdir()
    written = (root / "one" / "settings.json").read_text()
    path = root / "two.yaml"  # JSON is YAML
    path.write_text(written.replace(str(root / "one"), str(root / "two")))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *command, "-m", "trainer", str(path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # Sums of two halves round differently, and Adam's first steps divide small gradients.
    difference = _largest_difference(alone, _weights(weights_path(root / "two", 8)))
    yield Line("two GPUs by NCCL: largest difference from one", difference, at_most=1e-2)
