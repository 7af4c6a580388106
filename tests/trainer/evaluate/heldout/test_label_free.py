"""`python -m trainer.evaluate`: models side by side on held-out clips, from files to files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from manifests.snapshot import Snapshot, open_snapshot
from manifests.tables import SHARDS, table_of, write_table
from shards import jpeg
from shards.clip import Camera
from shards.errors import PretrackError
from shards.stored_clip import StoredClip
from tests.helpers.evaluation import evaluate
from tests.trainer.conftest import HEIGHT, WIDTH, panning_clip, publish
from trainer.config import DataSettings, TrackFilterSettings, TrainSettings
from trainer.evaluate.benchmarks import published_tables as papers
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_model
from trainer.evaluate.heldout.breakdown import bins, by_clip, differences
from trainer.evaluate.heldout.clips import (
    HeldOutSet,
    evaluation_settings,
    read_held_out,
    relative_rotation,
)
from trainer.evaluate.heldout.curves import plot
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.pictures import choose_clips
from trainer.evaluate.heldout.scoring import Scores, reference_features, score
from trainer.evaluate.results import finite_mean
from trainer.export import export_weights
from trainer.model.backbone import Backbone, make_backbone

GRID = 8
NAMED = {metric.name: metric for metric in METRICS}


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory, build: Path) -> Path:
    """A training run's folder as far as exports go: weights from before the first step, and others."""
    out = tmp_path_factory.mktemp("run")
    model = {
        "backbone": "vit_tiny_patch16_224",
        "weights": "random",
        "options": {"depth": 2, "patch_size": 8},
        "head": (8,),
    }
    values = {
        "data": {"out": str(build), "size": 64},
        "model": model,
        "run": {"out": str(out), "steps": 2},
    }
    settings = TrainSettings.model_validate(values)
    torch.manual_seed(1)
    backbone = make_backbone(settings.model.backbone, "random", settings.model.options)
    for step in (0, 2):
        export_weights(backbone, settings, [open_snapshot(build)], step)
        with torch.no_grad():
            for weights in backbone.parameters():
                weights.add_(0.02 * torch.randn_like(weights))
    return out


def arguments(build: Path, run: Path, out: Path, *more: str) -> list[str]:
    models = ["--model", f"base={run}:first", "--model", f"trained={run}"]
    return [
        "labelfree",
        str(build),
        *models,
        "--out",
        str(out),
        "--device",
        "cpu",
        "--grid",
        str(GRID),
        "--step",
        "2",
        *more,
    ]


