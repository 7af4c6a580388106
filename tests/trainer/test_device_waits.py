"""On CUDA the host queues steps, and waits for the device only to report and to save."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.device_trace import DeviceTrace, fake_cuda, move_run
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.train import TrainingRun

Make = Callable[..., TrainSettings]


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


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["default", "everything"])
def test_the_host_waits_only_where_it_reports(settings: Make, changes: dict[str, Any]) -> None:
    run_settings = {"steps": 5, "log_every": 3} | changes.get("run", {})
    s = settings(**(changes | {"run": run_settings}))
    run = TrainingRun(s, Rank(0, 1, torch.device("cpu")))
    with fake_cuda() as trace:
        move_run(run)
        run.save = lambda monitor: None  # type: ignore[method-assign]
        monitor: Any = Monitor(trace)
        run.run_to_end(monitor, threading.Event())
    (_, first), (_, second), (_, third), (_, logged), (_, fourth), (_, fifth), _ = monitor.waits
    # Steps 1, 2 and 4 wait for nothing; steps 3 and 5 read losses and norms once, then the metrics.
    assert (first, second, third) == (0, 0, 1), trace.waits[:3]
    assert fourth == logged, trace.waits[logged:fourth]
    assert fifth == fourth + 1
