"""What a step of multi-view training costs beside one of the sorting loss: `--sizes 224`.

Operations are counted by torch. Times are of forward and backward passes on the CPU, with random
weights, medians over rounds; `--rounds 0` counts only.
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


def step_seconds(method: Method, size: int, rounds: int) -> float:
    """Return the median time of forward and backward passes of a step."""
    batch = make_batch(1, size, "cpu")
    pose = torch.eye(3, 4).repeat(1, 4, 1, 1)
    pose[0, :, 0, 3] = torch.arange(4.0)
    focal = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    batch["intrinsics"], batch["world_to_camera"] = focal.expand(1, 4, 3, 3), pose
    batch["posed"] = torch.ones(1, dtype=torch.bool)
    times = []
    for step in range(rounds):
        started = time.perf_counter()
        forward_backward(method.model, batch, method.draw(step))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Print a row per backbone, size and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multiview")
    parser.add_argument("--backbones", nargs="+", default=["dinov2_reg_small", "dinov2_reg_base"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224])
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    print(
        "| backbone | pixels | method | GFLOP per clip and step | seconds |\n|---|---|---|---|---|"
    )
    for backbone in a.backbones:
        for size in a.sizes:
            for title, name, changes in (
                ("tracks, 2 blocks trained", "tracks", {}),
                ("multiview", "multiview", {}),
                ("multiview, `pool: 2`", "multiview", {"pool": 2}),
            ):
                method = make_method(name, backbone, size, **changes)
                flops = method.flops_per_clip() / 1e9
                taken = f"{step_seconds(method, size, a.rounds):.2f}" if a.rounds else "-"
                print(f"| {backbone} | {size} | {title} | {flops:.0f} | {taken} |", flush=True)


if __name__ == "__main__":
    main()
