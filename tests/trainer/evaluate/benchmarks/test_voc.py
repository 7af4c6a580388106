"""PASCAL VOC: IoU equals NumPy's; perfect features segment perfectly, and noise does not."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards.errors import PretrackError, SettingsError
from tests.helpers.changing import changed
from tests.helpers.voc_files import colour_features, random_features, write_voc
from trainer.evaluate.benchmarks.settings import ClusteringSettings, RetrievalSettings
from trainer.evaluate.benchmarks.voc import (
    class_iou,
    evaluate_clustering,
    evaluate_retrieval,
    many_to_one,
    one_to_one,
    patch_labels,
    retrieve,
)
from trainer.evaluate.benchmarks.voc_data import CLASSES

CLUSTER = ClusteringSettings(size=64, grid=16, clusters=(21, 60), components=8)
RETRIEVE = RetrievalSettings(size=64, memory=600, memory_split="train")


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"))


def test_clusters_of_features_that_know_the_class(voc: Path) -> None:
    """Squares are whole patches; 60 clusters suffice for the mixed colours of the enlarged grid."""
    result = evaluate_clustering(partial(colour_features, patch=4), 4, voc, CLUSTER)
    assert result.miou["60 clusters, many to one"] > 99
    assert math.isnan(result.iou["60 clusters, many to one"]["sofa"])
    assert result.images == 8
    noise = evaluate_clustering(partial(random_features, patch=4), 4, voc, CLUSTER)
    assert noise.miou["60 clusters, many to one"] < 20
    assert noise.miou["21 clusters, one to one"] < 20


def test_retrieval_with_features_that_know_the_class(voc: Path) -> None:
    result = evaluate_retrieval(partial(colour_features, patch=4), 4, voc, RETRIEVE)
    (way,) = result.miou
    assert way == "retrieval from 600 patches of train"
    assert result.miou[way] > 85  # borders are blurred when scores are enlarged
    noise = evaluate_retrieval(partial(random_features, patch=4), 4, voc, RETRIEVE)
    assert noise.miou[way] < 20


def test_matching_is_the_best_there_is() -> None:
    """Against all ways to match, for four clusters and four classes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 50, (4, 4))
        iou = counts / (counts.sum(axis=1)[:, None] + counts.sum(axis=0)[None] - counts)
        best = max(
            sum(iou[k, c] for c, k in enumerate(order))
            for order in itertools.permutations(range(4))
        )
        assert sum(one_to_one(counts)) == pytest.approx(best)
    empty = one_to_one(np.array([[3, 0, 0], [0, 0, 1]]))
    assert empty[0] == 1
    assert math.isnan(empty[1])
    assert empty[2] == 1
    assert one_to_one(np.array([[3, 2]])) == [
        pytest.approx(0.6),
        0,
    ]  # no cluster is left for the second class


