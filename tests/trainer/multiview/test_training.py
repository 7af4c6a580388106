"""A multi-view run trains adapters alone, resumes exactly, and exports a model that works alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.device_trace import fake_cuda, move_run
from shards.errors import PretrackError
from tests.trainer.multiview.conftest import Make
from tests.trainer.test_device_waits import Monitor
from tests.trainer.test_train import assert_same, last_state
from trainer.data.batch import slice_batch
from trainer.distributed import Rank
from trainer.methods.multiview import MultiviewMethod
from trainer.model.backbone import normalised_images
from trainer.multiview.correspondences import sets_of_rank
from trainer.multiview.multiview_model import ray_map
from trainer.train import TrainingRun, train

CPU = Rank(0, 1, torch.device("cpu"))


def test_a_run_trains_adapters_rays_and_lora_alone(
    multiview: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    s = multiview(run={"steps": 6, "pictures": 1}, multiview={"fewer_views": 0.5})
    first = TrainingRun(s, CPU).model.state_dict()
    train(s)
    state = last_state(s)
    for name, value in first.items():
        part, _, inner = name.partition(".")
        kept = "lora_" not in inner and part == "backbone"
        assert torch.equal(state[part][inner], value) == kept, name
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert all(
        word in lines[0] for word in ("loss_location", "never_moves", "pairs", "posed", "clips/s")
    )


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(multiview: Make, tmp_path: Path) -> None:
    def run(name: str, steps: int) -> Any:
        return multiview(
            optim={"lr": 1e-3, "period": 4},
            multiview={"fewer_views": 0.5},
            run={"steps": steps, "out": tmp_path / name, "accumulate": 2, "pictures": 1},
        )

    train(run("unbroken", 4))
    train(run("broken", 2))
    train(run("broken", 4))
    a, b = (last_state(run(name, 4)) for name in ("unbroken", "broken"))
    for part in ("step", "backbone", "adapters", "optimizer"):
        assert_same(a[part], b[part], part)
    other = run("broken", 5).model_copy(update={"method": "tracks", "multiview": None})
    with pytest.raises(PretrackError, match="started with 'method: multiview': take another"):
        train(other)


@pytest.mark.slow
def test_the_host_waits_only_where_it_reports(multiview: Make) -> None:
    s = multiview(run={"steps": 5, "log_every": 3, "accumulate": 2}, optim={"clip_norm": 1.0})
    run = TrainingRun(s, CPU)
    with fake_cuda() as trace:
        move_run(run)
        run.save = lambda monitor: None  # type: ignore[method-assign]
        monitor: Any = Monitor(trace)
        run.run_to_end(monitor, threading.Event())
    (_, first), (_, second), (_, third), (_, logged), (_, fourth), (_, fifth), _ = monitor.waits
    # Steps 1, 2 and 4 wait for nothing; steps 3 and 5 read losses and norms once, then figures.
    assert (first, second, third) == (0, 0, 1), trace.waits[:3]
    assert fourth == logged, trace.waits[logged:fourth]
    assert fifth == fourth + 1


ALONE = """
import sys, torch
sys.modules.update(trainer=None, shards=None, manifests=None)  # importing them fails
from multiview_model import load
model = load(".")
given = torch.load("given.pt")
with torch.no_grad():
    found = [model(given["images"], given["intrinsics"], given["poses"]), model(given["images"])]
torch.save(found, "found.pt")
"""


def test_gradients_of_two_ranks_average_to_those_of_one(multiview: Make) -> None:
    s = multiview(model={"lora": {"rank": 2}}, multiview={"fewer_views": 0.0, "drop_poses": 0.5})
    run = TrainingRun(s, CPU)
    batch, _ = run.prepare(next(iter(run.loader)))
    assert isinstance(run.method, MultiviewMethod)
    (draws,) = run.method.draw(3)

    def gradient(sets: slice, rank: int, world: int) -> tuple[float, torch.Tensor]:
        run.model.zero_grad()
        loss, _, _ = run.model(slice_batch(batch, sets), sets_of_rank(draws, rank, world))
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in run.trained])

    # Ranks take the clips of a batch in turn.
    whole = gradient(slice(None), 0, 1)
    ranks = [gradient(slice(rank, None, 2), rank, 2) for rank in range(2)]
    assert sum(loss for loss, _ in ranks) / 2 == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close((ranks[0][1] + ranks[1][1]) / 2, whole[1], rtol=1e-4, atol=1e-7)
    for rank in range(2):
        method = TrainingRun(s, CPU).method
        method.rank = Rank(rank, 2, CPU.device)  # type: ignore[attr-defined]
        own = sets_of_rank(draws, rank, 2)
        for ours, expected in zip(method.draw(3)[0].tensors(), own.tensors(), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.slow
def test_the_export_works_alone(multiview: Make) -> None:
    """In a process that has the folder of the export, torch and timm."""
    s = multiview(multiview={"pool": 2}, optim={"lr": 0.05})
    folder = train(s).parent
    run = TrainingRun(s, CPU)
    assert isinstance(run.method, MultiviewMethod)
    model = run.method.model.eval()
    batch, _ = run.prepare(next(iter(run.loader)))
    images = normalised_images(batch["frames"], s.data.mean, s.data.std)
    posed = batch["posed"]
    assert 0 < posed.sum() < len(posed)
    given = {
        "images": images[posed],
        "intrinsics": batch["intrinsics"][posed],
        "poses": batch["world_to_camera"][posed],
    }
    torch.save(given, folder / "given.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ALONE], cwd=folder, env=environment, check=True)
    found = torch.load(folder / "found.pt")
    rays = ray_map(given["intrinsics"], given["poses"], (32, 32), "largest_distance")
    tokens = model.backbone.trunk(given["images"].flatten(0, 1))
    with torch.no_grad():
        for alone, map_of_rays in zip(found, (rays, torch.zeros_like(rays)), strict=True):
            expected = model.set_features(tokens, 3, map_of_rays)
            torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)
        assert (found[0] - found[1]).abs().max() > 1e-2
        assert (found[0] - model.base_features(tokens, 3)).abs().max() > 1e-2
