"""Surface normals in the anchor's axes, and features of clips whose views are encoded together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from shards.epipolar import read_poses
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.clips import HeldOutClip
from trainer.evaluate.sets.encoding import Encoding, encode_clip

TOGETHER = (
    Encoding("together"),
    Encoding("together, no cameras", cameras="none"),
    Encoding("together, blank images", blank=True),
)
"""How a clip's views are encoded together; the first is what a multi-view model is made for."""


def encodings_together(model: EvaluatedModel) -> tuple[Encoding, ...]:
    """Return the ways to encode a clip's views together: one if a model uses no cameras."""
    return TOGETHER if model.uses_cameras else (Encoding("together", cameras="none"),)


def in_anchor_axes(
    clips: Sequence[HeldOutClip], normals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn normals [C, T, g, g, 3] from each camera's axes into those of the clip's anchor frame.

    NaN for clips with a camera that is unknown or unusable.
    """
    turned = np.full_like(normals, np.nan)
    for i, clip in enumerate(clips):
        stored = clip.info.cameras
        chosen = [stored[number] if stored else None for number in clip.frame_numbers]
        poses = read_poses(chosen, len(chosen))
        if poses.usable.all():
            to_anchor = poses.rotations[0] @ poses.rotations.transpose(0, 2, 1)
            turned[i] = np.einsum("tij,tabj->tabi", to_anchor, normals[i])
    return turned


def features_together(
    clips: Sequence[HeldOutClip], model: EvaluatedModel, encoding: Encoding, grid: int
) -> Tensor:
    """Compute unit features of all frames, each clip encoded as a set: [C, T, g, g, D]."""
    features = []
    for clip in clips:
        encoded = encode_clip(model, encoding, clip, grid * model.patch)
        features.append(torch.stack([encoded[0][0], *(view for _, view in encoded)]))
    return normalize(torch.stack(features), dim=-1)
