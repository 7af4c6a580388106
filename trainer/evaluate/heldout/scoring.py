"""Score models, and the controls beside them, on held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import patch_features
from trainer.evaluate.heldout import epipolar_recall
from trainer.evaluate.heldout.clips import HeldOutSet
from trainer.evaluate.heldout.epipolar_recall import refined_match
from trainer.evaluate.heldout.gradient_histograms import gradient_histograms
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
RAW, STATIC, CHANCE = "raw pixels", "never moves", "chance"
"""Names of the controls in results: histograms of gradients, the answer "it has not moved", and
features without information."""
_FRAMES_AT_ONCE = 32  # encoded in one forward pass

_MeasurePair = Callable[[int, int, Tensor, Tensor], Measures]
"""Clip index, frame index, positions of the queries and of the targets [n, 2] → measures."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one model or control; the last two controls have no features.

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
    held_out: HeldOutSet,
    models: Sequence[EvaluatedModel],
    grid: int,
    keep: Sequence[int] = (),
    *,
    orders: bool = True,
) -> dict[str, Scores]:
    """Score each model, by its name; then the three controls.

    grid:   patches along a side of the image
    keep:   clips whose features are kept
    orders: as in `score_features`

    Features of all clips are held for two models at a time: with what is computed from them about
    15 MB per clip of 4 frames for a ViT-B.
    """
    scores: dict[str, Scores] = {}
    base: Tensor | None = None
    for model in models:
        features = unit_features(held_out, model, grid)
        base = features if base is None else base
        kept = {i: features[i] for i in keep}
        scores[model.name] = replace(
            score_features(held_out, features, orders),
            drift=drift(features, base),
            kept_features=kept,
        )
    scores[RAW] = score_features(held_out, raw_features(held_out, grid), orders)
    references = len(_reference_indices(len(held_out.clips), grid * grid, 0)[0])
    scores[STATIC] = Scores(_frame_pairs(held_out, partial(_measure_static, held_out, grid)))
    scores[CHANCE] = Scores(
        _frame_pairs(held_out, partial(_measure_chance, held_out, grid, references))
    )
    return scores


def score_features(held_out: HeldOutSet, features: Tensor, orders: bool = True) -> Scores:
    """Score unit features [clips, T, h, w, D] of all frames; drift is not measured.

    orders: compare orders of the reference bank, which takes most of the time; NaN without
    """
    anchor_patches = features[:, 0].flatten(0, 2)
    return Scores(
        pairs=_frame_pairs(held_out, partial(_measure_model, held_out, features, orders)),
        effective_rank=effective_rank(anchor_patches),
        mean_cosine=mean_cosine(anchor_patches),
    )


def raw_features(held_out: HeldOutSet, grid: int) -> Tensor:
    """Describe raw pixels, from the largest images that models see: [clips, T, h, w, 128]."""
    side = max(held_out.clips[0].images)
    return torch.stack([gradient_histograms(clip.images[side], grid) for clip in held_out.clips])


def unit_features(held_out: HeldOutSet, model: EvaluatedModel, grid: int) -> Tensor:
    """Compute unit features of all frames after the final norm: [clips, T, h, w, D], on the CPU."""
    encode = patch_features(model, final_norm=True)
    frames = torch.cat([clip.images[grid * model.patch] for clip in held_out.clips])
    features = torch.cat(
        [normalize(encode(images), dim=-1).cpu() for images in frames.split(_FRAMES_AT_ONCE)]
    )
    return features.unflatten(0, (len(held_out.clips), -1))


def _measure_model(
    held_out: HeldOutSet,
    features: Tensor,
    orders: bool,
    i: int,
    t: int,
    queries: Tensor,
    targets: Tensor,
) -> Measures:
    bank = reference_features(features, i) if orders else features[:0].flatten(0, -2)
    measures = measure_model(features[i, 0], features[i, t], queries, targets, bank)
    matches = refined_match(features[i, 0], features[i, t], queries)
    return measures | epipolar_recall.recall(matches, *_lines(held_out, i, t))


def _measure_static(
    held_out: HeldOutSet, grid: int, i: int, t: int, queries: Tensor, targets: Tensor
) -> Measures:
    measures = measure_static(queries, targets, grid, grid)
    return measures | epipolar_recall.recall(queries, *_lines(held_out, i, t))


def _measure_chance(
    held_out: HeldOutSet,
    grid: int,
    references: int,
    i: int,
    t: int,
    queries: Tensor,
    targets: Tensor,
) -> Measures:
    measures = measure_chance(targets, grid, grid, references)
    return measures | epipolar_recall.chance(*_lines(held_out, i, t), grid)


def _lines(held_out: HeldOutSet, i: int, t: int) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the epipolar lines [n, 3] of the points of a pair, and the size of stored frames."""
    clip = held_out.clips[i]
    return clip.labels.lines[t, clip.valid(t)], (clip.info.width, clip.info.height)


def _frame_pairs(held_out: HeldOutSet, measure: _MeasurePair) -> list[FramePair]:
    """Measure every pair of an anchor and a later frame that have a point in common."""
    pairs = []
    for i, clip in enumerate(held_out.clips):
        objects = clip.labels.objects
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
                    viewing_angles=clip.labels.angles[t, clip.valid(t)],
                    on_object=None if objects is None else objects[clip.valid(t)],
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
