"""`evaluate labelfree`: models side by side on held-out clips, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.evaluation import evaluate
from trainer.config import TrainSettings

GRID = 8


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


@pytest.mark.slow
def test_two_models_side_by_side(
    build: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(arguments(build, a_run, tmp_path / "a", "--pictures", "2")) == 0
    text = capsys.readouterr().out
    assert "4 clips of 4 videos" in text
    assert "With only 4 videos, only large differences can be shown" in text
    assert "resamples of videos, each with all its clips" in text
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
    assert list(found["figures"]) == ["base", "trained", "raw pixels", "never moves", "chance"]
    base = found["figures"]["base"]
    assert 0 < base["track@1"]["mean"] < 1
    raw = found["figures"]["raw pixels"]["moving_pck@0.1"]["mean"]
    assert raw > 2 * found["figures"]["chance"]["moving_pck@0.1"]["mean"]
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


def test_clips_with_cameras_and_masks_are_scored_by_viewing_angle(
    orbits: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(arguments(orbits, a_run, tmp_path, "--pictures", "0", "--frames", "4")) == 0
    text = capsys.readouterr().out
    assert "viewing angle 40-70 degrees" in text
    assert "trained less base, by the point's viewing angle" in text
    assert "part of the picture: object" in text
    assert "Viewing angles are those of triangulated points" in text
    found = json.loads((tmp_path / "labelfree.json").read_text())
    figures = found["figures"]
    # The frames are 30, 60 and 90 degrees on.
    by_angle = figures["never moves"]["city_block"]["by_viewing_angle"]
    assert by_angle["0-10"]["clips"] == 0
    assert by_angle["40-70"]["clips"] == 7
    low, high = by_angle["40-70"]["interval"]
    assert low < by_angle["40-70"]["mean"] < high
    assert by_angle["20-40"]["mean"] < by_angle["40-70"]["mean"]
    assert figures["base"]["pck@0.1"]["by_part"].keys() == {"object", "background"}
    # The pictures are the same in every frame, so what a model finds is the point that it left.
    chance = figures["chance"]["epipolar@4px"]["mean"]
    assert 8 / 320 < chance < 8 / 200
    endpoint = figures["trained"][found["endpoint"]]
    assert endpoint["by_sequence"].keys() == {f"orbit-{i}" for i in range(7)}
    assert endpoint["mean"] == pytest.approx(np.mean(list(endpoint["by_sequence"].values())))
    compared = found["differences_by_viewing_angle"]["trained"]["pck@0.1"]["40-70"]
    assert (compared["count"], compared["groups"]) == (7, 7)
    assert compared["p_holm"] >= compared["p"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"labelfree-{name}.png"
        for name in (
            "recall-gap",
            "recall-angle",
            "recall-viewing-angle",
            "error-viewing-angle",
        )
    }


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
    known = [d for d in found["differences"]["b"].values() if d["count"]]
    assert len(known) == 16  # of 18: no cameras, so no epipolar lines and no viewing angles
    assert {d["verdict"] for d in known} == {"not distinguishable from 0"}
    assert {tuple(d["interval"]) for d in known} == {(0.0, 0.0)}
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
