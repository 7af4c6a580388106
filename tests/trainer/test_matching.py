"""The label-free check: right on features that are known, the same every time, and modest about small differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from trainer.clips import open_snapshots
from trainer.config import DataSettings, TrackSettings, TrainSettings
from trainer.data import ClipDataset, Sample
from trainer.matching import difference, effective_rank, main, score_clip
from trainer.train import train

GRID = 8


def a_sample(shift: float, points: int = 200) -> Sample:
    """Points anywhere in 64 px, moving `shift` px to the right a frame."""
    start = torch.rand(points, 2, generator=torch.Generator().manual_seed(0)) * 64 - 0.5
    positions = torch.stack([start + torch.tensor([shift * t, 0.0]) for t in range(3)])
    inside = ((positions >= -0.5) & (positions <= 63.5)).all(dim=-1)
    ones = torch.ones(3, points)
    frames = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    return Sample(frames=frames, positions=positions, visibility=ones, confidence=ones, inside=inside, key="a")


def knowing_features(shift: float) -> torch.Tensor:
    """Patch features [3, 8, 8, D] that say where in the moving picture a patch lies: smooth bumps over the plane."""
    centres = (torch.arange(GRID) + 0.5) * 8 - 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    bumps = torch.cartesian_prod(torch.arange(-60.0, 70, 6), torch.arange(0.0, 70, 6))
    maps = []
    for t in range(3):
        off = torch.stack([x - shift * t, y], dim=-1)[..., None, :] - bumps
        maps.append((-(off**2).sum(-1) / (2 * 8**2)).exp())
    return normalize(torch.stack(maps), dim=-1)


def test_features_that_know_the_answer_find_it() -> None:
    scores = score_clip(a_sample(9), knowing_features(9), TrackSettings())
    assert scores.pck > 0.9
    assert scores.auc > 0.85
    assert scores.track > 0.9


def test_features_that_stay_where_they_are_do_not() -> None:
    scores = score_clip(a_sample(9), knowing_features(0), TrackSettings())
    assert scores.pck < 0.1
    assert scores.track < 0.4


def test_random_features_are_at_chance() -> None:
    features = normalize(torch.randn(3, GRID, GRID, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = score_clip(a_sample(9), features, TrackSettings())
    assert scores.pck < 0.15
    assert scores.auc < 0.4


def test_a_clip_without_moving_points_has_no_moving_figure() -> None:
    scores = score_clip(a_sample(0), knowing_features(0), TrackSettings())
    assert math.isnan(scores.pck)
    assert scores.track == 1


def test_effective_rank() -> None:
    noise = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(noise) == pytest.approx(16, rel=0.01)
    assert effective_rank(noise[:, :1] @ torch.ones(1, 16)) == pytest.approx(1, abs=0.01)


def test_differences_and_what_they_say() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0, 1, 40)
    noise = random.normal(0, 0.02, 40)
    better, worse = difference(base, base + 0.1 + noise), difference(base, base - 0.1 + noise)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert better.interval is not None
    assert better.interval[0] < better.after - better.before < better.interval[1]
    assert better.interval[1] - better.interval[0] == pytest.approx(
        2 * 1.96 * 0.02 / math.sqrt(40), rel=0.3
    )  # paired: base cancels
    assert difference(base, base).verdict == "not distinguishable from 0"
    assert difference(base, base + noise - noise.mean()).verdict == "not distinguishable from 0"
    assert difference([0.1, math.nan], [0.3, 0.5]).clips == 1
    assert difference([0.1], [0.3]).verdict == difference([], []).verdict == "too few clips to tell"


@pytest.mark.slow
def test_the_command_compares_a_run_with_its_start(
    build: Path, settings: Callable[..., TrainSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    s = settings(run={"steps": 2})
    train(s)
    arguments = [str(build), "--before", str(s.run.out), "--after", str(s.run.out), "--device", "cpu", "--step", "2"]
    capsys.readouterr()
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "4 clips of split 'eval'" in text
    assert "4 clips are few" in text
    assert main([*arguments, "--json"]) == 0
    first = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert capsys.readouterr().out == first
    values = json.loads(first)
    assert values["clips"] == ["made-10", "made-11", "made-12", "made-13"]
    assert 0 < values["metrics"]["track"]["before"] < 1

    start = str(s.run.out / "weights" / "step_00000000.safetensors")
    assert main([str(build), "--before", start, "--after", start, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("not distinguishable from 0") == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("random", "need a backbone's name: add --backbone"),
        ("no/such.pth", "there is no run and no weight file"),
        (".", "holds no exported weights"),
    ],
)
def test_what_cannot_be_compared_is_said(build: Path, weights: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(build), "--before", weights, "--after", weights]) == 1
    assert message in capsys.readouterr().err


def test_held_out_clips_are_shown_whole_and_alike(build: Path) -> None:
    settings = DataSettings(out=(build,), split="eval", size=64, step=2, crop="squash", flip=0, anchor="first", direction="forward")
    clips = ClipDataset(open_snapshots(settings), settings, seed=0)
    assert torch.equal(clips[0, 1]["frames"], clips[9, 1]["frames"])
