"""Evaluation during training says how a run goes and changes nothing about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import PretrackError
from tests.trainer.conftest import panning_clip, publish
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.heldout.breakdown import by_clip
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.scoring import score
from trainer.evaluate.results import finite_mean
from trainer.export import exported_weights
from trainer.heldout_evaluation import HeldOutEvaluation, read_scores
from trainer.train import train

Make = Callable[..., TrainSettings]
ALONE: dict[str, Any] = {"sorting": 0, "self_supervision": {"every_frame": True, "points": 9}}


@pytest.mark.slow
def test_an_evaluated_run_is_the_same_run_and_goes_on_where_it_was_killed(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = settings(run={"steps": 4, "out": tmp_path / "plain"})
    train(plain)
    assert not read_scores(plain.run.out)
    own = {"out": tmp_path / "own", "evaluate_every": 2, "export_every": 3, "checkpoint_every": 1}
    evaluated = settings(run={"steps": 4, **own})
    train(evaluated)
    for part in ("student", "teacher", "optimizer"):
        assert_same(last_state(plain)[part], last_state(evaluated)[part])
    assert [row["step"] for row in read_scores(evaluated.run.out)] == [0, 2, 4]
    files = exported_weights(evaluated.run.out)
    assert [path.stem for path in files] == ["step_00000000", "step_00000003", "step_00000004"]
    assert "step 2/4  held-out clips: " in capsys.readouterr().out

    # What is logged is what an evaluation of the exported weights says.
    clips = HeldOutEvaluation.of(evaluated)
    assert clips is not None
    scores = score(clips.clips, [load_evaluated_model("m", str(files[-1]))], 8)["m"]
    metric = next(m for m in METRICS if m.name == "track@1")
    logged = read_scores(evaluated.run.out)[-1]
    assert abs(logged["track@1"] - finite_mean(by_clip(metric, scores, clips.clips))) < 1e-6
    assert abs(logged["effective_rank"] - scores.effective_rank) < 1e-3

    # Killed between the checkpoint of step 3 and its export: the last evaluation is made again, no
    # other is doubled, and the export is there.
    exported = files[1].read_bytes()
    files[1].unlink()
    (evaluated.run.out / "checkpoints" / "step_00000004.pt").unlink()
    train(evaluated)
    assert [row["step"] for row in read_scores(evaluated.run.out)] == [0, 2, 4]
    assert read_scores(evaluated.run.out)[-1] == logged
    assert files[1].read_bytes() == exported

    # Killed during the last evaluation, after the last checkpoint: it is made when the run resumes.
    scores_file = evaluated.run.out / "heldout.json"
    scores_file.write_text(json.dumps(read_scores(evaluated.run.out)[:-1]))
    train(evaluated)
    assert read_scores(evaluated.run.out)[-1] == logged
    # A finished run evaluates nothing again.
    scores_file.write_text(json.dumps([{"step": 4}]))
    train(evaluated)
    assert read_scores(evaluated.run.out) == [{"step": 4}]


def test_clips_that_a_run_trains_on_are_no_held_out_clips(settings: Make, tmp_path: Path) -> None:
    clips = [panning_clip(f"made-{i:02d}", i, split="eval") for i in range(8, 12)]
    publish(tmp_path / "again", clips)
    s = settings(run={"evaluate_every": 1, "evaluate_on": str(tmp_path / "again")})
    with pytest.raises(
        PretrackError, match=r"2 of 4 sequences .*made-08: name a build with others"
    ):
        train(s)
    assert not s.run.out.exists()


def test_without_held_out_clips_an_evaluation_is_refused(settings: Make) -> None:
    where = {"evaluate_every": 1, "evaluate_on": "nowhere"}
    with pytest.raises(PretrackError, match="nowhere"):
        train(settings(run=where))


@pytest.mark.slow
def test_self_supervision_alone_trains_embeddings_and_resumes_exactly(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"train_embeddings": True, "trainable_blocks": 3}
    changes: dict[str, Any] = {"loss": ALONE, "model": whole, "references": {"count": 1}}
    unbroken = settings(run={"steps": 3, "out": tmp_path / "a"}, **changes)
    train(unbroken)
    last_line = [it for it in capsys.readouterr().out.splitlines() if it.startswith("step ")][-1]
    assert "spearman" not in last_line  # there are no embeddings of tracks
    train(settings(run={"steps": 3, "out": tmp_path / "b", "checkpoint_every": 2}, **changes))
    (tmp_path / "b" / "checkpoints" / "step_00000003.pt").unlink()
    resumed = settings(run={"steps": 3, "out": tmp_path / "b"}, **changes)
    train(resumed)
    assert_same(last_state(unbroken)["student"], last_state(resumed)["student"])

    first, last = exported_weights(unbroken.run.out)
    before = load_evaluated_model("a", str(first)).backbone.state_dict()
    after = load_evaluated_model("b", str(last)).backbone.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"model.norm.weight", "model.norm.bias"}


def test_embeddings_are_not_trained_below_frozen_blocks(settings: Make) -> None:
    with pytest.raises(PretrackError, match=r"model\.trainable_blocks=3"):
        train(settings(model={"train_embeddings": True}))
