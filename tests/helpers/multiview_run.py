"""Exports of a small multi-view model with random weights, as a training run leaves them."""

from __future__ import annotations

from pathlib import Path

import torch

from manifests.snapshot import open_snapshot
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.methods.multiview import MultiviewMethod
from trainer.training_footage import NOTHING


def export_multiview_run(out: Path, build: Path, size: int = 32, depth: int = 2) -> Path:
    """Export a model before the first step, and with adapters that change something.

    build: the output folder of a build; its clips are not read
    """
    settings = TrainSettings.model_validate(
        {
            "method": "multiview",
            "data": {"out": str(build), "size": size, "frames": 3},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "weights": "random",
                "options": {"depth": depth, "patch_size": 8, "embed_dim": 48, "num_heads": 3},
            },
            "multiview": {"ray_width": 16},
            "run": {"out": str(out), "steps": 2, "batch_size": 2},
        }
    )
    torch.manual_seed(1)
    method = MultiviewMethod(settings, None, Rank(0, 1, torch.device("cpu")), points=25)
    snapshots = [open_snapshot(build)]
    method.export(snapshots, 0, NOTHING)
    with torch.no_grad():
        for name, weight in method.model.adapters.named_parameters():
            if "zero" in name:
                weight.normal_(0, 0.3)
    method.export(snapshots, 2, NOTHING)
    return out
