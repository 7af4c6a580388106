"""Sets of NAVI's photographs: cameras fit what crops show, every row is encoded as it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from shards.errors import SettingsError
from tests.helpers.evaluation import evaluate
from tests.helpers.multiview_run import export_multiview_run
from tests.helpers.navi_files import colour_features, write_navi
from tests.trainer.conftest import publish
from tests.trainer.multiview.conftest import scene
from trainer.evaluate.benchmarks.navi_data import (
    Crop,
    Photograph,
    list_photographs,
    read_crop,
    shown_camera,
)
from trainer.evaluate.benchmarks.navi_set_normals import (
    ENCODINGS,
    PhotographSets,
    list_sets,
    set_encodings,
    set_levels,
    train_and_score,
)
from trainer.evaluate.benchmarks.navi_sets import PAIRS, pair_features
from trainer.evaluate.benchmarks.settings import SetNormalsSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.features import ShownCameras, level_features
from trainer.evaluate.sets.normals import TOGETHER, encodings_together
from trainer.multiview.multiview_model import ray_map

SIZE = 60
"""Not a multiple of the patches' 8 px: crops are padded by 2 px on every side."""


@pytest.fixture(scope="module")
def navi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_navi(tmp_path_factory.mktemp("navi"), ("ball", "orb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    publish(out / "build", [scene(0)])
    return export_multiview_run(out / "run", out / "build", depth=4)


def pair_of(navi: Path) -> tuple[list[Photograph], list[Crop], ShownCameras]:
    """Two photographs of the orb, which is beside the optical axis, 35 degrees apart."""
    views = {view.name: view for view in list_photographs(navi, "wild_set")}
    pair = [views[f"orb/wild_set/{stem}"] for stem in ("000", "003")]
    crops = [read_crop(view, SIZE) for view in pair]
    intrinsics, poses = zip(*map(shown_camera, pair, crops), strict=True)
    return pair, crops, ShownCameras(torch.stack(intrinsics), torch.stack(poses))


def test_a_crops_camera_sees_every_point_at_its_pixel(navi: Path) -> None:
    _, crops, cameras = pair_of(navi)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for crop, k in zip(crops, cameras.intrinsics, strict=True):
        seen = crop.depth > 0
        points = crop.points[seen] @ k.T
        off = points[:, :2] / points[:, 2:] - torch.stack([x[seen], y[seen]], dim=-1)
        # The nearest pixel of the photograph is up to half of its pixels away.
        assert off.abs().max() < 0.6 * SIZE / len(crop.box)
        assert off.mean(dim=0).abs().max() < 0.05


def test_a_point_lies_on_its_rays_in_both_photographs(navi: Path) -> None:
    """X x d = m, with X in the first camera's axes, in units of the distance between both."""
    _, crops, cameras = pair_of(navi)
    (rays,) = ray_map(
        cameras.intrinsics[None],
        cameras.world_to_camera[None],
        (SIZE, SIZE),
        "largest_distance",
    )
    first, second = cameras.world_to_camera
    turned = first[:, :3] @ second[:, :3].T
    centre = first[:, 3] - turned @ second[:, 3]
    assert 0.25 < centre.norm() < 0.4  # 2 sin(35 / 2) times the distance of 0.5 m is 0.30 m
    for view, crop in enumerate(crops):
        seen = crop.depth > 0
        points = crop.points[seen]
        if view == 1:
            points = points @ turned.T + centre
        d, m = rays[view, :3, seen].T, rays[view, 3:, seen].T
        off = (torch.linalg.cross(points / centre.norm(), d) - m) * centre.norm()
        assert off.norm(dim=-1).median() < 1.5e-3  # metres: half a pixel is 1 mm


def test_each_row_is_encoded_as_it_says(navi: Path, run: Path) -> None:
    model = load_evaluated_model("mv", str(run))
    _, crops, cameras = pair_of(navi)
    images = torch.stack([crop.image for crop in crops])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    shown = pad((images / 255 - mean) / std, (2, 2, 2, 2))
    k = cameras.intrinsics.clone()
    k[:, :2, 2] += 2
    poses = cameras.world_to_camera

    @torch.no_grad()
    def encoded(images: Tensor, *given: Tensor) -> Tensor:
        assert model.multiview
        return model.multiview(images[None], *(values[None] for values in given))[0]

    expected = {
        "pairs": encoded(shown, k, poses),
        "pairs, no cameras": encoded(shown),
        "pairs, wrong cameras": encoded(shown, k, poses[[1, 0]]),
        "pairs, blank images": encoded(shown * 0, k, poses),
    }
    found = {e.title: pair_features(model, e, final_norm=True)(images, cameras) for e in PAIRS}
    assert list(found) == list(expected)
    for title, features in found.items():
        # Blank images are a grey of whole numbers, which is not quite the mean colour.
        limit = 0.08 if "blank" in title else 1e-5
        assert (features - expected[title]).abs().max() < limit, title
        if title != "pairs":
            assert (features - found["pairs"]).abs().max() > 0.1, title
    raw = pair_features(model, PAIRS[0], final_norm=False)(images, cameras)
    assert (raw - found["pairs"]).abs().max() > 0.1


@pytest.mark.slow
def test_the_command_shows_pairs_beside_single_images(
    navi: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stored(*models: str) -> dict[str, Any]:
        quick = ["--size", "48", "--every", "3", "--cell", "8", "--out", str(tmp_path)]
        assert evaluate(["navi", str(navi), *models, *quick, "--device", "cpu"]) == 0
        found: dict[str, Any] = json.loads((tmp_path / "navi.json").read_text())
        return found

    found = stored("--model", f"first={run}:first", "--model", f"mv={run}")
    rows = ["mv", *(f"mv, {encoding.title}" for encoding in PAIRS)]
    assert list(found["results"]) == ["first", *rows]
    compared = [f"{row} less" for row in found["differences"] if " less " not in row]
    assert compared == [f"{row} less" for row in rows]
    text = capsys.readouterr().out
    for row in ("mv, pairs less mv", "mv, pairs less mv, pairs, blank images"):
        (gain,) = {
            round(values["gain"], 9)
            for metric, values in found["differences"][row].items()
            if metric == "all, 30-60°"
        }
        ours, theirs = (
            found["results"][name]["by_angle"]["3DPoV"]["rows"]["all points"][2]
            for name in row.split(" less ")
        )
        assert gain == pytest.approx(ours - theirs)
        assert row in text
    # Before the first step adapters change nothing: company and cameras make no difference.
    start = stored("--model", f"mv={run}:first")["results"]
    recalls = [start[row]["recall_metres"] for row in rows[:-1]]
    assert recalls == [recalls[0]] * 4


QUICK = SetNormalsSettings(
    size=32, views=2, steps=25, rate=1e-2, hidden=8, snorm_gt="true", jitter=False, workers=0
)
"""The fixture has two collections of four photographs per object."""


def test_normals_are_those_of_the_ball_in_the_first_views_axes(navi: Path) -> None:
    _, test = list_sets(navi, QUICK)
    sets = PhotographSets(test, QUICK.model_copy(update={"size": 64}), train=False)
    images, normals, valid, _, poses = sets[1]
    assert images.shape == (2, 3, 64, 64)
    first = test[1][0]
    for view, photograph in enumerate(test[1]):
        assert poses[view, :, :3].numpy() == pytest.approx(photograph.rotation, abs=1e-6)
        points = read_crop(photograph, 64).points.double().numpy()
        inward = -(points - photograph.translation) @ photograph.rotation  # in the ball's axes
        expected = normalize(torch.from_numpy(inward @ first.rotation.T).movedim(-1, 0), dim=0)
        cosines = (normals[view] * expected).sum(dim=0).clamp(-1, 1)
        assert cosines[valid[view]].acos().rad2deg().median() < 3


def test_the_last_collections_of_each_object_are_tested_on(navi: Path) -> None:
    train, test = list_sets(navi, QUICK)
    names = [[[p.name for p in one] for one in part] for part in (train, test)]
    assert names[0][:2] == [
        ["ball/multiview-00-pixel_5/000", "ball/multiview-00-pixel_5/001"],
        ["ball/multiview-00-pixel_5/002", "ball/multiview-00-pixel_5/003"],
    ]
    assert {name.split("/")[1] for one in names[1] for name in one} == {"multiview-01-pixel_5"}
    assert [len(part) for part in names] == [4, 4]
    # Three do not fill two sets, and every second photograph leaves two.
    assert [len(p) for p in list_sets(navi, QUICK.model_copy(update={"views": 3}))] == [2, 2]
    assert [len(p) for p in list_sets(navi, QUICK.model_copy(update={"every": 2}))] == [2, 2]
    with pytest.raises(SettingsError, match="no collections with 5 photographs to train"):
        list_sets(navi, QUICK.model_copy(update={"views": 5}))


def test_the_probe_sees_a_set_as_its_row_says(navi: Path, run: Path) -> None:
    model = load_evaluated_model("mv", str(run))
    _, crops, cameras = pair_of(navi)
    images = torch.stack([crop.image for crop in crops])
    found = {e.title: set_levels(model, e)(images, cameras) for e in ENCODINGS}
    for title, levels in found.items():
        assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 96)] * 4
        if title:
            assert (levels[3] - found[""][3]).abs().max() > 0.05, title
    # The last level without its CLS token is what pairs have.
    pairs = pair_features(model, PAIRS[0], final_norm=False)(images, cameras)
    torch.testing.assert_close(found[""][3][..., :48], pairs, rtol=0, atol=1e-5)
    one = set_levels(model, ENCODINGS[0])(images[1:], cameras.only(1))
    torch.testing.assert_close(found["each view alone"][2][1:], one[2], rtol=0, atol=1e-5)
    apart = level_features(model)(images)
    assert (found["each view alone"][2] - apart[2]).abs().max() > 0.02  # it knows no camera


def test_a_model_without_rays_has_no_rows_that_differ_in_cameras_alone(run: Path) -> None:
    model = load_evaluated_model("mv", str(run))
    assert model.multiview
    assert set_encodings(model) == ENCODINGS
    assert encodings_together(model) == TOGETHER
    model.multiview.adapters.rays = None
    assert [e.title for e in set_encodings(model)] == ["", "each view alone"]
    assert [e.title for e in encodings_together(model)] == ["together"]


@pytest.mark.slow
def test_features_that_know_the_axes_of_the_first_view_tell_normals(navi: Path) -> None:
    """A colour is a point of the ball, and so a normal in its axes; a pose turns it."""

    def known(images: Tensor, cameras: ShownCameras) -> Sequence[Tensor]:
        colours = colour_features(images, 4)
        return [colours @ cameras.world_to_camera[0, :, :3].T] * 4

    def unknown(images: Tensor, cameras: ShownCameras) -> Sequence[Tensor]:
        return [colour_features(images, 4)] * 4

    results = [train_and_score(levels, 4, navi, QUICK) for levels in (known, unknown)]
    assert results[0].figures["rmse"] < results[1].figures["rmse"] - 10
    assert len(results[0].images) == 8
    assert results[0].digest == results[1].digest
    assert "normals in the first view's axes by a DPT probe, as true, sets of 2" in str(results[0])


@pytest.mark.slow
def test_the_command_trains_a_probe_for_each_row(navi: Path, run: Path, tmp_path: Path) -> None:
    quick = ["--size", "32", "--views", "2", "--steps", "2", "--hidden", "8", "--workers", "0"]
    models = ["--model", f"first={run}:first", "--model", f"mv={run}", "--device", "cpu"]
    arguments = ["navi-set-normals", str(navi), *models, *quick, "--out", str(tmp_path)]
    assert evaluate(arguments) == 0
    found = json.loads((tmp_path / "navi-set-normals.json").read_text())
    rows = ["mv", "mv, each view alone", "mv, no cameras", "mv, blank images"]
    assert list(found["results"]) == ["first", *rows]
    assert list(found["differences"]) == [*rows, *(f"mv less {row}" for row in rows[1:])]
    assert found["differences"]["mv"]["normals, 30°"]["count"] == 8
    assert found["results"]["mv"]["sets"] == 4
