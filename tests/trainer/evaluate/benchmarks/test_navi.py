"""NAVI: geometry is read right, recall equals plain NumPy's, pairs are the same everywhere."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards.errors import PretrackError, SettingsError
from tests.helpers.changing import changed
from tests.helpers.navi_files import (
    ANGLES,
    DISTANCE,
    RADIUS,
    colour_features,
    random_features,
    write_navi,
)
from trainer.evaluate.benchmarks.navi import (
    BINS,
    NaviResult,
    PairRecalls,
    Recalls,
    choose_pairs,
    evaluate_navi,
    luminance_distance,
    nearest_with_ratio,
    project,
)
from trainer.evaluate.benchmarks.navi_data import (
    list_photographs,
    read_crop,
    resize_nearest,
    rotation_of,
    unproject,
)
from trainer.evaluate.benchmarks.settings import NaviSettings
from trainer.evaluate.geometry import angle_between

SMALL = NaviSettings(size=64, matches=40, every=1)


@pytest.fixture(scope="session")
def navi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_navi(tmp_path_factory.mktemp("navi"))


@pytest.mark.parametrize("stem", ["000", "001", "004"])
def test_places_seen_lie_on_the_object(navi: Path, stem: str) -> None:
    """Depth, focal length, centre and pose agree: every pixel's point is on the ball of 10 cm."""
    view = next(
        view for view in list_photographs(navi, "wild_set") if view.name == f"orb/wild_set/{stem}"
    )
    crop = read_crop(view, 64)
    seen = crop.depth > 0
    on_object = (crop.points[seen].double().numpy() - view.translation) @ view.rotation
    np.testing.assert_allclose(
        np.linalg.norm(on_object, axis=1), RADIUS, atol=5e-3
    )  # nearest neighbours: half a pixel is 1 mm
    assert 0.7 < seen.float().mean() < 0.9  # a disk fills 0.785 of its square
    colours = crop.image[:, seen].T.double().numpy()
    np.testing.assert_allclose(
        np.median(np.abs(colours - (on_object / RADIUS * 100 + 127))), 0, atol=4
    )


def test_metres_and_pixels(navi: Path) -> None:
    view = list_photographs(navi, "wild_set")[0]
    crop = read_crop(view, 64)
    assert crop.image.shape == (3, 64, 64)
    assert crop.image.dtype == torch.uint8
    assert crop.depth[32, 32].item() == pytest.approx(DISTANCE - RADIUS, abs=1e-3)
    ends = [crop.points[32, column] for column in (10, 50)]
    across = (crop.focal * (ends[1] / ends[1][2] - ends[0] / ends[0][2]))[0]
    assert across.item() == pytest.approx(
        40, abs=1.5
    )  # the crop's focal length is in the crop's pixels


def test_smaller_files_of_probe3d_are_used(navi: Path, tmp_path: Path) -> None:
    root = shutil.copytree(navi, tmp_path / "copy")
    folder = root / "ball" / "wild_set" / "images"
    Image.open(folder / "000.jpg").point(lambda value: 0).save(folder / "downsampled_000.jpg")
    assert read_crop(list_photographs(root, "wild_set")[0], 64).image.max() < 5
    assert len(list_photographs(root, "wild_set")) == len(list_photographs(navi, "wild_set"))


def test_large_photographs_keep_their_geometry(navi: Path, tmp_path: Path) -> None:
    """A photograph larger than 1024 px is shrunk before anything else."""
    root = shutil.copytree(navi, tmp_path / "copy")
    folder = root / "ball" / "wild_set"
    small = read_crop(list_photographs(root, "wild_set")[0], 64)
    for part, name, how in (("images", "000.jpg", 2), ("depth", "000.png", 0)):
        image = Image.open(folder / part / name)
        image.resize((12 * 128, 12 * 96), how).save(folder / part / name)
    annotations = json.loads((folder / "annotations.json").read_text())
    annotations[0]["image_size"] = [12 * 96, 12 * 128]
    annotations[0]["camera"]["focal_length"] *= 12
    (folder / "annotations.json").write_text(json.dumps(annotations))
    large = read_crop(list_photographs(root, "wild_set")[0], 64)
    assert (large.points - small.points).norm(dim=-1).median().item() < 0.004
    assert large.focal == pytest.approx(small.focal, rel=0.05)


