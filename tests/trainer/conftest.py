"""A finished build of small synthetic clips, and settings that train on it in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from manifests.receipt import shard_path
from manifests.rows import ShardRow, TrackSummary, clip_row
from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, table_of
from shards import jpeg
from shards.clip import Tracks
from shards.geometry import grid_points
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip, write_clips
from trainer.config import TrainSettings

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)  # models here are tiny, and machines that test are busy

WIDTH, HEIGHT = 96, 64


def panning_clip(
    key: str,
    seed: int,
    frames: int = 12,
    split: str = "train",
    grid: int = 6,
    anchors: tuple[int, ...] = (0, 6),
) -> StoredClip:
    """Make a clip of a window that moves over a still image, with exact tracks.

    It moves 3 px right and 1 px down per frame.
    """
    rng = np.random.default_rng(seed)
    picture = cv2.resize(
        rng.integers(0, 256, (24, 32, 3), np.uint8), (192, 128), interpolation=cv2.INTER_CUBIC
    )
    pictures = [
        np.ascontiguousarray(picture[t : t + HEIGHT, 3 * t : 3 * t + WIDTH]) for t in range(frames)
    ]
    queries = grid_points(grid, WIDTH, HEIGHT)
    steps = np.array([[a - t for t in range(frames)] for a in anchors], np.float32)
    positions = queries + steps[..., None, None] * np.array([3, 1], np.float32)
    x, y = positions[..., 0], positions[..., 1]
    visible = ((x > -0.5) & (x < WIDTH - 0.5) & (y > -0.5) & (y < HEIGHT - 0.5)).astype(
        np.uint8
    ) * 255
    tracks = Tracks(np.array(anchors, np.int32), positions, visible, np.full_like(visible, 255))
    info = make_clip(key, seed, frames, split).info
    return StoredClip(info, tracks, tuple(jpeg.encode(p, 95) for p in pictures))


def publish(out: Path, clips: list[StoredClip], settings: dict[str, Any] | None = None) -> Snapshot:
    """Write clips as one shard and publish a snapshot of them, built with `settings`."""
    members, size, checksum = write_clips(shard_path(out, "made-000000"), clips)
    rows = [
        clip_row(
            "made-000000",
            clip.info,
            members[clip.info.key],
            TrackSummary(
                anchors=tuple(clip.tracks.anchors.tolist()),
                points=clip.tracks.positions.shape[2],
                visible_fraction=float(clip.tracks.visibility.mean()) / 255,
                motion=0.1,
            ),
        )
        for clip in clips
    ]
    shard = ShardRow(
        shard="made-000000",
        group="made",
        source="made",
        split="train",
        clips=len(clips),
        bytes=size,
        checksum=checksum,
        frames_fingerprint="",
        tracks_fingerprint="",
        frames_settings="{}",
        tracks_settings='{"tracker": "made"}',
        decode_seconds=0.0,
        track_seconds=0.0,
        write_seconds=0.0,
        tries=1,
    )
    tables = {
        "videos": table_of([], VIDEOS),
        "clips": table_of(rows, CLIPS),
        "shards": table_of([shard], SHARDS),
    }
    return publish_snapshot(out, tables | {"failures": table_of([], FAILURES)}, settings or {})


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a build: 10 training clips and 4 held-out ones.

    Each has 12 frames of 96x64 pixels and 36 points from anchor frames 0 and 6.
    """
    out = tmp_path_factory.mktemp("build")
    clips = [
        panning_clip(f"made-{i:02d}", i, split="train" if i < 10 else "eval") for i in range(14)
    ]
    publish(out, clips)
    return out


@pytest.fixture
def settings(build: Path, tmp_path: Path) -> Callable[..., TrainSettings]:
    """Make settings for a quick run, with parts replaced: `settings(run={"steps": 3})`."""

    def make(recipe: str = "pretrack", **changes: dict[str, Any]) -> TrainSettings:
        values: dict[str, dict[str, Any]] = {
            "data": {"out": str(build), "size": 64, "step": 2},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "weights": "random",
                "options": {"depth": 3, "patch_size": 8},
                "head": (32, 16),
            },
            "references": {"count": 3},
            "optim": {"lr": 1e-3},
            "run": {
                "out": str(tmp_path / "run"),
                "steps": 5,
                "batch_size": 4,
                "workers": 0,
                "device": "cpu",
                "log_every": 1,
                "pictures": 0,
            },
        }
        merged = {
            name: values.get(name, {}) | changes.get(name, {})
            for name in values.keys() | changes.keys()
        }
        return TrainSettings.model_validate({"recipe": recipe, **merged})

    return make
