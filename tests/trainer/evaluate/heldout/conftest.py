"""Builds and runs that the tests of the label-free evaluation share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.snapshot import Snapshot, open_snapshot
from manifests.tables import SHARDS, table_of, write_table
from shards.frame_maps import FrameMaps, encode_mask
from tests.helpers.scenic_clips import scenic_clip
from tests.helpers.static_scene import SIZE, static_scene, stored_scene
from tests.trainer.conftest import publish
from trainer.config import TrainSettings
from trainer.data.dataset import ClipDataset
from trainer.export import export_weights
from trainer.model.backbone import make_backbone
from trainer.training_footage import NOTHING, TrainingFootage


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory, build: Path) -> Path:
    """A training run's exports: weights before the first step, and changed ones."""
    out = tmp_path_factory.mktemp("run")
    model = {
        "backbone": "vit_tiny_patch16_224",
        "weights": "random",
        "options": {"depth": 2, "patch_size": 8},
        "head": (8,),
    }
    values = {
        "data": {"out": str(build), "size": 64},
        "model": model,
        "run": {"out": str(out), "steps": 2},
    }
    settings = TrainSettings.model_validate(values)
    torch.manual_seed(1)
    backbone = make_backbone(settings.model.backbone, "random", settings.model.options)
    snapshot = open_snapshot(build)
    trained_on = TrainingFootage.of(ClipDataset([snapshot], settings.data, seed=1).footage)
    for step, footage in ((0, NOTHING), (2, trained_on)):
        export_weights(backbone, settings, [snapshot], step, footage)
        with torch.no_grad():
            for weights in backbone.parameters():
                weights.add_(0.02 * torch.randn_like(weights))
    return out


@pytest.fixture(scope="session")
def scenic(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A build of six scenic clips whose tracks are marked as exact."""
    snapshot = publish(
        tmp_path_factory.mktemp("scenic"),
        [scenic_clip(f"scene-{i}", i, turn=5.0 * i) for i in range(6)],
    )
    row = dict.fromkeys(SHARDS.names) | {
        "shard": "made-000000",
        "tracks_settings": '{"tracker":"truth"}',
    }
    write_table(snapshot.folder / "shards.parquet", table_of([row], SHARDS))
    return snapshot


@pytest.fixture(scope="session")
def orbits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of seven static scenes before cameras on an arc of 105 degrees, with masks.

    8 frames, 15 degrees apart around a point 4 away from them; points lie 2.5 to 5.5 away. The
    right half of every anchor frame is an object.
    """
    out = tmp_path_factory.mktemp("orbits")
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[:, SIZE[0] // 2 :] = 1
    maps = FrameMaps(masks=(encode_mask(mask),) * 8)
    clips = []
    for i in range(7):
        scene = static_scene(i, frames=8, anchors=(0,), grid=8, turn=105, noise=0.1)
        clip = stored_scene(scene, f"orbit-{i}")
        info = replace(clip.info, split="eval")
        clips.append(replace(clip, info=info, maps=maps))
    publish(out, clips)
    return out
