"""Scores of sequences are those of the evaluation, and a metric without a point is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ablation.experiment import HeldOutSettings, MetricSettings
from benchmarks.ablation.scoring import MODEL, Scorer
from shards.errors import SettingsError
from tests.trainer.conftest import panning_clip, publish
from trainer.evaluate.evaluated_model import load_evaluated_model


def test_scores_are_per_sequence_beside_controls(tmp_path: Path) -> None:
    """Everything moves by 24 px of 96 and 8 of 64 in 8 frames: never within a tenth of the image.

    The camera of frame 0 is the same as that of frame 4, so there are no viewing angles.
    """
    publish(tmp_path, [panning_clip(f"made-{i:02d}", i, split="eval") for i in range(3)])
    clips = HeldOutSettings(out=tmp_path, clips=2, frames=3, step=4)
    model = load_evaluated_model(MODEL, "vit_tiny_patch16_224:random")
    metrics = {"found": MetricSettings(), "moved": MetricSettings(moving=True)}
    scores = Scorer(clips, metrics, 64).score(model, controls=True)
    assert scores.keys() == {MODEL, "raw pixels", "never moves", "chance", "effective_rank"}
    sequences = set(scores[MODEL]["found"])
    assert len(sequences) == 2
    assert scores["never moves"]["moved"] == dict.fromkeys(sequences, 0.0)
    assert all(0 < value < 0.2 for value in scores["chance"]["found"].values())

    seen = {"found": MetricSettings(), "from the side": MetricSettings(angle=(40, 70))}
    with pytest.raises(SettingsError, match=r"the metric 'from the side' counts no point of"):
        Scorer(clips, seen, 64).score(model, controls=False)
