"""Sets of views: what is measured, and that every control is encoded as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manifests.snapshot import open_snapshot
from tests.helpers.evaluation import evaluate
from tests.helpers.multiview_run import export_multiview_run
from tests.trainer.conftest import publish
from tests.trainer.multiview.conftest import in_one_place, scene
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.features import patch_features
from trainer.evaluate.heldout.clips import HeldOutClip, evaluation_settings, read_held_out
from trainer.evaluate.intervals import Difference
from trainer.evaluate.sets.encoding import (
    ENCODINGS,
    Encoding,
    cameras_of,
    encode_clip,
    encodings_of,
)
from trainer.evaluate.sets.evaluation import conclusion
from trainer.evaluate.sets.location import ViewError, by_clip, location_error

SIDE = 32


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of six posed clips over 50 degrees, and one without cameras."""
    out = tmp_path_factory.mktemp("views") / "out"
    clips = [scene(number, "eval") for number in range(6)]
    publish(out, [*clips, scene(6, "eval", posed=False), in_one_place(scene(7, "train"))])
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, views: Path) -> Path:
    return export_multiview_run(tmp_path_factory.mktemp("run"), views)


def held_out_clip(views: Path, number: int = 0) -> HeldOutClip:
    snapshot = open_snapshot(views)
    values = evaluation_settings(snapshot, split="eval", where="", frames=3, step=3)
    settings = DataSettings.model_validate(values)
    return read_held_out(snapshot, settings, TrackFilterSettings(), [SIDE]).clips[number]


def test_an_error_is_the_city_block_distance_to_the_best_patchs_centre() -> None:
    """On a grid of 4 x 4 patches, each a vector of its own."""
    features = torch.eye(16).view(4, 4, 16)
    queries = torch.tensor([[0.125, 0.125], [0.875, 0.375]])
    # The first is found at its own patch's centre, 0.1 + 0.05 from the target; the second exactly.
    targets = torch.tensor([[0.225, 0.175], [0.875, 0.375]])
    assert location_error(features, features, queries, targets) == pytest.approx(0.15 / 2)
    # In the mirrored view both are found on the other side: 0.75 - 0.1 + 0.05, and 0.75.
    mirrored = features.flip(1)
    expected = (0.75 - 0.1 + 0.05 + 0.75) / 2
    assert location_error(features, mirrored, queries, targets) == pytest.approx(expected)


def test_errors_are_averaged_over_a_clips_views_in_a_bin() -> None:
    errors = [
        ViewError(0, 1, 5.0, 3, 0.2),
        ViewError(0, 2, 10.0, 1, 0.4),
        ViewError(2, 1, float("nan"), 1, 0.5),
    ]
    np.testing.assert_allclose(by_clip(errors, 3), [0.3, np.nan, 0.5])
    np.testing.assert_allclose(by_clip(errors, 3, 0, 10), [0.2, np.nan, np.nan])
    np.testing.assert_allclose(by_clip(errors, 3, 10, 20), [0.4, np.nan, np.nan])


def test_each_control_is_encoded_as_it_says(run: Path, views: Path) -> None:
    model, clip = load_evaluated_model("mv", str(run)), held_out_clip(views)
    assert model.multiview
    images = (
        clip.images[SIDE].float() / 255 - torch.tensor(model.mean).view(3, 1, 1)
    ) / torch.tensor(model.std).view(3, 1, 1)
    cameras = cameras_of(clip, SIDE)
    assert cameras
    k, poses = cameras.intrinsics, cameras.world_to_camera

    @torch.no_grad()
    def encoded(views: list[int], order: list[int] | None = None, shown: Tensor = images) -> Tensor:
        given: Any = () if order is None else (k[None, order], poses[None, order])
        assert model.multiview
        return model.multiview(shown[None, views], *given)[0]

    every, right = [0, 1, 2], [0, 1, 2]
    whole, wrong = encoded(every, right), encoded(every, [2, 0, 1])
    without, blank = encoded(every), encoded(every, right, images * 0)
    expected = {
        "": [(whole[0], whole[t]) for t in (1, 2)],
        "pairs": [tuple(encoded([0, t], [0, t])) for t in (1, 2)],
        "each view alone": [(encoded([0], [0])[0], encoded([t], [t])[0]) for t in (1, 2)],
        "no cameras": [(without[0], without[t]) for t in (1, 2)],
        "wrong cameras": [(wrong[0], wrong[t]) for t in (1, 2)],
        "blank images": [(blank[0], blank[t]) for t in (1, 2)],
    }
    assert [encoding.title for encoding in encodings_of(model, posed=True)] == list(expected)
    found = {}
    for encoding in ENCODINGS:
        found[encoding.title] = encode_clip(model, encoding, clip, SIDE)
        for ours, theirs in zip(found[encoding.title], expected[encoding.title], strict=True):
            torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)
    for title in list(expected)[1:]:
        assert (found[title][1][1] - found[""][1][1]).abs().max() > 1e-3, title