def test_angles_are_those_of_the_quaternions() -> None:
    rng = np.random.default_rng(0)
    for first, second in rng.normal(size=(50, 2, 4)):
        unit = [q / np.linalg.norm(q) for q in (first, second)]
        expected = math.degrees(2 * math.acos(min(1.0, abs(float(unit[0] @ unit[1])))))
        assert angle_between(rotation_of(first), rotation_of(second)) == pytest.approx(
            expected, abs=1e-5
        )
    turned = [rotation_of((math.cos(a / 2), 0, 0, math.sin(a / 2))) for a in np.radians([10, 75])]
    assert angle_between(*turned) == pytest.approx(65)
    np.testing.assert_allclose(
        turned[0] @ [1, 0, 0],
        [math.cos(math.radians(10)), math.sin(math.radians(10)), 0],
        atol=1e-12,
    )


def test_pairs(navi: Path) -> None:
    views = list_photographs(navi, "wild_set")
    pairs, skipped = choose_pairs(views, SMALL)
    assert (len(pairs), skipped) == (2 * len(ANGLES), 0)
    for first, second in pairs:
        assert first.folder == second.folder
        assert first.stem != second.stem
        angle = abs(ANGLES[int(first.stem)] - ANGLES[int(second.stem)])
        assert angle_between(first.rotation, second.rotation) == pytest.approx(angle, abs=1e-6)
        assert 0 < angle <= 120
    shuffled = [views[i] for i in np.random.default_rng(0).permutation(len(views))]
    assert choose_pairs(shuffled, SMALL)[0] == pairs
    assert choose_pairs(views, changed(SMALL, every=4))[0] == pairs[::4]
    assert choose_pairs(views, changed(SMALL, seed=9))[0] != pairs
    assert len(choose_pairs(views, changed(SMALL, pairs=5))[0]) == 5
    near, alone = choose_pairs(views, changed(SMALL, farthest=30))
    assert (len(near), alone) == (12, 2)  # the one at 160 degrees is 60 from the next


def test_features_that_know_the_place(navi: Path) -> None:
    """They find what both photographs show: nearly all at small angles, less at large ones."""
    result = evaluate_navi(partial(colour_features, patch=4), 4, navi, SMALL)
    (near, _), (middle, _), _, (far, _) = result.by_angle(BINS["3DPoV"], "all")
    assert near > 90
    assert far < middle
    assert [count for _, count in result.by_angle(BINS["3DPoV"])] == [
        sum(low <= pair.angle < high for pair in result.pairs)
        for low, high in ((0, 15), (15, 30), (30, 60), (60, 120))
    ]


def test_features_that_know_nothing_are_at_chance(navi: Path) -> None:
    result = evaluate_navi(partial(random_features, patch=4), 4, navi, SMALL)
    assert (
        result.recall("all", 0.02) < 4
    )  # a cap of 2 cm is 1 % of the ball and 2 % of the half that is seen
    assert result.recall("all", 0.05) < 20


