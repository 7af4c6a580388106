"""Scores: perfect features find all, noise is at chance, references are other clips'."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.snapshot import Snapshot, open_snapshot
from shards.errors import PretrackError
from tests.helpers.scenic_clips import colour_model, held_out
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.heldout.breakdown import bins, by_clip
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.scoring import reference_features, score
from trainer.evaluate.results import finite_mean

GRID = 8
NAMED = {metric.name: metric for metric in METRICS}


def test_weights_that_are_broken_are_named(build: Path, a_run: Path) -> None:
    model = load_evaluated_model("broken", f"{a_run}:last")
    with torch.no_grad():
        model.backbone.model.norm.weight[0] = math.nan
    with pytest.raises(PretrackError, match="'broken' gives features that are not finite"):
        score(held_out(open_snapshot(build), 64), [model], GRID)


def test_a_model_that_sees_the_truth_finds_everything_and_noise_is_at_chance(
    scenic: Snapshot,
) -> None:
    held = held_out(scenic, 128)
    assert held.exact
    assert "by 'truth': exact" in str(held)
    scores = score(held, [colour_model("knows", True), colour_model("noise", False)], 16)

    def value(name: str, metric: str, *part: str) -> float:
        return finite_mean(by_clip(NAMED[metric], scores[name], held, *part))

    assert value("knows", "moving_pck@0.1") == 1
    assert value("knows", "track@1") > 0.97
    assert value("knows", "error") < 0.75 / 16
    assert value("knows", "rank_correlation") > 0.95
    assert value("never moves", "moving_pck@0.1") == 0
    assert value("never moves", "moving_track@1") < 0.2 < value("never moves", "track@1")
    assert value("knows", "moving_track@1") > 0.97
    for metric in NAMED.keys() - {"error", "epipolar@4px", "object_pck@0.1_at_40-70"}:
        assert value("noise", metric) == pytest.approx(value("chance", metric), abs=0.05), metric
    assert scores["knows"].effective_rank > 3

    # Clip i turns by 5 i degrees per frame: its frames are 10 i, 20 i and 30 i from the anchor.
    assert bins(held)["angle"] == ["0-15", "15-30", "30-60", "60+"]
    wide = by_clip(NAMED["auc"], scores["knows"], held, "angle", "60+")
    assert np.isfinite(wide).tolist() == [False, False, True, True, True, True]
    assert [clip.angles[2] for clip in held.clips] == pytest.approx(
        [0, 20, 40, 60, 80, 100], abs=1e-3
    )


def test_references_come_from_other_clips_and_are_the_same_for_every_model() -> None:
    clips = torch.arange(5.0)[:, None, None, None, None].expand(5, 2, 16, 16, 1)
    patches = torch.arange(256.0).view(1, 1, 16, 16, 1).expand(5, 2, 16, 16, 1)
    features = torch.cat([clips, patches], dim=-1)
    references = reference_features(features, 2)
    assert references.shape == (320, 2)
    assert set(references[:, 0].tolist()) == {0, 1, 3, 4}
    assert len(torch.unique(references, dim=0)) == 320
    assert torch.equal(
        reference_features(torch.cat([features, features], dim=-1), 2)[:, :2], references
    )
    assert reference_features(features[:1], 0).shape == (0, 2)
