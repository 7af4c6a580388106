"""Clips whose colours tell where in a scene a pixel lies, and models that see that or noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifests.snapshot import Snapshot
from shards import jpeg
from shards.clip import Camera
from shards.stored_clip import StoredClip
from tests.trainer.conftest import HEIGHT, WIDTH, panning_clip
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.clips import (
    HeldOutSet,
    evaluation_settings,
    read_held_out,
)
from trainer.model.backbone import Backbone


def held_out(snapshot: Snapshot, *sides: int, **changes: Any) -> HeldOutSet:
    """Read the clips of the split `eval` at some sizes: 4 frames, 2 stored frames apart."""
    settings = DataSettings.model_validate(
        evaluation_settings(snapshot, split="eval", where="", frames=4, step=2) | changes
    )
    return read_held_out(snapshot, settings, TrackFilterSettings(), sides)


def scenic_clip(key: str, seed: int, turn: float) -> StoredClip:
    """A panning clip, coloured by position; its camera turns `turn` degrees per frame."""
    clip = panning_clip(key, seed, split="eval")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([(x + 3 * t) * 1.8, (y + t) * 3, np.full_like(x, 128)], axis=-1).astype(np.uint8)
        for t in range(12)
    ]
    angles = np.radians(turn * np.arange(12))
    matrices = [
        ((np.cos(a), 0, np.sin(a), 0), (0, 1, 0, 0), (-np.sin(a), 0, np.cos(a), 0)) for a in angles
    ]
    cameras = tuple(
        Camera(80.0, 80.0, 47.5, 31.5, tuple(float(v) for row in m for v in row)) for m in matrices
    )
    return StoredClip(
        replace(clip.info, cameras=cameras),
        clip.tracks,
        tuple(jpeg.encode(frame, 95) for frame in frames),
    )


class Colours(nn.Module):
    """A stand-in for a transformer: features of 8-pixel patches tell red and green, or nothing.

    Each feature is a bump over the plane of red and green.
    """

    embed_dim = 400

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.knows, self.bumps = (
            knows,
            nn.Parameter(
                torch.cartesian_prod(torch.linspace(-2.2, 2.8, 20), torch.linspace(-2.2, 2.8, 20))
            ),
        )
        self.num_prefix_tokens, self.patch_embed = 0, nn.Conv2d(3, 3, 8)
        self.patch_embed.patch_size = (8, 8)  # type: ignore[assignment]

    def forward_intermediates(self, images: Tensor, **how: Any) -> list[Tensor]:
        means = nn.functional.avg_pool2d(images, 8)[:, :2].flatten(2).movedim(1, 2)
        if not self.knows:
            return [torch.randn(*means.shape[:2], 64, generator=torch.Generator().manual_seed(0))]
        return [(-torch.cdist(means, self.bumps).square() / (2 * 0.3**2)).exp()]


def colour_model(name: str, knows: bool) -> EvaluatedModel:
    """A model that sees colours, or gives noise."""
    settings = {
        field: DataSettings.model_fields[field].default for field in ("size", "mean", "std")
    }
    return EvaluatedModel(name, name, "", "", Backbone(Colours(knows), name), **settings)