def test_recall_is_that_of_plain_numpy(navi: Path) -> None:
    """With a patch for every point of the grid; each step from the definitions."""
    result = evaluate_navi(partial(random_features, patch=4), 4, navi, SMALL)
    oracle = evaluate_navi(partial(colour_features, patch=4), 4, navi, SMALL)
    views = {view.name: view for view in list_photographs(navi, "wild_set")}
    for features, scores in ((random_features, result.pairs), (colour_features, oracle.pairs)):
        for score in scores:
            pair = [views[score.first], views[score.second]]
            crops = [read_crop(view, 64) for view in pair]
            poses = [
                np.block(
                    [[v.rotation, v.translation[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]
                )
                for v in pair
            ]
            maps = [features(crop.image[None], 4)[0].double().numpy() for crop in crops]
            points = [crop.points[::4, ::4].double().numpy() for crop in crops]
            seen = [p[..., 2] > 0 for p in points]
            vectors = [
                (m / np.linalg.norm(m, axis=-1, keepdims=True))[s]
                for m, s in zip(maps, seen, strict=True)
            ]
            distances = 1 - vectors[0] @ vectors[1].T
            order = np.argsort(distances, axis=1)
            ordered = np.take_along_axis(distances, order, axis=1)
            best = np.argsort(ordered[:, 0] / np.maximum(ordered[:, 1], 1e-9))[:40]
            there = np.concatenate([points[0][seen[0]], np.ones((len(order), 1))], axis=1)
            moved = (poses[1] @ np.linalg.inv(poses[0]) @ there.T).T[:, :3]
            found = points[1][seen[1]][order[:, 0]]
            apart = np.linalg.norm(moved - found, axis=1)
            pixels = np.linalg.norm(
                (moved / moved[:, 2:] - found / found[:, 2:]) * crops[1].focal, axis=1
            )
            assert score.points == len(apart)
            np.testing.assert_allclose(
                score.all.metres, [(apart < m).mean() for m in (0.01, 0.02, 0.05)], atol=0.02
            )
            np.testing.assert_allclose(
                score.all.pixels, [(pixels < p).mean() for p in (5, 25, 50)], atol=0.02
            )
            if features is random_features:  # the colours of a smooth ball have ties
                np.testing.assert_allclose(
                    score.all.metres, [(apart < m).mean() for m in (0.01, 0.02, 0.05)], atol=1e-9
                )
                np.testing.assert_allclose(
                    score.best.metres,
                    [(apart[best] < m).mean() for m in (0.01, 0.02, 0.05)],
                    atol=1e-9,
                )
                np.testing.assert_allclose(
                    score.best.pixels, [(pixels[best] < p).mean() for p in (5, 25, 50)], atol=1e-9
                )


def test_nearest_with_ratio_in_parts() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, candidates = (
        torch.nn.functional.normalize(torch.randn(n, 8, generator=rng), dim=1) for n in (5000, 700)
    )
    indices, weights = nearest_with_ratio(queries, candidates)
    distances = (1 - queries.double() @ candidates.double().T).sort(dim=1)
    assert torch.equal(indices, distances.indices[:, 0])
    torch.testing.assert_close(
        weights.double(), 1 - distances.values[:, 0] / distances.values[:, 1], atol=1e-4, rtol=0
    )


def test_patches_that_do_not_fill_the_image(navi: Path) -> None:
    result = evaluate_navi(
        partial(colour_features, patch=14), 14, navi, SMALL
    )  # 64 px are filled up to 70
    assert result.by_angle(BINS["3DPoV"], "all")[0][0] > 70
    with pytest.raises(
        SettingsError,
        match="16x16 features do not fit images of 64x64 pixels in patches of 14 pixels",
    ):
        evaluate_navi(partial(colour_features, patch=4), 14, navi, SMALL)


def made(angle: float, light: float, recall: float) -> PairRecalls:
    some = Recalls((0.0, recall, 1.0), (0.0, recall, 1.0))
    return PairRecalls(
        f"a/{angle}-{light}",
        "b",
        angle,
        light,
        9,
        some,
        replace(some, metres=(0.0, recall / 2, 1.0)),
    )


def test_bins_and_terciles() -> None:
    pairs = [
        made(15, 0.1, 1.0),
        made(16, 0.2, 0.5),
        made(29.9, 0.9, 0.0),
        made(30, 0.3, 1.0),
        made(119, 0.1, 0.3),
        made(120, 0.1, 0.9),
    ]
    result = NaviResult(SMALL, 4, tuple(pairs), 2, "abc")
    bins = result.by_angle(BINS["3DPoV"])
    assert [count for _, count in bins] == [0, 3, 1, 1]
    assert math.isnan(bins[0][0])
    assert [recall for recall, _ in bins[1:]] == pytest.approx([50, 100, 30])
    assert [recall for recall, _ in result.by_angle(BINS["3DPoV"], "all")[1:]] == pytest.approx(
        [25, 50, 15]
    )
    assert [recall for recall, _ in result.by_angle(BINS["Probe3D"])[:2]] == pytest.approx(
        [50, 100]
    )
    assert result.by_angle(BINS["3DPoV"], light="similar")[1] == (100, 1)
    assert result.by_angle(BINS["3DPoV"], light="different")[1] == (0, 1)
    assert result.recall("best") == pytest.approx(100 * np.mean([1, 0.5, 0, 1, 0.3, 0.9]))
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["by_angle"]["3DPoV"]["pairs"] == [0, 3, 1, 1]
    assert stored["by_angle"]["3DPoV"]["rows"]["all points"][:2] == [None, 25]
    assert stored["skipped"] == 2
    printed = str(result)
    assert "6 pairs (2 skipped), list abc" in printed
    assert "60-120°" in printed
    assert "60-90°" in printed


def test_light(navi: Path) -> None:
    crop = read_crop(list_photographs(navi, "wild_set")[0], 64)
    darker, dark = (
        replace(crop, image=(crop.image * gain).to(torch.uint8)) for gain in (0.95, 0.4)
    )
    assert luminance_distance(crop, crop) == 0
    assert 0 < luminance_distance(crop, darker) < luminance_distance(crop, dark) <= 2
    luma = (
        crop.image.numpy().transpose(1, 2, 0)[crop.depth.numpy() > 0] * (0.299, 0.587, 0.114)
    ).sum(axis=1)
    histograms = [
        np.histogram(luma * gain, bins=32, range=(0, 256))[0] / len(luma) for gain in (1, 0.4)
    ]
    assert luminance_distance(crop, dark) == pytest.approx(
        np.abs(histograms[0] - histograms[1]).sum(), abs=0.1
    )
    background = replace(crop, image=torch.where(crop.depth > 0, crop.image, 0).to(torch.uint8))
    assert luminance_distance(crop, background) == 0


def test_both_spellings_of_multiview(navi: Path, tmp_path: Path) -> None:
    old = write_navi(tmp_path / "old", joint="_")
    assert len(list_photographs(old, "multiview")) == len(list_photographs(navi, "multiview")) == 16
    assert {view.folder.name for view in list_photographs(old, "multiview")} == {
        "multiview_00-pixel_5",
        "multiview_01-pixel_5",
    }


def test_what_is_missing_is_said_in_one_sentence(navi: Path, tmp_path: Path) -> None:
    def refused(root: Path, message: str) -> None:
        with pytest.raises(PretrackError, match=message):
            evaluate_navi(partial(colour_features, patch=4), 4, root, SMALL)

    refused(
        tmp_path / "none", "there is no folder .*none: fetch NAVI .* from navidataset.github.io"
    )
    refused(tmp_path, r"is not NAVI as it unpacks: .*wild_set is missing")
    root = shutil.copytree(navi, tmp_path / "copy")
    depth = root / "ball" / "wild_set" / "depth" / "000.png"
    Image.fromarray(np.zeros((96, 128), np.uint16)).save(depth)
    refused(root, "the middle of ball/wild_set/000 shows no pixel of the object")
    Image.fromarray(np.zeros((96, 12), np.uint16)).save(depth)
    refused(root, "depth and image of ball/wild_set/000 are")
    depth.unlink()
    refused(root, "000.png is missing")
    depth.write_bytes(b"no image")
    refused(root, "000.png cannot be read as an image")
    file = root / "ball" / "wild_set" / "annotations.json"
    first = json.loads(file.read_text())[0]
    changes: list[tuple[str, object]] = [
        ("filename", 3),
        ("image_size", [0, 0]),
        ("camera", {}),
        ("camera", first["camera"] | {"t": [0, 0]}),
    ]
    for field, wrong in changes:
        file.write_text(json.dumps([first | {field: wrong}]))
        refused(root, "annotations.json does not describe photographs of NAVI")


def test_resizing_by_nearest_neighbours() -> None:
    image = torch.arange(6.0).reshape(2, 3)
    assert (
        resize_nearest(image, 4, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    )
    assert resize_nearest(image, 1, 2).tolist() == [[0, 1]]


def test_the_ratio_compares_the_nearest_with_the_second_nearest() -> None:
    """Cosine distances of 0.2, 0.4 and 2: a ratio of 1 - 0.2 / 0.4."""
    query = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.8, 0.6]])
    indices, ratios = nearest_with_ratio(query, candidates)
    assert indices.tolist() == [2]
    assert ratios.item() == pytest.approx(0.5)


def test_a_point_is_projected_by_its_depth() -> None:
    points = torch.tensor([[0.1, -0.2, 0.5], [0.0, 0.3, 3.0]])
    assert project(points, 100).flatten().tolist() == pytest.approx([20, -40, 0, 10])
    depth = torch.full((2, 3), 2.0)
    seen = unproject(depth, focal=4.0, principal=(1.5, 1.0))
    assert seen[0, 0].tolist() == [-0.5, -0.25, 2]  # pixel (0, 0) is seen at (0.5, 0.5)
    assert seen[1, 2].tolist() == [0.5, 0.25, 2]
