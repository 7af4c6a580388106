"""Metrics per clip, sequence and bin, by frame gap, viewpoint and more; differences of models."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.heldout.clips import HeldOutSet
from trainer.evaluate.heldout.measures import METRICS, FramePair, Metric, aggregate
from trainer.evaluate.heldout.scoring import Scores
from trainer.evaluate.intervals import Difference, corrected, difference, mean_interval

ANGLE_EDGES = (0, 15, 30, 60)
"""Degrees at which bins of viewpoint begin; a bin contains its lower edge only."""


VIEWING_EDGES = (0, 10, 20, 40, 70)
"""The same for a point's viewing angle. The last bin ends at 180."""
UNKNOWN, OBJECT, BACKGROUND = "unknown", "object", "background"


def bins(held_out: HeldOutSet) -> dict[str, list[str]]:
    """Label the bins by kind.

    Pairs of frames: `gap`, `angle` of the cameras (none without poses) and `source`. Points:
    `viewing_angle`, where any is known, and `part`, an object or not, for clips with masks.
    """
    posed = any(np.isfinite(clip.angles[1:]).any() for clip in held_out.clips)
    seen = any(np.isfinite(clip.labels.angles[1:]).any() for clip in held_out.clips)
    masked = any(clip.labels.objects is not None for clip in held_out.clips)
    return {
        "gap": [str(gap) for gap in range(1, held_out.settings.frames)],
        "angle": [_angle_label(angle) for angle in ANGLE_EDGES] if posed else [],
        "source": sorted({clip.info.source for clip in held_out.clips}),
        "viewing_angle": [*map(_viewing_label, VIEWING_EDGES), UNKNOWN] if seen else [],
        "part": [OBJECT, BACKGROUND] if masked else [],
    }


def _part(held_out: HeldOutSet, pair: FramePair, kind: str, label: str) -> NDArray[np.bool_] | bool:
    """Tell which points of a pair are in a bin: bool [n], or True or False for all."""
    if kind == "gap":
        return str(pair.gap) == label
    if kind == "source":
        return held_out.clips[pair.clip].info.source == label
    if kind == "angle":
        return math.isfinite(pair.angle) and _angle_label(pair.angle) == label
    if kind == "part":
        return pair.on_object is not None and pair.on_object == (label == OBJECT)
    if pair.viewing_angles is None:
        return label == UNKNOWN
    if label == UNKNOWN:
        return np.isnan(pair.viewing_angles)
    low = int(label.partition("-")[0])
    number = np.searchsorted(VIEWING_EDGES, pair.viewing_angles, side="right") - 1
    return np.isfinite(pair.viewing_angles) & (number == VIEWING_EDGES.index(low))


def _viewing_label(low: int) -> str:
    """Return the label of the bin of viewing angles that begins at `low` degrees."""
    end = [*VIEWING_EDGES, 180][VIEWING_EDGES.index(low) + 1]
    return f"{low}-{end}"


def _angle_label(angle: float) -> str:
    """Return the label of the bin that an angle in degrees is in: `0-15` to `60+`."""
    number = bisect_right(ANGLE_EDGES, angle) - 1
    low = ANGLE_EDGES[number]
    return f"{low}-{ANGLE_EDGES[number + 1]}" if number + 1 < len(ANGLE_EDGES) else f"{low}+"


def by_clip(
    metric: Metric, scores: Scores, held_out: HeldOutSet, kind: str = "", label: str = ""
) -> NDArray[np.float64]:
    """Compute a metric of each clip, over all its pairs or one bin's: [clips], NaN for none."""
    pairs, parts = defaultdict(list), defaultdict(list)
    for pair in scores.pairs:
        part = _part(held_out, pair, kind, label) if kind else True
        if np.any(part):
            pairs[pair.clip].append(pair)
            parts[pair.clip].append(part)
    return np.array([aggregate(metric, pairs[i], parts[i]) for i in range(len(held_out.clips))])


def by_sequence(metric: Metric, scores: Scores, held_out: HeldOutSet) -> dict[str, float]:
    """Compute a metric of each sequence, over all points of its clips; NaN for none."""
    pairs: dict[str, list[FramePair]] = {sequence: [] for sequence in held_out.videos}
    for pair in scores.pairs:
        pairs[held_out.videos[pair.clip]].append(pair)
    return {sequence: aggregate(metric, own) for sequence, own in pairs.items()}


def differences(base: Scores, model: Scores, held_out: HeldOutSet) -> dict[str, Difference]:
    """Compare a model with the base: metric → difference over clips, tested over videos.

    The listed metrics are shown together and corrected for each other; the others stand alone.
    """
    compared = {metric.name: _difference(metric, base, model, held_out) for metric in METRICS}
    listed = {metric.name: compared[metric.name] for metric in METRICS if metric.listed}
    return compared | corrected(listed, {metric.name: metric.better for metric in METRICS})


def differences_by_viewing_angle(
    metric: Metric, base: Scores, model: Scores, held_out: HeldOutSet
) -> dict[str, Difference]:
    """Compare a model with the base in each bin of viewing angles, corrected for their number."""
    labels = bins(held_out)["viewing_angle"]
    compared = {
        label: _difference(metric, base, model, held_out, "viewing_angle", label)
        for label in labels
    }
    return corrected(compared, dict.fromkeys(labels, metric.better))


def interval_at(
    metric: Metric, scores: Scores, held_out: HeldOutSet, label: str
) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric in a bin of viewing angles; None for too few videos."""
    return mean_interval(by_clip(metric, scores, held_out, "viewing_angle", label), held_out.videos)


def _difference(
    metric: Metric, base: Scores, model: Scores, held_out: HeldOutSet, *part: str
) -> Difference:
    return difference(
        by_clip(metric, base, held_out, *part),
        by_clip(metric, model, held_out, *part),
        metric.better,
        held_out.videos,
    )
