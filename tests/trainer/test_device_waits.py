"""On CUDA the host queues steps, and waits for the device only to report and to save."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.device_trace import DeviceTrace, fake_cuda, move_run
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import static_scene, stored_scene
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.train import TrainingRun

Make = Callable[..., TrainSettings]

SHALLOW = {
    "backbone": "vit_tiny_patch16_224",
    "weights": "random",
    "options": {"depth": 2, "patch_size": 8},
    "trainable_blocks": 1,
}
"""One frozen block and one that is trained: more of them do the same."""


class Monitor:
    """Notes how often the host had waited when a run reported."""

    def __init__(self, trace: DeviceTrace) -> None:
        self.trace = trace
        self.waits: list[tuple[str, int]] = []

    def count_step(self, step: int, loss: Tensor, waited: float) -> None:
        self.waits.append((f"step {step}", len(self.trace.waits)))

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        self.waits.append((f"log {step}", len(self.trace.waits)))


EVERYTHING = {
    "loss": {
        "track_mean": {},
        "info_nce": {},
        "clusters": {},
        "keep_base": {},
        "lifted": {},
        "timetuning": {},
        "view_agreement": {},
    },
    "optim": {"clip_norm": 1.0},
    "run": {"accumulate": 2},
    "references": {"count": 2, "kind": "queue"},
    "data": {"resize": "device", "colour": {"jitter": 1.0, "student_only": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["default", "everything"])
def test_the_host_waits_only_where_it_reports(settings: Make, changes: dict[str, Any]) -> None:
    run_settings = {"steps": 5, "log_every": 3} | changes.get("run", {})
    s = settings(**(changes | {"run": run_settings, "model": SHALLOW}))
    waits = waits_of(s)
    (_, first), (_, second), (_, third), (_, logged), (_, fourth), (_, fifth), _ = waits
    # Steps 1, 2 and 4 wait for nothing; steps 3 and 5 read losses and norms once, then the metrics.
    assert (first, second, third) == (0, 0, 1), waits
    assert fourth == logged, waits
    assert fifth == fourth + 1


def waits_of(settings: TrainSettings) -> list[tuple[str, int]]:
    """Train on a CUDA device that is not there; return how often the host had waited, and when."""
    run = TrainingRun(settings, Rank(0, 1, torch.device("cpu")))
    with fake_cuda() as trace:
        move_run(run)
        run.save = lambda monitor: None  # type: ignore[method-assign]
        monitor: Any = Monitor(trace)
        run.run_to_end(monitor, threading.Event())
    return monitor.waits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a build of scored clips with cameras."""
    made = [
        static_scene(number, frames=9, anchors=(0, 4), grid=4, turn=50.0, noise=0.0)
        for number in range(4)
    ]
    out = tmp_path_factory.mktemp("scenes")
    publish_clips(out, [stored_scene(s, f"made-{n}") for n, s in enumerate(made)], scored=True)
    return out


PUBLISHED = {
    "loss": {
        "objective": "published",
        "sorter": "bitonic",
        "detach_teacher": False,
        "frames": "curriculum",
        "info_nce": {"other_clips": True},
        "timetuning": {"carry": "tracks"},
        "self_supervision": {},
    },
    "data": {"control": "same", "colour": {"jitter": 1.0}},
}
SCORED = {
    "data": {"cameras": True, "control": "shuffled"},
    "tracks": {"epipolar_weight_px": 1.0, "max_epipolar_px": 5.0},
}
MULTIVIEW = {
    "method": "multiview",
    "data": {"size": 32, "frames": 3, "step": 2},
    "multiview": {"ray_width": 15, "heads": 3, "pairs": 8, "pool": 2},
    "model": {"lora": {"rank": 2, "dropout": 0.1, "layers": ("qkv",)}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "per_step"),
    [
        (PUBLISHED, 0),
        (SCORED, 0),
        (MULTIVIEW, 0),
        # nvJPEG by torchvision is synchronous; it runs beside the step before.
        ({"data": {"resize": "device", "decode": "device"}}, 1),
        # It needs the number of near pairs of points.
        ({"loss": {"sorting": 0, "smooth_ap": {}}}, 1),
    ],
    ids=["published", "scored", "multiview", "decode", "smooth_ap"],
)
def test_a_step_of_any_method_or_loss_waits_only_where_it_must(
    settings: Make, scenes: Path, changes: dict[str, Any], per_step: int
) -> None:
    defaults = settings(run={"steps": 2, "log_every": 3}, model=SHALLOW)
    made = defaults.model_dump(exclude_unset=True)
    if changes.get("method") == "multiview":
        del made["references"], made["model"]["head"]
    for name, value in changes.items():
        made[name] = made.get(name, {}) | value if isinstance(value, dict) else value
    if changes is not PUBLISHED:
        made["data"]["out"] = str(scenes)
    (_, first), (_, second), *_ = waits_of(TrainSettings.model_validate(made))
    # After the last step, losses and norms are read.
    assert (first, second) == (per_step, 2 * per_step + 1)
