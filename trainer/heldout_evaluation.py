"""Evaluate the weights of a run on a few held-out clips while it trains.

OUT/heldout.json    the scores after each evaluated step, oldest first
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import normalize

from manifests.snapshot import Snapshot, open_snapshot
from shards.errors import SettingsError
from shards.files import atomic_write
from trainer.config import TrainSettings
from trainer.data.batch import Batch
from trainer.data.settings import DataSettings
from trainer.evaluate.heldout.breakdown import by_clip
from trainer.evaluate.heldout.clips import evaluation_settings, read_held_out
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.scoring import score_features
from trainer.evaluate.overlap import Overlap
from trainer.evaluate.results import finite_mean, plain
from trainer.methods.method import Method
from trainer.training_footage import TrainingFootage

LOGGED = ("moving_pck@0.1", "pck@0.1", "track@1")
"""The metrics that are logged, beside the effective rank of the features."""


class HeldOutEvaluation:
    """Held-out clips in memory, and the scores of a run's model on them.

    Nothing in it draws from a generator that the run uses.

    Raises PretrackError if the build has no clip of the split `eval` that fits.
    """

    def __init__(self, snapshot: Snapshot, settings: TrainSettings) -> None:
        self.settings = settings
        data, size = settings.data, settings.data.size
        # A sample without time (`data.step: 0`) is evaluated over time all the same.
        chosen = evaluation_settings(
            snapshot, split="eval", where="", frames=data.frames, step=max(1, data.step)
        )
        self.clips = read_held_out(
            snapshot,
            DataSettings.model_validate(chosen),
            settings.tracks,
            [size],
            settings.run.evaluate_clips,
        )

    @classmethod
    def of(cls, settings: TrainSettings) -> HeldOutEvaluation | None:
        """Read the clips that a run's settings name; None if it evaluates nothing."""
        if settings.run.evaluate_every is None:
            return None
        return cls(open_snapshot(settings.run.evaluate_on or settings.data.out[0]), settings)

    def check_not_trained_on(self, trained_on: TrainingFootage) -> None:
        """Raise SettingsError if a run or its start weights are trained on footage of the clips."""
        overlap = Overlap.of("this run", self.clips.footage, trained_on)
        if overlap.found:
            raise SettingsError(
                f"'run.evaluate_every' needs clips that are not trained on, and this run or its "
                f"start weights are trained on {overlap.shares}: name a build with others in "
                "'run.evaluate_on'"
            )

    def score(self, method: Method, step: int) -> dict[str, float]:
        """Score the model after `step` steps, and write heldout.json; NaN for no points.

        Scores of later steps in the file, from before the run was killed, are dropped.
        """
        out, size = self.settings.run.out, self.settings.data.size
        features = [
            normalize(method.features(cast(Batch, {"frames": clip.images[size]})), dim=-1).cpu()
            for clip in self.clips.clips
        ]
        scores = score_features(self.clips, torch.stack(features), orders=False)
        values = {
            metric.name: finite_mean(by_clip(metric, scores, self.clips))
            for metric in METRICS
            if metric.name in LOGGED
        } | {"effective_rank": scores.effective_rank}
        earlier = [row for row in read_scores(out) if row["step"] < step]
        rows = [*earlier, plain({"step": step, **values})]
        atomic_write(out / "heldout.json", json.dumps(rows, indent=1).encode())
        return values


def read_scores(out: Path) -> list[dict[str, Any]]:
    """Return the scores in a run's folder, the earliest step first; none if it has none."""
    path = out / "heldout.json"
    rows: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.is_file() else []
    return rows
