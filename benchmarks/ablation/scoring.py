"""Score weights on held-out clips: a number per metric and sequence."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.ablation.experiment import HeldOutSettings, MetricSettings
from manifests.snapshot import open_snapshot
from shards.errors import SettingsError
from trainer.config import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.breakdown import by_sequence
from trainer.evaluate.heldout.clips import evaluation_settings, read_held_out
from trainer.evaluate.heldout.measures import Metric
from trainer.evaluate.heldout.scoring import score
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

    def score(self, model: EvaluatedModel) -> dict[str, Any]:
        """Score a model, "never moves", chance and raw pixels.

        Returns name → metric → sequence → value, NaN for no points, where the model is MODEL; and
        the effective rank of its features as `effective_rank`. Raises SettingsError if it was
        trained on these clips, and for a metric that none of them has points for.
        """
        check_overlap({model.name: model.trained_on}, self.clips.footage, allow=False)
        grid = model.backbone.grid(self.image_size)
        scores = score(self.clips, [model], grid)
        values: dict[str, Any] = {
            MODEL if name == model.name else name: {
                metric.name: by_sequence(metric, column, self.clips) for metric in self.metrics
            }
            for name, column in scores.items()
        }
        for metric, of_sequences in values[MODEL].items():
            if all(math.isnan(value) for value in of_sequences.values()):
                raise SettingsError(
                    f"the metric '{metric}' counts no point of {self.clips.snapshot.out}: it may "
                    "need masks (build with 'frames.masks: true'), cameras, or larger angles"
                )
        return values | {"effective_rank": scores[model.name].effective_rank}
