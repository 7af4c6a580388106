"""Score models, the static baseline and chance on held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import patch_features
from trainer.evaluate.heldout.clips import HeldOutSet
from trainer.evaluate.heldout.measures import (
    FramePair,
    Measures,
    drift,
    effective_rank,
    mean_cosine,
    measure_chance,
    measure_model,
    measure_static,
    moving_points,
)

REFERENCES = 320
"""Size of the reference bank: patches of other clips that similarities are ranked over."""
STATIC, CHANCE = "never moves", "chance"
"""Names of the two baselines in results."""
_FRAMES_AT_ONCE = 32  # encoded in one forward pass

_MeasurePair = Callable[[int, int, Tensor, Tensor], Measures]
"""Clip index, frame index, positions of the queries and of the targets [n, 2] → measures."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one model or baseline; baselines have no features.

    effective_rank, mean_cosine: of the patches of all anchor frames
    drift:         from the base model, over the patches of all frames
    kept_features: clip index → features [T, h, w, D], for the clips that are drawn
    """

    pairs: list[FramePair]
    effective_rank: float = float("nan")
    mean_cosine: float = float("nan")
    drift: float = float("nan")
    kept_features: dict[int, Tensor] = field(default_factory=dict)


def score(
    held_out: HeldOutSet, models: Sequence[EvaluatedModel], grid: int, keep: Sequence[int] = ()
) -> dict[str, Scores]:
    """Score each model, by its name; then the static baseline, and chance.

    grid: patches along a side of the image
    keep: clips whose features are kept

    Features of all clips are held for two models at a time: with what is computed from them about
    15 MB per clip of 4 frames for a ViT-B.
    """
    scores: dict[str, Scores] = {}
    base: Tensor | None = None
    for model in models:
        features = _unit_features(held_out, model, grid)
        base = features if base is None else base
        anchor_patches = features[:, 0].flatten(0, 2)
        scores[model.name] = Scores(
            pairs=_frame_pairs(held_out, partial(_measure_model, features)),
            effective_rank=effective_rank(anchor_patches),
            mean_cosine=mean_cosine(anchor_patches),
            drift=drift(features, base),
            kept_features={i: features[i] for i in keep},
        )
    references = len(_reference_indices(len(held_out.clips), grid * grid, 0)[0])
    scores[STATIC] = Scores(_frame_pairs(held_out, partial(_measure_static, grid)))
    scores[CHANCE] = Scores(_frame_pairs(held_out, partial(_measure_chance, grid, references)))
    return scores


def score_features(held_out: HeldOutSet, features: Tensor) -> Scores:
    """Score unit features [clips, T, h, w, D] of all frames; drift is not measured."""
    anchor_patches = features[:, 0].flatten(0, 2)
    return Scores(
        pairs=_frame_pairs(held_out, partial(_measure_model, features)),
        effective_rank=effective_rank(anchor_patches),
        mean_cosine=mean_cosine(anchor_patches),
    )


def _unit_features(held_out: HeldOutSet, model: EvaluatedModel, grid: int) -> Tensor:
    """Compute unit features of all frames after the final norm: [clips, T, h, w, D], on the CPU."""
    encode = patch_features(model, final_norm=True)
    frames = torch.cat([clip.images[grid * model.patch] for clip in held_out.clips])
    features = torch.cat(
        [normalize(encode(images), dim=-1).cpu() for images in frames.split(_FRAMES_AT_ONCE)]
    )
    return features.unflatten(0, (len(held_out.clips), -1))


def _measure_model(features: Tensor, i: int, t: int, queries: Tensor, targets: Tensor) -> Measures:
    return measure_model(
        features[i, 0], features[i, t], queries, targets, reference_features(features, i)
    )


def _measure_static(grid: int, i: int, t: int, queries: Tensor, targets: Tensor) -> Measures:
    return measure_static(queries, targets, grid, grid)


def _measure_chance(
    grid: int, references: int, i: int, t: int, queries: Tensor, targets: Tensor
) -> Measures:
    return measure_chance(targets, grid, grid, references)


def _frame_pairs(held_out: HeldOutSet, measure: _MeasurePair) -> list[FramePair]:
    """Measure every pair of an anchor and a later frame that have a point in common."""
    pairs = []
    for i, clip in enumerate(held_out.clips):
        for t in range(1, len(clip.frame_numbers)):
            queries, targets = clip.points(t)
            if not len(queries):
                continue
            pairs.append(
                FramePair(
                    clip=i,
                    gap=t,
                    angle=float(clip.angles[t]),
                    moving=moving_points(queries, targets),
                    measures=measure(i, t, queries, targets),
                )
            )
    return pairs


def reference_features(features: Tensor, clip: int) -> Tensor:
    """Return the reference bank of a clip: patches of other clips' anchor frames.

    The same patches for every model.

    features: [clips, T, h, w, D] → [R, D], R up to REFERENCES; fewer if the other clips have fewer
    patches, none for a clip alone
    """
    anchors = features[:, 0].flatten(1, 2)
    return anchors[_reference_indices(len(anchors), anchors.shape[1], clip)]


def _reference_indices(
    clips: int, patches: int, clip: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the clip and patch indices of the reference bank of `clip`, without replacement."""
    candidates = (clips - 1) * patches
    if not candidates:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    random = np.random.default_rng(clip)
    chosen = random.choice(candidates, min(REFERENCES, candidates), replace=False)
    other = chosen // patches
    return other + (other >= clip), chosen % patches  # leave the clip itself out
