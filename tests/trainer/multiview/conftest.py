"""A build of small scenes before known cameras, and settings that train on it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.clip import Camera
from shards.stored_clip import StoredClip
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import static_scene, stored_scene
from trainer.config import TrainSettings

Make = Callable[..., TrainSettings]


def scene(number: int, split: str = "train", *, posed: bool = True) -> StoredClip:
    """Make a clip of 9 frames and 25 exact tracks, over 50 degrees."""
    made = static_scene(number, frames=9, anchors=(0, 4), grid=5, turn=50.0, noise=0.0)
    cameras = made.info.cameras if posed else None
    info = replace(made.info, split=split, cameras=cameras)
    return stored_scene(replace(made, info=info), f"made-{number}")


def in_one_place(clip: StoredClip) -> StoredClip:
    """Move all cameras to the first one's place."""
    cameras: tuple[Camera | None, ...] = clip.info.cameras or ()
    return replace(clip, info=replace(clip.info, cameras=(cameras[0],) * len(cameras)))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a build: five clips with cameras and one without."""
    out = tmp_path_factory.mktemp("scenes") / "out"
    publish_clips(out, [scene(number, posed=number > 0) for number in range(6)])
    return out


@pytest.fixture
def multiview(scenes: Path, tmp_path: Path) -> Make:
    """Make settings for a quick run, with parts replaced: `multiview(run={"steps": 3})`."""

    def make(**changes: Any) -> TrainSettings:
        values: dict[str, Any] = {
            "data": {"out": str(scenes), "size": 32, "frames": 3, "step": 3},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "weights": "random",
                "options": {"depth": 2, "patch_size": 8, "embed_dim": 48, "num_heads": 3},
                "trainable_blocks": 2,
                "lora": {"rank": 2, "dropout": 0.1, "layers": ("qkv",)},
            },
            "multiview": {"ray_width": 16, "pairs": 16},
            "optim": {"lr": 1e-3},
            "run": {
                "out": str(tmp_path / "run"),
                "steps": 4,
                "batch_size": 4,
                "workers": 0,
                "device": "cpu",
                "log_every": 1,
                "pictures": 0,
                "watch": [],
            },
        }
        merged = {
            name: values.get(name, {}) | changes.get(name, {})
            for name in values.keys() | changes.keys()
        }
        return TrainSettings.model_validate({"method": "multiview", **merged})

    return make