def test_other_evaluations_see_each_image_alone(run: Path, views: Path) -> None:
    model, clip = load_evaluated_model("mv", str(run)), held_out_clip(views)
    found = patch_features(model, final_norm=True)(clip.images[SIDE])
    alone = encode_clip(model, Encoding("", views="single", cameras="none"), clip, SIDE)
    torch.testing.assert_close(found[2], alone[1][1], rtol=0, atol=1e-5)
    assert model.to_json()["multiview"]


def test_the_command_prints_every_control_and_names_what_is_missing(
    run: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["views", str(views), "--frames", "3", "--step", "3", "--grid", "4"]
    models = ["--model", f"first={run}:first", "--model", f"mv={run}"]
    assert evaluate([*arguments, *models, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "1 clip without cameras left out: 6 are used." in printed
    assert "mv is not shown to be better than each control" in printed
    results = json.loads((tmp_path / "views.json").read_bytes())
    rows = results["rows"]
    assert [title for title in rows if title.startswith("first")] == ["first"]
    assert len([title for title in rows if title.startswith("mv")]) == 6
    assert rows["mv"]["mean"] != rows["first"]["mean"]
    assert {e["view"] for e in rows["mv"]["views"]} == {1, 2}
    # The cameras turn by 50 degrees in 8 steps; views are 3 and 6 steps from the anchor.
    angles = [e["angle"] for e in rows["mv"]["views"]]
    assert min(angles) == pytest.approx(50 * 3 / 8, abs=3)
    assert max(angles) == pytest.approx(50 * 6 / 8, abs=3)
    assert rows["never moves"]["by_angle"]["90+"] is None
    assert results["differences"]["mv less never moves"]["count"] == 6
    assert not any(title.startswith("first") for title in results["differences"])
    # Before the first step adapters change nothing, whatever they see.
    assert evaluate([*arguments, *models[:2], "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    alone = json.loads((tmp_path / "views.json").read_bytes())["rows"]
    values = {title: row["mean"] for title, row in alone.items() if "never" not in title}
    assert len(values) == 6
    assert {v for title, v in values.items() if "blank" not in title} == {values["first"]}
    assert values["first"] == rows["first"]["mean"]


def test_clips_without_cameras_are_encoded_without(run: Path, views: Path) -> None:
    model = load_evaluated_model("mv", str(run))
    assert cameras_of(held_out_clip(views, 6), SIDE) is None
    titles = [encoding.title for encoding in encodings_of(model, posed=False)]
    assert titles == ["", "pairs", "each view alone"]


def test_a_model_is_better_only_if_it_beats_every_control() -> None:
    better = Difference(0.3, 0.2, 9, 9, (-0.2, -0.1), "better")
    names = ("never moves", "base", "mv, blank images", "mv, wrong cameras", "mv, each view alone")
    compared = {f"mv less {name}": better for name in names}
    assert conclusion("mv", "base", compared).startswith("mv is better than: never moves, base")
    for name in names:
        one = compared | {f"mv less {name}": replace(better, verdict="worse")}
        assert f"({name}: worse)" in conclusion("mv", "base", one)


def test_a_broken_export_is_refused_in_one_sentence(
    run: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("step_00000002.safetensors", "step_00000002.json"):
        (tmp_path / name).write_bytes((run / "weights" / name).read_bytes())
    weights = tmp_path / "step_00000002.safetensors"
    arguments = ["views", str(views), "--model", f"mv={weights}", "--out", str(tmp_path)]
    assert evaluate(arguments) == 1
    assert "is a part of a multi-view model that cannot be loaded" in capsys.readouterr().err
