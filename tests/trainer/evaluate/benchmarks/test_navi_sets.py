"""NAVI's pairs as sets: cameras fit what crops show, and every row is encoded as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.helpers.evaluation import evaluate
from tests.helpers.multiview_run import export_multiview_run
from tests.helpers.navi_files import write_navi
from tests.trainer.conftest import publish
from tests.trainer.multiview.conftest import scene
from trainer.evaluate.benchmarks.navi_data import (
    Crop,
    Photograph,
    list_photographs,
    read_crop,
    shown_camera,
)
from trainer.evaluate.benchmarks.navi_sets import PAIRS, pair_features
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.features import ShownCameras
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
    return export_multiview_run(out / "run", out / "build")


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
        limit = 0.05 if "blank" in title else 1e-5
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
        quick = ["--size", "48", "--every", "2", "--cell", "8", "--out", str(tmp_path)]
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
