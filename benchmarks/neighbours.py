"""What a step of each neighbouring method costs beside one of the sorting loss: `--size 224`.

One clip of four frames, 256 points, two blocks trained unless the method trains all, random
weights. Operations of the transformers are counted by torch. Times are the process's own CPU time
of forward and backward passes, medians over rounds, in which methods take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.multiview import CPU, POINTS
from benchmarks.step import make_batch
from trainer.config import TrainSettings
from trainer.methods.tracks import TrackMethod
from trainer.train import forward_backward

NECO = {
    "objective": "teacher_student",
    "sorter": "bitonic",
    "student_steepness": 100,
    "teacher_steepness": 100,
}
WHOLE = {"trainable_blocks": 12, "train_norm": True, "train_embeddings": True}
METHODS: dict[str, dict[str, Any]] = {
    "sorting, crops of the student": {},
    "NeCo: two frames, queue, all trained": {
        "loss": NECO,
        "references": {"kind": "queue", "count": 1},
        "data": {"frames": 2, "step": 0},
        "model": WHOLE,
    },
    "TimeTuning, forwarder": {"loss": {"sorting": 0, "timetuning": {}}},
    "TimeTuning, stored tracks": {"loss": {"sorting": 0, "timetuning": {"carry": "tracks"}}},
    "lifted, 12 blocks trained": {
        "loss": {"sorting": 0, "lifted": {}},
        "model": {"trainable_blocks": 12},
    },
    "view_agreement": {"loss": {"sorting": 0, "view_agreement": {}}},
    "smooth_ap": {"loss": {"sorting": 0, "smooth_ap": {}}},
    "smooth_ap, `ideal: true`": {"loss": {"sorting": 0, "smooth_ap": {"ideal": True}}},
}
"""What is timed, and the settings in which it differs."""


def make_method(backbone: str, size: int, changes: dict[str, Any]) -> TrackMethod:
    """Make the method for one clip."""
    values: dict[str, dict[str, Any]] = {
        "data": {"out": ".", "size": size},
        "model": {"backbone": backbone, "weights": "random"},
        "references": {"count": 1},
        "run": {"out": ".", "steps": 1, "batch_size": 1},
    }
    merged = {name: values.get(name, {}) | changes.get(name, {}) for name in values | changes}
    torch.manual_seed(0)
    return TrackMethod(TrainSettings.model_validate(merged), None, CPU, POINTS)


def step_seconds(method: TrackMethod, size: int, step: int) -> float:
    """Return the CPU time of forward and backward passes of a step."""
    batch, frames = make_batch(1, size, "cpu"), method.settings.data.frames
    for name in ("frames", "positions", "visibility", "confidence", "inside"):
        batch[name] = batch[name][:, :frames]
    draws, started = method.draw(step), time.process_time()
    forward_backward(method.model, batch, draws)
    return time.process_time() - started


def main() -> None:
    """Print a row per method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbours")
    parser.add_argument("--backbone", default="dino_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    methods = {
        title: make_method(a.backbone, a.size, changes) for title, changes in METHODS.items()
    }
    times: dict[str, list[float]] = {title: [] for title in methods}
    for step in range(a.rounds):
        for title, method in methods.items():
            times[title].append(step_seconds(method, a.size, step))
    print("| method | GFLOP per clip and step | core seconds |\n|---|---|---|")
    for title, method in methods.items():
        seconds = f"{statistics.median(times[title]):.2f}" if a.rounds else "-"
        print(f"| {title} | {method.flops_per_clip() / 1e9:.0f} | {seconds} |")


if __name__ == "__main__":
    main()
