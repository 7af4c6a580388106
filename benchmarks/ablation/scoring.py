"""Score weights on held-out clips: a number per metric and sequence."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablation.experiment import HeldOutSettings, MetricSettings
from benchmarks.ablation.scene_points import PointLabels, point_labels
from manifests.snapshot import open_snapshot
from shards.errors import SettingsError
from trainer.config import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.clips import HeldOutSet, evaluation_settings, read_held_out
from trainer.evaluate.heldout.scoring import CHANCE, STATIC, Scores, score
from trainer.evaluate.overlap import check_overlap

PerSequence = dict[str, float | None]
"""A sequence's name → the value of a metric; None if none of its points counts."""


class Scorer:
    """Held-out clips in memory, the labels of their points, and the metrics to take.

    labels: folder that keeps the labels

    Raises SettingsError for a metric that these clips cannot give.
    """

    def __init__(
        self,
        settings: HeldOutSettings,
        metrics: dict[str, MetricSettings],
        labels: Path,
        image_size: int,
    ) -> None:
        snapshot = open_snapshot(settings.out)
        chosen = evaluation_settings(
            snapshot,
            split=settings.split,
            where=settings.where,
            frames=settings.frames,
            step=settings.step,
        )
        self.clips = read_held_out(
            snapshot,
            DataSettings.model_validate(chosen),
            TrackFilterSettings(),
            [image_size],
            settings.clips,
        )
        self.metrics, self.image_size = metrics, image_size
        self.labels = point_labels(self.clips, labels)
        for name, metric in metrics.items():
            if metric.objects and np.isnan(self.labels.objects).all():
                raise SettingsError(
                    f"the metric '{name}' counts points on objects, which only clips of the source "
                    f"'scenes' tell from others: {settings.out} has none"
                )
            if metric.angle and np.isnan(self.labels.angles).all():
                raise SettingsError(
                    f"the metric '{name}' is of an angle, and {settings.out} has no cameras"
                )

    def score(self, model: EvaluatedModel) -> dict[str, Any]:
        """Score a model, "never moves" and chance.

        Returns name → metric → `PerSequence`, where the model is `model`, and the effective rank of
        its features as `effective_rank`. Raises SettingsError if it was trained on these clips.
        """
        check_overlap({model.name: model.trained_on}, self.clips.footage, allow=False)
        grid = model.backbone.grid(self.image_size)
        scores = score(self.clips, [model], grid)
        values: dict[str, Any] = {
            name: {
                metric: per_sequence(settings, scores[column], self.clips, self.labels)
                for metric, settings in self.metrics.items()
            }
            for name, column in (("model", model.name), (STATIC, STATIC), (CHANCE, CHANCE))
        }
        return values | {"effective_rank": scores[model.name].effective_rank}


def per_sequence(
    metric: MetricSettings, scores: Scores, clips: HeldOutSet, labels: PointLabels
) -> PerSequence:
    """Return the mean of a metric over the points of each sequence that count."""
    values: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for pair in scores.pairs:
        mask = clips.clips[pair.clip].track_mask
        both = (mask[0] & mask[pair.gap]).numpy()
        chosen = counted(
            metric,
            pair.moving,
            labels.angles[pair.clip, pair.gap][both],
            labels.objects[pair.clip][both],
        )
        measured = pair.measures[metric.measure][chosen]
        values[clips.videos[pair.clip]].append(measured[np.isfinite(measured)])
    means: PerSequence = {}
    for sequence in dict.fromkeys(clips.videos):
        points = np.concatenate([np.zeros(0), *values[sequence]])
        means[sequence] = float(points.mean()) if len(points) else None
    return means


def counted(
    metric: MetricSettings,
    moving: NDArray[np.bool_],
    angles: NDArray[np.float64],
    objects: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell which of n points a metric counts, from what is known of them (`PointLabels`)."""
    chosen = np.ones(len(moving), bool)
    if metric.objects:
        chosen &= objects == 1
    if metric.angle:
        chosen &= (angles >= metric.angle[0]) & (angles < metric.angle[1])
    if metric.moving:
        chosen &= moving
    return chosen
