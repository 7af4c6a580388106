"""What a step of multi-view training costs beside one of the sorting loss: `--sizes 224`.

Operations are counted by torch. Times are the process's own CPU time of forward and backward
passes, with random weights. Methods take turns within a round: a ratio is the median over rounds of
a method's time divided by that of `tracks` in the same round, with the smallest and the largest.
`--rounds 0` counts only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.step import make_batch
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.methods.chosen import METHODS
from trainer.methods.method import Method
from trainer.train import forward_backward

CPU = Rank(0, 1, torch.device("cpu"))
POINTS = 256
METHODS_TIMED: dict[str, tuple[str, dict[str, Any]]] = {
    "`tracks`, 2 blocks trained": ("tracks", {}),
    "`multiview`": ("multiview", {}),
    "`multiview`, no rays": ("multiview", {"ray_width": 0}),
    "`multiview`, `pool: 2`": ("multiview", {"pool": 2}),
}
"""What is timed: the method and its settings."""


def make_method(method: str, backbone: str, size: int, **changes: Any) -> Method:
    """Make a method with pretrack's settings for one clip of four frames."""
    values: dict[str, Any] = {
        "method": method,
        "data": {"out": ".", "size": size},
        "model": {"backbone": backbone, "weights": "random"},
        "run": {"out": ".", "steps": 1, "batch_size": 1},
    }
    if method == "multiview":
        lora = {"rank": 32, "alpha": 32, "dropout": 0.1, "layers": ["qkv"]}
        values["model"] |= {"trainable_blocks": 12, "lora": lora}
        values["multiview"] = {"fewer_views": 0.0, **changes}
    else:
        values["references"] = {"count": 1}
    torch.manual_seed(0)
    return METHODS[method](TrainSettings.model_validate(values), None, CPU, POINTS)


def step_seconds(method: Method, size: int, step: int) -> float:
    """Return the CPU time of forward and backward passes of a step."""
    batch = make_batch(1, size, "cpu")
    pose = torch.eye(3, 4).repeat(1, 4, 1, 1)
    pose[0, :, 0, 3] = torch.arange(4.0)
    focal = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    batch["intrinsics"], batch["world_to_camera"] = focal.expand(1, 4, 3, 3), pose
    batch["posed"] = torch.ones(1, dtype=torch.bool)
    draws, started = method.draw(step), time.process_time()
    forward_backward(method.model, batch, draws)
    return time.process_time() - started


def print_rows(backbone: str, size: int, rounds: int) -> None:
    """Print the rows of one backbone and size."""
    methods = {
        title: make_method(name, backbone, size, **changes)
        for title, (name, changes) in METHODS_TIMED.items()
    }
    times: dict[str, list[float]] = {title: [] for title in methods}
    # The first round warms up and does not count.
    for step in range(rounds + 1 if rounds else 0):
        for title, method in methods.items():
            seconds = step_seconds(method, size, step)
            if step:
                times[title].append(seconds)
    first, *_ = times.values()
    for title, method in methods.items():
        flops, taken, ratio = method.flops_per_clip() / 1e9, "-", "-"
        if rounds:
            ratios = [ours / theirs for ours, theirs in zip(times[title], first, strict=True)]
            taken = f"{statistics.median(times[title]):.2f}"
            ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {backbone} | {size} | {title} | {flops:.0f} | {taken} | {ratio} |", flush=True)


def main() -> None:
    """Print a row per backbone, size and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multiview")
    parser.add_argument("--backbones", nargs="+", default=["dinov2_reg_small", "dinov2_reg_base"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    heads = ["backbone", "pixels", "method", "GFLOP per clip and step", "core seconds", "ratio"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for backbone in a.backbones:
        for size in a.sizes:
            print_rows(backbone, size, a.rounds)


if __name__ == "__main__":
    main()