def test_two_models_side_by_side(
    build: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(arguments(build, a_run, tmp_path / "a", "--pictures", "2")) == 0
    text = capsys.readouterr().out
    assert "4 clips of 4 videos" in text
    assert "With only 4 videos, intervals are too narrow" in text
    assert "resampling videos, each with all its clips" in text
    assert "by 'made': not ground truth" in text
    assert "trained less base" in text
    assert "never moves" in text

    found = json.loads((tmp_path / "a" / "labelfree.json").read_text())
    assert [clip["key"] for clip in found["data"]["clips"]] == [
        "made-10",
        "made-11",
        "made-12",
        "made-13",
    ]
    assert found["data"]["clips"][0]["frames"] == [0, 2, 4, 6]
    assert found["data"]["snapshot"] == "000001"
    assert (
        found["models"]["base"]["weights_xxh3_64"] != found["models"]["trained"]["weights_xxh3_64"]
    )
    assert {"python", "torch", "timm", "numpy"} <= found["versions"].keys()
    assert list(found["figures"]) == ["base", "trained", "never moves", "chance"]
    base = found["figures"]["base"]
    assert 0 < base["track@1"]["mean"] < 1
    assert base["drift"] == pytest.approx(0, abs=1e-6)
    assert found["figures"]["trained"]["drift"] > 1e-3
    assert base["track@1"]["mean"] == pytest.approx(np.mean(base["track@1"]["by_clip"]))
    assert base["track@1"]["by_source"]["made"] == {"mean": base["track@1"]["mean"], "clips": 4}
    assert base["track@1"]["by_gap"].keys() == {"1", "2", "3"}
    difference = found["differences"]["trained"]["auc"]
    gains = np.subtract(found["figures"]["trained"]["auc"]["by_clip"], base["auc"]["by_clip"])
    assert difference["gain"] == pytest.approx(gains.mean())
    assert (difference["interval"], difference["verdict"]) == (None, "too few to tell")
    assert (difference["count"], difference["groups"]) == (4, 4)
    assert "each with all its clips" in found["settings"]["resampled"]
    assert "trained is not shown to be better than base" in text

    pictures = {
        path.name.removeprefix("labelfree-").split("-")[0]
        for path in (tmp_path / "a").glob("*.png")
    }
    assert pictures == {"recall", "features", "matches"}
    for path in (tmp_path / "a").glob("*.png"):
        with Image.open(path) as picture:
            assert len(picture.getcolors(2**24) or ()) > 8, path  # something is drawn

    assert evaluate(arguments(build, a_run, tmp_path / "b", "--pictures", "0")) == 0
    again = json.loads((tmp_path / "b" / "labelfree.json").read_text())
    assert again == found
    assert not list((tmp_path / "b").glob("*features*"))


def test_a_model_against_itself_differs_in_nothing(
    build: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = str(a_run / "weights" / "step_00000000.safetensors")
    models = [
        "--model",
        f"a={same}",
        "--model",
        f"b={a_run}:first",
        "--device",
        "cpu",
        "--grid",
        "8",
        "--pictures",
        "0",
    ]
    assert (
        evaluate(["labelfree", str(build), "--out", str(tmp_path), "--split", "train", *models])
        == 0
    )
    found = json.loads((tmp_path / "labelfree.json").read_text())
    assert {d["verdict"] for d in found["differences"]["b"].values()} == {
        "not distinguishable from 0"
    }
    assert {tuple(d["interval"]) for d in found["differences"]["b"].values()} == {(0.0, 0.0)}
    assert "b is not shown to be better than a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("runs/x", "'--model runs/x' should be NAME=WHERE"),
        ("a=random", "weights 'random' need a backbone's name: write a=BACKBONE:random"),
        ("a=no/such", "there is no run and no file no/such"),
        ("a=no/such:first", "there is no run no/such"),
        ("a=dino_small:no/such.pth", "there is no weight file no/such.pth"),
        ("a=dino_smal:random", "there is no backbone 'dino_smal' (did you mean 'dino_small'?)"),
        ("a=.", "holds no exported weights"),
    ],
)
def test_what_is_no_model_is_said(
    build: Path, model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        evaluate(
            [
                "labelfree",
                str(build),
                "--model",
                model,
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_else_cannot_be_done_is_said(
    build: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = {
        "two models are called 'base'": ("--model", f"base={a_run}"),
        "'--clips' should be at least 1": ("--clips", "0"),
        "no clip in": ("--split", "test"),
        "has no snapshot '000009'": ("--snapshot", "000009"),
        "the clips table has no column 'motoin' (did you mean 'motion'?)": (
            "--where",
            "motoin > 0",
        ),
    }
    for message, more in tries.items():
        assert evaluate(arguments(build, a_run, tmp_path / "out", *more)) == 1
        assert message in capsys.readouterr().err
    for device in ("cuda:99", "gpu", ""):
        assert evaluate(arguments(build, a_run, tmp_path / "out", "--device", device)) == 1
        error = capsys.readouterr().err
        assert f"torch sees no device '{device}' here" in error
        assert error.count("\n") == 1
    assert (
        evaluate(["labelfree", str(tmp_path), *arguments(build, a_run, tmp_path / "out")[2:]]) == 1
    )
    assert "holds no finished build" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_broken_are_named(build: Path, a_run: Path) -> None:
    model = load_evaluated_model("broken", f"{a_run}:last")
    with torch.no_grad():
        model.backbone.model.norm.weight[0] = math.nan
    with pytest.raises(PretrackError, match="'broken' gives features that are not finite"):
        score(held_out(open_snapshot(build), 64), [model], GRID)


def held_out(snapshot: Snapshot, *sides: int, **changes: Any) -> HeldOutSet:
    settings = DataSettings.model_validate(
        evaluation_settings(snapshot, split="eval", where="", frames=4, step=2) | changes
    )
    return read_held_out(snapshot, settings, TrackFilterSettings(), sides)


def test_the_points_are_the_same_at_every_size(build: Path) -> None:
    snapshot = open_snapshot(build)
    both, small = held_out(snapshot, 56, 64), held_out(snapshot, 64)
    for one, other in zip(both.clips, small.clips, strict=True):
        assert torch.allclose(one.positions, other.positions, atol=1e-6)
        assert torch.equal(one.track_mask, other.track_mask)
        assert torch.equal(one.images[64], other.images[64])
        assert one.images[56].shape == (4, 3, 56, 56)
    clip = both.clips[0]
    assert clip.positions[0, 0].tolist() == pytest.approx(
        [(8 * 95 / 511 + 0.5) / WIDTH, (8 * 63 / 383 + 0.5) / HEIGHT], abs=1e-3
    )
    moved = clip.positions[1] - clip.positions[0]  # 2 frames of 3 px left and 1 px up
    assert moved.numpy() == pytest.approx(np.tile([-6 / WIDTH, -2 / HEIGHT], (36, 1)), abs=1e-3)


def scenic_clip(key: str, seed: int, turn: float) -> StoredClip:
    """A panning clip whose colours say where in its scene a pixel lies, from a camera that turns `turn` degrees a frame."""
    clip = panning_clip(key, seed, split="eval")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([(x + 3 * t) * 1.8, (y + t) * 3, np.full_like(x, 128)], axis=-1).astype(np.uint8)
        for t in range(12)
    ]
    angles = np.radians(turn * np.arange(12))
    matrices = [
        ((np.cos(a), 0, np.sin(a), 0), (0, 1, 0, 0), (-np.sin(a), 0, np.cos(a), 0)) for a in angles
    ]
    cameras = tuple(
        Camera(80.0, 80.0, 47.5, 31.5, tuple(float(v) for row in m for v in row)) for m in matrices
    )
    return StoredClip(
        replace(clip.info, cameras=cameras),
        clip.tracks,
        tuple(jpeg.encode(frame, 95) for frame in frames),
    )


class Colours(nn.Module):
    """Stands for a transformer: bumps over the plane of red and green for each patch of 8 pixels, or noise."""

    embed_dim = 400

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.knows, self.bumps = (
            knows,
            nn.Parameter(
                torch.cartesian_prod(torch.linspace(-2.2, 2.8, 20), torch.linspace(-2.2, 2.8, 20))
            ),
        )
        self.num_prefix_tokens, self.patch_embed = 0, nn.Conv2d(3, 3, 8)
        self.patch_embed.patch_size = (8, 8)  # type: ignore[assignment]

    def forward_intermediates(self, images: Tensor, **how: Any) -> list[Tensor]:
        means = nn.functional.avg_pool2d(images, 8)[:, :2].flatten(2).movedim(1, 2)
        if not self.knows:
            return [torch.randn(*means.shape[:2], 64, generator=torch.Generator().manual_seed(0))]
        return [(-torch.cdist(means, self.bumps).square() / (2 * 0.3**2)).exp()]


@pytest.fixture(scope="session")
def scenic(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A build of six such clips, with exact tracks that say so."""
    snapshot = publish(
        tmp_path_factory.mktemp("scenic"),
        [scenic_clip(f"scene-{i}", i, turn=5.0 * i) for i in range(6)],
    )
    row = dict.fromkeys(SHARDS.names) | {
        "shard": "made-000000",
        "tracks_settings": '{"tracker":"truth"}',
    }
    write_table(snapshot.folder / "shards.parquet", table_of([row], SHARDS))
    return snapshot


def colour_model(name: str, knows: bool) -> EvaluatedModel:
    settings = {
        field: DataSettings.model_fields[field].default for field in ("size", "mean", "std")
    }
    return EvaluatedModel(name, name, "", "", Backbone(Colours(knows), name), **settings)


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
    for metric in NAMED.keys() - {"error"}:
        assert value("noise", metric) == pytest.approx(value("chance", metric), abs=0.05), metric
    assert scores["knows"].effective_rank > 3

    # Turned by 5 i degrees a frame, clip i's frames are 10 i, 20 i and 30 i degrees from its anchor.
    assert bins(held)["angle"] == ["0-15", "15-30", "30-60", "60+"]
    wide = by_clip(NAMED["auc"], scores["knows"], held, "angle", "60+")
    assert np.isfinite(wide).tolist() == [False, False, True, True, True, True]
    assert [clip.angles[2] for clip in held.clips] == pytest.approx(
        [0, 20, 40, 60, 80, 100], abs=1e-3
    )


def test_clips_of_the_same_videos_do_not_narrow_intervals(scenic: Snapshot) -> None:
    held = held_out(scenic, 128)
    scores = score(held, [colour_model("knows", True), colour_model("noise", False)], 16)
    thrice = replace(held, clips=held.clips * 3)
    copied = {
        name: Scores(
            [replace(pair, clip=pair.clip + 6 * copy) for copy in range(3) for pair in found.pairs]
        )
        for name, found in scores.items()
    }
    found = [
        differences(s["knows"], s["noise"], h).values()
        for s, h in ((scores, held), (copied, thrice))
    ]
    for once, often in zip(*found, strict=True):
        assert (often.count, often.groups) == (3 * once.count, once.groups)
        assert often.interval == (once.interval and pytest.approx(once.interval))
    assert "18 clips of 6 videos" in str(thrice)


def test_rotations() -> None:
    eye, turned = ((1.0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 1, 0), (0.0, -1, 0, 0, 1, 0, 0, 3, 0, 0, 1, 0))
    assert relative_rotation(Camera(1, 1, 0, 0, eye), Camera(2, 2, 0, 0, turned)) == pytest.approx(
        90
    )
    assert relative_rotation(
        Camera(1, 1, 0, 0, turned), Camera(2, 2, 0, 0, turned)
    ) == pytest.approx(0, abs=1e-5)


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


def test_clips_are_drawn_where_something_moves(scenic: Snapshot) -> None:
    clips = held_out(scenic, 64).clips
    still = replace(clips[0], positions=clips[0].positions[:1].expand(4, -1, -1))
    assert choose_clips([still, *clips[1:3], still], 2) == [1, 2]
    assert choose_clips([still], 3) == [0]
    assert choose_clips(clips, 0) == []


def test_a_curve_has_a_gap_where_nothing_is_known() -> None:
    whole, gap = (
        np.array(plot("", "abc", {"a": [0.9, middle, 0.9]})) for middle in (0.9, math.nan)
    )
    height = np.nonzero((whole != gap).any(axis=(1, 2)))[0].mean()
    between = slice(180, 220)  # the first place is at 149 of 640 pixels, the second at 336
    assert (whole[round(height), between] != 255).all(axis=0).any()
    assert (gap[round(height), between] == 255).all()


def test_names_that_do_not_fit_beside_each_other_are_below() -> None:
    names = [f"a model trained for {n} steps" for n in range(5)]
    few, many = (
        np.array(plot("", "ab", {name: [0.5, 0.5] for name in chosen}))
        for chosen in (names[:1], names)
    )
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] == few.shape[0] + 40  # two in a line
    assert (many[:, -20:] == 255).all()


def test_published_rows_stand_beside_ones_own() -> None:
    text = papers.beside("spair", {"mine": (60.0, 50.0, math.nan, 55.5)})
    lines = text.splitlines()
    assert lines[-4].split() == ["mine", "(this", "evaluation)", "60.00", "50.00", "-", "55.50"]
    assert lines[-5].split() == [
        "3DPoV",
        "(DINOv3),",
        "ViT-B/16",
        "62.24",
        "48.56",
        "46.81",
        "55.84",
    ]
    assert [line.split(",")[0].strip() for line in lines[8:12]] == [
        "DINOv2R",
        "NeCo",
        "MoSiC",
        "3DPoV",
    ]
    assert "not public" in text
    assert all(
        len(row.values) == len(table.columns)
        for table in papers.PUBLISHED.values()
        for row in table.rows
    )
    with pytest.raises(ValueError, match="has 4 values"):
        papers.beside("navi", {"mine": (1.0,)})


@pytest.mark.slow
def test_a_training_run_is_compared_with_its_start(
    build: Path, settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    from trainer.train import train

    s = settings(run={"steps": 2})
    train(s)
    assert evaluate(arguments(build, s.run.out, tmp_path / "evaluation")) == 0
    found = json.loads((tmp_path / "evaluation" / "labelfree.json").read_text())
    assert found["models"]["trained"]["weights"].endswith("step_00000002.safetensors")
    assert 0 < found["figures"]["trained"]["drift"] < 0.5
