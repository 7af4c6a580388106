"""Metrics per clip and per bin of frame gap, viewpoint and source; differences between models."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.heldout.clips import HeldOutSet
from trainer.evaluate.heldout.measures import METRICS, FramePair, Metric, aggregate
from trainer.evaluate.heldout.scoring import Scores
from trainer.evaluate.intervals import Difference, corrected, difference

ANGLE_EDGES = (0, 15, 30, 60)
"""Degrees at which bins of viewpoint begin; a bin contains its lower edge only."""


def bins(held_out: HeldOutSet) -> dict[str, list[str]]:
    """Label the bins by kind: `gap`, `angle` (none without poses) and `source`."""
    posed = any(np.isfinite(clip.angles[1:]).any() for clip in held_out.clips)
    return {
        "gap": [str(gap) for gap in range(1, held_out.settings.frames)],
        "angle": [_angle_label(angle) for angle in ANGLE_EDGES] if posed else [],
        "source": sorted({clip.info.source for clip in held_out.clips}),
    }


def _bin_of(held_out: HeldOutSet, pair: FramePair, kind: str) -> str:
    """Return the label of the bin that a pair is in; "" if it is in none."""
    if kind == "gap":
        return str(pair.gap)
    if kind == "source":
        return held_out.clips[pair.clip].info.source
    return _angle_label(pair.angle) if math.isfinite(pair.angle) else ""


def _angle_label(angle: float) -> str:
    """Return the label of the bin that an angle in degrees is in: `0-15` to `60+`."""
    number = bisect_right(ANGLE_EDGES, angle) - 1
    low = ANGLE_EDGES[number]
    return f"{low}-{ANGLE_EDGES[number + 1]}" if number + 1 < len(ANGLE_EDGES) else f"{low}+"


def by_clip(
    metric: Metric, scores: Scores, held_out: HeldOutSet, kind: str = "", label: str = ""
) -> NDArray[np.float64]:
    """Compute a metric of each clip, over all its pairs or one bin's: [clips], NaN for none."""
    pairs = defaultdict(list)
    for pair in scores.pairs:
        if not kind or _bin_of(held_out, pair, kind) == label:
            pairs[pair.clip].append(pair)
    return np.array([aggregate(metric, pairs[i]) for i in range(len(held_out.clips))])


def differences(base: Scores, model: Scores, held_out: HeldOutSet) -> dict[str, Difference]:
    """Compare a model with the base: metric → difference over clips, tested over videos."""
    compared = {
        metric.name: difference(
            by_clip(metric, base, held_out),
            by_clip(metric, model, held_out),
            metric.better,
            held_out.videos,
        )
        for metric in METRICS
    }
    return corrected(compared, {metric.name: metric.better for metric in METRICS})