def test_iou_is_that_of_numpy_over_pixels() -> None:
    rng = np.random.default_rng(0)
    clusters, truth = rng.integers(0, 9, 5000), rng.integers(0, 4, 5000)
    clusters[truth == 1] = np.where(rng.random((truth == 1).sum()) < 0.7, 8, clusters[truth == 1])
    counts = np.zeros((9, 4), np.int64)
    np.add.at(counts, (clusters, truth), 1)
    to_class = [np.bincount(truth[clusters == k], minlength=4).argmax() for k in range(9)]
    found = np.array(to_class)[clusters]
    expected = [
        ((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(4)
    ]
    assert many_to_one(counts) == pytest.approx(expected)
    same = np.zeros((4, 4), np.int64)
    np.add.at(same, (found, truth), 1)
    assert class_iou(same) == pytest.approx(expected)


def test_labels_of_patches() -> None:
    mask = torch.zeros(4, 4, dtype=torch.long)
    mask[0, 0], mask[0, 1], mask[2:, 2:] = 3, 255, 255
    shares, known = patch_labels(mask, 2)
    assert shares[0, 0, [0, 3]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert shares[0, 1, 0] == 1
    assert known.tolist() == [[True, True], [True, False]]


def test_retrieval_is_a_softmax_over_neighbours() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, keys = (
        torch.nn.functional.normalize(torch.randn(n, 6, generator=rng), dim=1) for n in (600, 80)
    )
    values = torch.rand(80, 3, generator=rng)
    found = retrieve(queries, keys, values, neighbours=5, temperature=0.02).double().numpy()
    similarity = queries.double().numpy() @ keys.double().numpy().T
    for query in range(0, 600, 37):
        nearest = np.argsort(-similarity[query])[:5]
        weights = np.exp((similarity[query, nearest] - similarity[query, nearest].max()) / 0.02)
        np.testing.assert_allclose(
            found[query], weights @ values.double().numpy()[nearest] / weights.sum(), atol=1e-4
        )


def test_the_same_call_gives_the_same_result(voc: Path) -> None:
    features = partial(random_features, patch=8)
    clusters = [
        evaluate_clustering(features, 8, voc, changed(CLUSTER, seed=seed)).to_json()
        for seed in (0, 0, 1)
    ]
    assert clusters[0] == clusters[1]
    assert clusters[0]["miou"] != clusters[2]["miou"]
    settings = changed(RETRIEVE, memory=50)
    memories = [
        evaluate_retrieval(features, 8, voc, changed(settings, seed=seed)).to_json()
        for seed in (0, 0, 1)
    ]
    assert memories[0] == memories[1]
    assert memories[0]["miou"] != memories[2]["miou"]


def test_fewer_images_and_results(voc: Path) -> None:
    result = evaluate_retrieval(
        partial(colour_features, patch=8), 8, voc, changed(RETRIEVE, images=3)
    )
    assert result.images == 3
    assert "3 images" in str(result)
    stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert stored["settings"]["images"] == 3
    (classes,) = stored["iou"].values()
    assert set(classes) == set(CLASSES)
    assert classes["sofa"] is None
    (value,) = stored["miou"].values()
    assert value == pytest.approx(np.mean([v for v in classes.values() if v is not None]))


def test_what_is_missing_is_said_in_one_sentence(voc: Path, tmp_path: Path) -> None:
    def refused(
        root: Path, message: str, settings: RetrievalSettings = RETRIEVE, patch: int = 4
    ) -> None:
        with pytest.raises(PretrackError, match=message):
            evaluate_retrieval(partial(colour_features, patch=4), patch, root, settings)

    refused(
        tmp_path / "none",
        r"there is no folder .*none: fetch PASCAL VOC 2012 .*Flickr.* from host.robots.ox.ac.uk",
    )
    refused(tmp_path, r"is not PASCAL VOC 2012 as it unpacks: .*JPEGImages is missing")
    refused(
        voc,
        r"trainaug.txt is missing; it is no part of the dataset as released",
        changed(RETRIEVE, memory_split="trainaug"),
    )
    refused(voc, r"patches of 14 do not fill 64", patch=14)
    refused(
        voc, r"16x16 features do not fit images of 64x64 pixels in patches of 8 pixels", patch=8
    )
    root = shutil.copytree(voc, tmp_path / "copy")
    (root / "SegmentationClass" / "2008_000003.png").unlink()
    refused(root, r"2008_000003.png is missing")
    for wrong in (np.full((9, 9), 40, np.uint8), np.zeros((9, 9, 3), np.uint8)):
        Image.fromarray(wrong).save(root / "SegmentationClass" / "2008_000003.png")
        refused(root, r"2008_000003.png is no image of labels 0 to 20 and 255")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    refused(root, r"val.txt lists no images")


def test_trainaug_masks_are_plain_images(voc: Path, tmp_path: Path) -> None:
    root = shutil.copytree(voc, tmp_path / "copy")
    (root / "SegmentationClassAug").mkdir()
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2007_000001\n2008_000001\n")
    for name in ("2007_000001", "2008_000001"):
        labels = np.array(Image.open(root / "SegmentationClass" / f"{name}.png"))
        Image.fromarray(labels).save(root / "SegmentationClassAug" / f"{name}.png")
    result = evaluate_retrieval(
        partial(colour_features, patch=4), 4, root, changed(RETRIEVE, memory_split="trainaug")
    )
    assert "of trainaug" in next(iter(result.miou))


def test_a_size_that_is_no_multiple_is_fine_for_clusters(voc: Path) -> None:
    padded = partial(colour_features, patch=10)
    with pytest.raises(
        SettingsError,
        match="6x6 features do not fit images of 64x64 pixels in patches of 10 pixels",
    ):
        evaluate_clustering(padded, 10, voc, CLUSTER)
    result = evaluate_clustering(
        lambda images: padded(torch.nn.functional.pad(images, (3, 3, 3, 3))),
        10,
        voc,
        changed(CLUSTER, clusters=(60,)),
    )
    assert result.miou["60 clusters, many to one"] > 20


def test_iou_of_two_classes() -> None:
    """3 of 3 + 1 + 2 pixels, and 4 of 4 + 1 + 2; a third class is nowhere, a fourth never found."""
    counts = np.array([[3, 1, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    iou = class_iou(counts)
    assert iou[:2] == pytest.approx([3 / 6, 4 / 7])
    assert math.isnan(iou[2])
    assert class_iou(np.array([[3, 1], [0, 0]])) == pytest.approx([3 / 4, 0])
    clusters = np.array([[3, 1], [0, 4], [2, 0]])  # the first and the third are class 0
    assert many_to_one(clusters) == pytest.approx([5 / 6, 4 / 5])


def test_retrieval_from_two_neighbours() -> None:
    """Cosines of 1 and 0.6 at a temperature of 0.4: weights of e to 1; the third is left out."""
    queries = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]])
    values = torch.tensor([[1.0], [0.0], [100.0]])
    found = retrieve(queries, keys, values, neighbours=2, temperature=0.4)
    assert found.item() == pytest.approx(1 / (1 + math.e))
