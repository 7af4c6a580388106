"""Score weights on held-out clips: a number per metric and sequence."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.ablation.experiment import HeldOutSettings, MetricSettings
from manifests.snapshot import open_snapshot
from shards.errors import SettingsError
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.breakdown import by_sequence
from trainer.evaluate.heldout.clips import evaluation_settings, read_held_out
from trainer.evaluate.heldout.measures import Metric
from trainer.evaluate.heldout.scoring import score, score_features, unit_features
from trainer.evaluate.overlap import check_overlap

MODEL = "model"
"""The name of a scored model among its scores, beside those of the controls."""


class Scorer:
    """Held-out clips in memory, and the metrics to take of them."""

    def __init__(
        self, settings: HeldOutSettings, metrics: dict[str, MetricSettings], image_size: int
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
        self.image_size = image_size
        self.metrics = [
            Metric(
                name=name,
                title=name,
                measure=metric.measure,
                better="",
                moving=metric.moving,
                objects=metric.objects,
                angles=metric.angle,
            )
            for name, metric in metrics.items()
        ]

    def score(self, model: EvaluatedModel, controls: bool) -> dict[str, Any]:
        """Score a model and, if asked for, "never moves", chance and raw pixels.

        Returns name → metric → sequence → value, NaN for no points, where the model is MODEL; and
        the effective rank of its features as `effective_rank`. Raises SettingsError if it was
        trained on these clips, and for a metric that none of them has points for.
        """
        check_overlap({model.name: model.trained_on}, self.clips.footage, allow=False)
        grid = model.backbone.grid(self.image_size)
        features = unit_features(self.clips, model, grid)
        orders = any(metric.measure == "rank_correlation" for metric in self.metrics)
        columns = score(self.clips, [], grid) if controls else {}
        columns[MODEL] = score_features(self.clips, features, orders)
        values: dict[str, Any] = {
            name: {metric.name: by_sequence(metric, scores, self.clips) for metric in self.metrics}
            for name, scores in columns.items()
        }
        for metric, of_sequences in values[MODEL].items():
            if all(math.isnan(value) for value in of_sequences.values()):
                raise SettingsError(
                    f"the metric '{metric}' counts no point of {self.clips.snapshot.out}: it may "
                    "need masks (build with 'frames.masks: true'), cameras, or larger angles"
                )
        return values | {"effective_rank": columns[MODEL].effective_rank}
