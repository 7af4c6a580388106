"""SPair-71k: recall equals plain NumPy's, oracles find all, pairs are the same everywhere."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shards.errors import PretrackError, SettingsError
from tests.helpers.spair_files import colour_features, noisy_features, random_features, write_spair
from trainer.evaluate.benchmarks.settings import Occluded, Readout, SpairSettings
from trainer.evaluate.benchmarks.spair import (
    PASSES,
    PairErrors,
    SpairResult,
    evaluate_spair,
    occluder,
    patch_positions,
)
from trainer.evaluate.features import padding

SIZE = 100


@pytest.fixture(scope="session")
def spair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spair(tmp_path_factory.mktemp("spair"))


@pytest.mark.parametrize("readout", ["probe3d", "centre"])
def test_features_that_know_the_place_find_every_keypoint(spair: Path, readout: Readout) -> None:
    result = evaluate_spair(
        partial(colour_features, patch=4), 4, spair, SpairSettings(size=SIZE, readout=readout)
    )
    assert [result.recall(which) for which in PASSES] == [100.0] * 4
    assert result.keypoints("All") > 50


def test_features_that_know_nothing_are_at_chance(spair: Path) -> None:
    result = evaluate_spair(partial(random_features, patch=4), 4, spair, SpairSettings(size=SIZE))
    assert 0 <= result.recall("All") < 10  # a disk of 0.08 of the image is 2 % of it


@pytest.mark.parametrize(
    ("readout", "patch"), [("probe3d", 4), ("centre", 4), ("probe3d", 14), ("centre", 14)]
)
def test_recall_is_that_of_plain_numpy(spair: Path, readout: Readout, patch: int) -> None:
    features = partial(noisy_features, patch=patch)
    result = evaluate_spair(features, patch, spair, SpairSettings(size=SIZE, readout=readout))
    total: dict[str, list[float]] = {"cat": [], "bus": []}
    for name in result.passes["All"]:
        pair = json.loads((spair / "PairAnnotation" / "test" / f"{name}.json").read_text())
        errors = plain_errors(spair, pair, features, patch, readout)
        np.testing.assert_allclose(result.pairs[name].errors, errors, atol=2e-5)
        total[pair["category"]] += errors
    recalls = {
        category: 100 * np.mean(np.array(errors) < 0.1) for category, errors in total.items()
    }
    assert result.recall("All") == pytest.approx(np.mean(list(recalls.values())))
    assert result.recall("All", "cat") == pytest.approx(recalls["cat"])
    assert 5 < result.recall("All") < 95  # or else the comparison above compares nothing
    for which in PASSES:
        assert np.mean(list(result.by_item()[f"recall, {which}"].values())) == pytest.approx(
            result.recall(which)
        )


def plain_errors(
    root: Path, pair: dict[str, object], features: object, patch: int, readout: Readout
) -> list[float]:
    """The errors of a pair, from the definition: one keypoint, one patch at a time."""
    maps, points = [], []
    for image in str(pair["filename"]).split(":")[0].split("-")[1:]:
        picture = np.array(Image.open(root / "JPEGImages" / str(pair["category"]) / f"{image}.jpg"))
        side = max(picture.shape[:2])
        square = np.full((side, side, 3), 255, np.uint8)
        square[: picture.shape[0], : picture.shape[1]] = picture
        resized = np.array(Image.fromarray(square).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        found = features(torch.from_numpy(resized).movedim(-1, 0)[None])[0].numpy()  # type: ignore[operator]
        maps.append(found / np.linalg.norm(found, axis=-1, keepdims=True))
        kps = json.loads(
            (root / "ImageAnnotation" / str(pair["category"]) / f"{image}.json").read_text()
        )["kps"]
        points.append(
            [
                None if kps[str(i)] is None else np.array(kps[str(i)]) * SIZE / side
                for i in range(len(kps))
            ]
        )
    cells, before = maps[0].shape[0], (maps[0].shape[0] * patch - SIZE) // 2
    box, imsize = pair["trg_bndbox"], pair["trg_imsize"]
    scale = max(box[2] - box[0], box[3] - box[1]) / max(imsize[:2])  # type: ignore[index]
    errors = []
    for kept in zip(*points, strict=True):
        if kept[0] is None or kept[1] is None:
            continue
        source, target = np.floor(kept) if readout == "probe3d" else np.array(kept)
        at = source / SIZE * (cells - 1)
        if readout == "centre":
            at = np.clip((source + before) / patch - 0.5, 0, cells - 1)
        low = np.minimum(np.floor(at).astype(int), cells - 2)
        u, v = at - low
        m, (x, y) = maps[0], low
        feature = (1 - v) * ((1 - u) * m[y, x] + u * m[y, x + 1]) + v * (
            (1 - u) * m[y + 1, x] + u * m[y + 1, x + 1]
        )
        row, column = np.unravel_index(np.argmax(maps[1] @ feature), (cells, cells))
        cell = np.array([column, row])
        place = cell / cells if readout == "probe3d" else ((cell + 0.5) * patch - before) / SIZE
        errors.append(float(np.linalg.norm(place - target / SIZE) / scale))
    return errors


@pytest.mark.parametrize(
    ("patch", "corner", "centre", "ceiling"),
    [(16, 0.0153, 0.0076, math.pi / 4), (14, 0.0141, 0.0067, 0.824)],
)
def test_a_perfect_matcher_has_a_ceiling(
    patch: int, corner: float, centre: float, ceiling: float
) -> None:
    """Even a perfect matcher is off: at 800 px by `corner` or `centre` of the image.

    On objects of a fifth of the image it finds four keypoints of five if a patch stands for its
    corner, and all if it stands for its centre.
    """
    before, cells = padding(800, patch)[0], -(-800 // patch)
    points = torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0))
    column, row = ((points * 800 + before) / patch).long().unbind(1)
    off = {
        readout: (patch_positions(cells, 800, patch, readout)[row * cells + column] - points).norm(
            dim=1
        )
        for readout in ("probe3d", "centre")
    }
    assert off["probe3d"].mean().item() == pytest.approx(corner, abs=1e-4)
    assert off["centre"].mean().item() == pytest.approx(centre, abs=1e-4)
    assert (off["probe3d"] < 0.1 * 0.2).float().mean().item() == pytest.approx(ceiling, abs=0.003)
    assert (off["centre"] < 0.1 * 0.2).all()


def test_pairs_do_not_depend_on_the_file_system(spair: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    for part in sorted(spair.rglob("*.json"), reverse=True) + sorted(spair.rglob("*.jpg")):
        (other / part.relative_to(spair)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(part, other / part.relative_to(spair))
    settings = SpairSettings(size=SIZE, pairs=3)
    first, second = (
        evaluate_spair(partial(colour_features, patch=20), 20, root, settings)
        for root in (spair, other)
    )
    assert first == second
    assert [len(first.passes[which]) for which in PASSES] == [6, 6, 6, 6]  # three a class
    assert (
        evaluate_spair(
            partial(colour_features, patch=20), 20, spair, SpairSettings(size=SIZE, pairs=2)
        ).digest
        != first.digest
    )
    assert {first.pairs[name].viewpoint for name in first.passes["M"]} == {1}
    assert list(first.paper_rows()) == ["spair"]
    val = evaluate_spair(
        partial(colour_features, patch=20), 20, spair, SpairSettings(size=SIZE, split="val")
    )
    assert val.paper_rows() == {}  # papers report the test split


def test_all_is_a_pass_of_its_own(spair: Path) -> None:
    result = evaluate_spair(
        partial(colour_features, patch=20), 20, spair, SpairSettings(size=SIZE, pairs=4)
    )
    assert set(result.passes["All"]) != set(result.passes["S"]) | set(result.passes["M"]) | set(
        result.passes["L"]
    )
    assert set(result.pairs) == {name for which in PASSES for name in result.passes[which]}


@pytest.mark.parametrize("occluded", ["one", "both"])
def test_occlusion_is_scored_on_the_keypoints_that_stay_visible(
    spair: Path, occluded: Occluded
) -> None:
    features = partial(noisy_features, patch=4, noise=0.02)
    settings = SpairSettings(size=SIZE, occluded=occluded)
    clean, hidden = (
        evaluate_spair(features, 4, spair, s) for s in (SpairSettings(size=SIZE), settings)
    )
    assert clean.digest == hidden.digest
    assert 0.3 * clean.keypoints("All") < hidden.keypoints("All") < clean.keypoints("All")
    for name, score in hidden.pairs.items():
        assert len(score.errors) == len(score.clean)
        assert set(score.clean) <= set(clean.pairs[name].errors)
    assert any(score.errors != score.clean for score in hidden.pairs.values())
    assert "not occluded" in str(hidden)
    assert "not occluded" not in str(clean)


def test_occluders_are_a_tenth_to_a_third_of_the_box() -> None:
    shares, boxes = [], set()
    for number in range(200):
        left, top, right, bottom = occluder(f"pair {number}", number % 2, (100, 200, 500, 400))
        assert 100 <= left < right <= 500
        assert 200 <= top < bottom <= 400
        shares.append((right - left) * (bottom - top) / (400 * 200))
        boxes.add((left, top, right, bottom))
    assert min(shares) > 0.095
    assert max(shares) < 0.305
    assert max(shares) - min(shares) > 0.15
    assert len(boxes) == 200
    assert occluder("pair 3", 1, (100, 200, 500, 400)) in boxes


def test_results_as_table_and_json(spair: Path) -> None:
    result = evaluate_spair(partial(noisy_features, patch=4), 4, spair, SpairSettings(size=SIZE))
    stored = json.loads(json.dumps(result.to_json()))
    assert stored["recall"]["All"] == pytest.approx(result.recall("All"))
    assert stored["digest"] == result.digest
    listed = [stored["pairs"][name] for name in stored["passes"]["All"] if name.endswith(":cat")]
    found = [pair["found"] for pair in listed]
    keypoints = [pair["keypoints"] for pair in listed]
    assert stored["classes"]["cat"]["All"] == pytest.approx(100 * sum(found) / sum(keypoints))
    printed = str(result)
    assert f"{result.recall('All'):.2f}" in printed
    assert result.digest in printed
    assert [row[0] for row in result.rows()] == ["mean over classes", "bus", "cat"]


def test_a_class_without_keypoints_does_not_count(spair: Path, tmp_path: Path) -> None:
    root = shutil.copytree(spair, tmp_path / "copy")
    for file in (root / "ImageAnnotation" / "bus").glob("*.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "kps": dict.fromkeys(values["kps"])}))
    result = evaluate_spair(partial(colour_features, patch=4), 4, root, SpairSettings(size=SIZE))
    assert math.isnan(result.recall("All", "bus"))
    assert result.recall("All") == 100
    (row,) = [line.split() for line in str(result).splitlines() if line.strip().startswith("bus")]
    assert row == ["bus", "-", "-", "-", "-"]


def test_what_is_missing_is_said_in_one_sentence(spair: Path, tmp_path: Path) -> None:
    def refused(root: Path, message: str, settings: SpairSettings | None = None) -> None:
        with pytest.raises(PretrackError, match=message):
            evaluate_spair(
                partial(colour_features, patch=4), 4, root, settings or SpairSettings(size=SIZE)
            )

    refused(
        tmp_path / "none",
        r"there is no folder .*none: fetch SPair-71k .*Flickr.* from cvlab.postech.ac.kr",
    )
    refused(tmp_path, r"is not SPair-71k as it unpacks: .*JPEGImages is missing")
    root = shutil.copytree(spair, tmp_path / "copy")
    file = next((root / "PairAnnotation" / "test").glob("*.json"))
    file.write_text("{}")
    refused(root, rf"{file.name} does not describe a pair")
    file.write_text("{")
    refused(root, rf"{file.name} is not valid JSON")
    file.write_text('{"filename": 3}')
    refused(root, rf"{file.name} does not describe a pair")
    file.unlink()
    keypoints = root / "ImageAnnotation" / "cat" / "2008_000001.json"
    for text in (
        "{}",
        "[]",
        '{"kps": {"1": [3, 4]}}',
        '{"kps": {"0": [3]}}',
        '{"kps": {"0": ["left", "top"]}}',
    ):
        keypoints.write_text(text)
        refused(root, r"2008_000001.json does not describe the keypoints of an image")
    (root / "JPEGImages" / "cat" / "2008_000001.jpg").unlink()
    refused(root, r"2008_000001.jpg is missing")
    shutil.rmtree(root / "PairAnnotation" / "val")
    refused(root, r"PairAnnotation/val holds no pairs", SpairSettings(split="val"))


def test_features_of_another_patch_are_refused(spair: Path) -> None:
    with pytest.raises(
        SettingsError,
        match="25x25 features do not fit images of 100x100 pixels in patches of 16 pixels",
    ):
        evaluate_spair(
            lambda images: colour_features(images, 4), 16, spair, SpairSettings(size=SIZE)
        )


def test_images_are_encoded_once(spair: Path) -> None:
    seen: list[int] = []

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return colour_features(images, 20)

    result = evaluate_spair(counted, 20, spair, SpairSettings(size=SIZE))
    assert sum(seen) == result.images == 8


def test_recall_is_a_mean_over_classes_and_not_over_pairs() -> None:
    """Cats: 3 of 4 keypoints. Buses: 1 of 2; a distance of 0.1 is too far."""

    def pair(category: str, *errors: float) -> PairErrors:
        return PairErrors(category, 0, errors, clean=(0.0,) * len(errors))

    pairs = {
        "a": pair("cat", 0.0, 0.05, 0.2),
        "b": pair("cat", 0.09),
        "c": pair("bus", 0.1, 0.01),
        "d": pair("dog"),
    }
    passes = {"S": ("a", "b", "c", "d"), "M": ("a",), "L": (), "All": ("a", "c")}
    result = SpairResult(SpairSettings(), 14, passes, pairs, images=8, digest="abc")
    assert result.recall("S", "cat") == 75
    assert result.recall("S", "bus") == 50
    assert math.isnan(result.recall("S", "dog"))
    assert result.recall("S") == pytest.approx(62.5)
    assert result.recall("M") == pytest.approx(200 / 3)
    assert math.isnan(result.recall("L"))
    assert result.recall("S", clean=True) == 100
    contributions = result.by_item()["recall, S"]
    assert contributions == pytest.approx({"a": 100, "b": 50, "c": 100, "d": 0})
    assert sum(contributions.values()) / 4 == pytest.approx(62.5)
    assert result.keypoints("S") == 6
