"""A rebuild and garbage collection do not disturb a training run that reads the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from manifests.settings import check_settings
from manifests.snapshot import list_snapshots
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.execution.garbage_collection import collect_garbage
from pipeline.monitoring.progress import Progress
from tests.helpers.panning import panning_frames, write_video

STEPS = 16
QUIET = Progress(quiet=True)
TRAINING = {
    "recipe": "pretrack",
    "data": {"size": 64, "step": 2},
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "weights": "random",
        "options": {"depth": 3, "patch_size": 8},
        "head": [32, 16],
    },
    "references": {"count": 3},
    "run": {"steps": STEPS, "batch_size": 4, "workers": 1, "device": "cpu", "log_every": 1},
}


def trainer(config: Path, out: Path, run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", str(config), f"data.out={out}", f"run.out={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(run / "weights" / f"step_{STEPS:08d}.safetensors")
    return loaded


def settings(videos: Path, out: Path, grid: int) -> BuildSettings:
    values = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(videos)}],
        "frames": {"clip_frames": 12, "short_side": 96},
        "tracks": {"tracker": "lucas_kanade", "grid": grid, "anchors": [0]},
        "shards": {"clips_per_shard": 2},
        "split": {"eval_fraction": 0.0},
        "out": str(out),
    }
    return check_settings(BuildSettings, values, "test")


@pytest.mark.slow
def test_a_trainer_streams_through_a_rebuild_and_garbage_collection(tmp_path: Path) -> None:
    videos, out, config = tmp_path / "videos", tmp_path / "out", tmp_path / "train.json"
    for seed in range(5):
        write_video(videos / f"{seed}.mp4", panning_frames(seed, 12))
    config.write_text(json.dumps(TRAINING))
    ray.shutdown()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    for grid in (5, 6):
        build(settings(videos, out, grid), QUIET)
    with trainer(config, out, tmp_path / "undisturbed") as undisturbed:
        output, _ = undisturbed.communicate(timeout=240)
        assert undisturbed.returncode == 0, output

    with trainer(config, out, tmp_path / "run") as running:
        assert running.stdout is not None
        assert any(line.startswith("step 3/") for line in running.stdout), "it trains"
        os.killpg(running.pid, signal.SIGSTOP)  # in the middle, whatever this machine's speed
        build(settings(videos, out, 7), QUIET)
        collect_garbage(out)
        assert list_snapshots(out) == ["000002", "000003"], (
            "the training run reads the snapshot before the current one"
        )
        os.killpg(running.pid, signal.SIGCONT)
        output = running.stdout.read()
        assert running.wait(60) == 0, output
    ray.shutdown()
    before, after = weights(tmp_path / "undisturbed"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), (
        "and the weights are the same, bit for bit"
    )
