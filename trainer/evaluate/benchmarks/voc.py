"""Segmentation on PASCAL VOC 2012 without training: are features of one class similar?

*Clustering*, after Leopart and MoSiC: k-means over the patch features of all validation images.
With as many clusters as classes each cluster is matched to one class (Hungarian method); with more,
each is assigned to the class that most of its pixels have. *Retrieval*, after hummingbird
(Balažević et al., NeurIPS 2023): each patch takes its label from the most similar patches in a
memory of training images. Both give the mean over classes of intersection over union (mIoU),
background included; pixels labelled 255 do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from manifests.fingerprint import fingerprint_lines
from shards.errors import SettingsError
from trainer.evaluate.benchmarks.image_datasets import VOC
from trainer.evaluate.benchmarks.settings import ClusteringSettings, RetrievalSettings
from trainer.evaluate.benchmarks.voc_data import (
    BATCH,
    CLASSES,
    IGNORED,
    list_images,
    read_batches,
)
from trainer.evaluate.features import PatchFeatures, encode_images
from trainer.evaluate.results import finite_mean, result_json
from trainer.evaluate.tables import Row, table

_CHUNK = 256  # queries compared with the memory at once


@dataclass(frozen=True)
class VocResult:
    """Intersection over union in per cent.

    iou:    method (`21 clusters, one to one`, `retrieval from …`) → class → IoU; NaN for a class
            in no image
    images: number of validation images
    digest: of the list of images
    """

    settings: ClusteringSettings | RetrievalSettings
    patch: int
    iou: dict[str, dict[str, float]]
    images: int
    digest: str

    @property
    def miou(self) -> dict[str, float]:
        """The mean over classes, by method."""
        return {method: finite_mean(list(classes.values())) for method, classes in self.iou.items()}

    def rows(self) -> list[Row]:
        """Return rows of method and mIoU."""
        return [[method, value] for method, value in self.miou.items()]

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return no items: IoU is counted over the pixels of all images together."""
        return {}

    def paper_rows(self) -> dict[str, list[float]]:
        """Return no table: none that is published is comparable."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Return settings and IoU."""
        return result_json(VOC.name, self, miou=self.miou)

    def __str__(self) -> str:
        return (
            f"PASCAL VOC 2012 val, {self.settings.size} px, patches of {self.patch}\n"
            f"{table(('', 'mIoU (%)'), self.rows())}\n"
            f"  {self.images} images, list {self.digest}"
        )


def evaluate_clustering(
    features: PatchFeatures, patch: int, root: Path, settings: ClusteringSettings | None = None
) -> VocResult:
    """Cluster the patch features of VOC's validation images in the folder `root` (VOC2012).

    Features of all images are held at once, in float32: 1.1 GB for a ViT-B. Raises SettingsError or
    PretrackError, in one sentence, if the dataset is missing, incomplete or broken.
    """
    from scipy.cluster.vq import kmeans2  # half a second, which other evaluations need not wait for

    s = settings or ClusteringSettings()
    names = list_images(root, "val", s.images)
    maps, labels = _principal_features(features, patch, root, names, s)
    sample = _sample_cells(maps, s)
    iou = {}
    for k in s.clusters:
        centres, _ = kmeans2(
            sample,
            min(k, len(sample)),
            iter=s.iterations,
            minit="++",
            rng=np.random.default_rng(s.seed),
        )
        counts = _count_clusters(maps, labels, torch.from_numpy(centres).float(), k, s.grid)
        matched = k == len(CLASSES)
        method = f"{k} clusters, {'one' if matched else 'many'} to one"
        iou[method] = _per_class(one_to_one(counts) if matched else many_to_one(counts))
    return VocResult(s, patch, iou, images=len(names), digest=fingerprint_lines(names))


def evaluate_retrieval(
    features: PatchFeatures, patch: int, root: Path, settings: RetrievalSettings | None = None
) -> VocResult:
    """Segment VOC's validation images by the nearest patches of its training images.

    root: the folder VOC2012

    Errors as `evaluate_clustering`; also SettingsError for a size that is no multiple of the patch.
    """
    s = settings or RetrievalSettings()
    if s.size % patch:
        raise SettingsError(
            "retrieval gives every patch the labels of its own pixels, "
            f"and patches of {patch} do not fill {s.size}"
        )
    training, names = (
        list_images(root, s.memory_split, s.images),
        list_images(root, "val", s.images),
    )
    keys, values = _build_memory(features, patch, root, training, s)
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for images, labels in read_batches(root, "val", names, s.size):
        maps = normalize(encode_images(features, images, patch), dim=-1)
        scores = retrieve(
            maps.flatten(0, 2), keys, values, neighbours=s.neighbours, temperature=s.temperature
        ).unflatten(0, maps.shape[:3])
        enlarged = interpolate(scores.movedim(-1, 1), size=(s.size, s.size), mode="bilinear")
        counts += _count_pixels(enlarged.argmax(dim=1).cpu(), labels, len(CLASSES))
    iou = {f"retrieval from {len(keys)} patches of {s.memory_split}": _per_class(class_iou(counts))}
    digest = fingerprint_lines([*training, "", *names])
    return VocResult(s, patch, iou, images=len(names), digest=digest)


def one_to_one(counts: NDArray[np.int64]) -> list[float]:
    """Match clusters to classes so that the sum of IoU is largest; return the IoU of every class.

    counts: [clusters, classes] of pixels

    NaN for a class without pixels; 0 for a class that no cluster is left for.
    """
    from scipy.optimize import linear_sum_assignment  # imported late: see `evaluate_clustering`

    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    shares = counts / np.maximum(union, 1)
    clusters, classes = linear_sum_assignment(shares, maximize=True)
    iou = np.zeros(counts.shape[1])
    iou[classes] = shares[clusters, classes]
    present = counts.sum(axis=0) > 0
    return [float(value) if seen else math.nan for value, seen in zip(iou, present, strict=True)]


def many_to_one(counts: NDArray[np.int64]) -> list[float]:
    """Assign each cluster to the class that most of its pixels have; return the IoU of every class.

    counts: [clusters, classes] of pixels

    NaN for a class without pixels.
    """
    merged = np.zeros((counts.shape[1], counts.shape[1]), np.int64)
    np.add.at(merged, counts.argmax(axis=1), counts)
    return class_iou(merged)


def class_iou(counts: NDArray[np.int64]) -> list[float]:
    """Compute the IoU of every class from pixel counts [predicted, true]; NaN without pixels."""
    intersection = counts.diagonal()
    union = counts.sum(axis=1) + counts.sum(axis=0) - intersection
    present = counts.sum(axis=0) > 0
    return [
        float(i / u) if seen else math.nan
        for i, u, seen in zip(intersection, union, present, strict=True)
    ]


def retrieve(
    queries: Tensor, keys: Tensor, values: Tensor, *, neighbours: int, temperature: float
) -> Tensor:
    """Average the values of each query's nearest keys: [N, C].

    queries, keys: unit vectors [N, D] and [M, D]
    values:        [M, C]

    The weights are a softmax of cosine similarity / temperature. Computed for a few hundred queries
    at a time, to bound memory.
    """
    averages = []
    for part in queries.split(_CHUNK):
        similarity, index = (part @ keys.T).topk(min(neighbours, len(keys)), dim=1)
        weights = (similarity / temperature).softmax(dim=1)[..., None]
        averages.append((weights * values[index]).sum(dim=1))
    return torch.cat(averages)


def _per_class(iou: list[float]) -> dict[str, float]:
    """Map each class to its IoU in per cent."""
    return {name: 100 * value for name, value in zip(CLASSES, iou, strict=True)}


def _principal_features(
    features: PatchFeatures,
    patch: int,
    root: Path,
    names: Sequence[str],
    settings: ClusteringSettings,
) -> tuple[Tensor, Tensor]:
    """Return all images' principal components [N, h, w, C], and labels uint8 [N, S, S]."""
    maps, masks = torch.empty(0), list[Tensor]()
    for images, labels in read_batches(root, "val", names, settings.size):
        part = encode_images(features, images, patch)
        # Filled in place: a list to concatenate would need twice the memory.
        maps = maps if len(maps) else torch.empty(len(names), *part.shape[1:])
        maps[BATCH * len(masks) :][: len(part)] = part
        masks.append(labels.to(torch.uint8))
    return _principal_components(maps, settings.components), torch.cat(masks)


def _principal_components(maps: Tensor, components: int) -> Tensor:
    """Project standardised features on their first principal components: D → C channels.

    Computed part by part, without a copy of all features.
    """
    parts = maps.split(BATCH)
    count = maps[..., 0].numel()
    mean = torch.stack([part.double().sum(dim=(0, 1, 2)) for part in parts]).sum(dim=0) / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in parts:
        rows = (part - mean).flatten(0, 2)
        covariance += rows.T @ rows / count
    deviation = covariance.diagonal().sqrt()
    deviation = deviation.where(deviation > 1e-6, 1)  # a channel that never changes stays 0
    correlation = covariance / torch.outer(deviation, deviation)
    # eigh sorts eigenvalues from small to large.
    axes = torch.linalg.eigh(correlation).eigenvectors.flip(1)[:, :components]
    return torch.cat([((part - mean) / deviation @ axes).float() for part in parts])


def _enlarge(maps: Tensor, grid: int) -> Tensor:
    """Enlarge maps bilinearly: [B, h, w, C] → [B, grid, grid, C]."""
    return interpolate(maps.movedim(-1, 1), size=(grid, grid), mode="bilinear").movedim(1, -1)


def _sample_cells(maps: Tensor, settings: ClusteringSettings) -> NDArray[np.float32]:
    """Draw up to `points` cells without replacement, equally many per image: [P, C]."""
    cells = settings.grid**2
    per_image = max(1, min(cells, settings.points // len(maps)))
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = []
    for part in maps:
        enlarged = _enlarge(part[None], settings.grid).flatten(0, 2)
        chosen.append(enlarged[torch.randperm(cells, generator=generator)[:per_image]])
    return torch.cat(chosen).numpy()


def _count_clusters(
    maps: Tensor, labels: Tensor, centres: Tensor, clusters: int, grid: int
) -> NDArray[np.int64]:
    """Count pixels [clusters, classes]: every cell goes to its nearest centre."""
    counts = np.zeros((clusters, len(CLASSES)), np.int64)
    for part, masks in zip(maps.split(BATCH), labels.split(BATCH), strict=True):
        counts += _count_pixels(_nearest_centres(_enlarge(part, grid), centres), masks, clusters)
    return counts


def _nearest_centres(maps: Tensor, centres: Tensor) -> Tensor:
    """Find the index of the nearest centre of every cell: [B, g, g, C], [K, C] → [B, g, g]."""
    return torch.cdist(maps.flatten(0, 2), centres).argmin(dim=1).unflatten(0, maps.shape[:3])


def _count_pixels(predicted: Tensor, labels: Tensor, kinds: int) -> NDArray[np.int64]:
    """Count the pixels of each predicted kind and true class: [kinds, classes].

    predicted: [B, g, g], enlarged to the size of the labels
    labels:    [B, S, S]; pixels with the label IGNORED do not count
    """
    enlarged = interpolate(predicted[:, None].float(), size=labels.shape[1:], mode="nearest")
    valid = labels != IGNORED
    pairs = enlarged[:, 0].long()[valid] * len(CLASSES) + labels[valid]
    counts: NDArray[np.int64] = (
        torch.bincount(pairs, minlength=kinds * len(CLASSES)).view(kinds, len(CLASSES)).numpy()
    )
    return counts


def _build_memory(
    features: PatchFeatures,
    patch: int,
    root: Path,
    names: Sequence[str],
    settings: RetrievalSettings,
) -> tuple[Tensor, Tensor]:
    """Encode training patches to unit features [M, D], with class shares of their pixels [M, C]."""
    per_image = max(1, settings.memory // len(names))
    generator = torch.Generator().manual_seed(settings.seed)
    keys, values = [], []
    for images, labels in read_batches(root, settings.memory_split, names, settings.size):
        maps = normalize(encode_images(features, images, patch), dim=-1)
        for vectors, mask in zip(maps, labels, strict=True):
            shares, valid = patch_labels(mask, patch)
            (usable,) = valid.flatten().nonzero(as_tuple=True)
            order = torch.randperm(len(usable), generator=generator)
            chosen = usable[order[:per_image]].to(vectors.device)
            keys.append(vectors.flatten(0, 1)[chosen])
            values.append(shares.flatten(0, 1).to(vectors.device)[chosen])
    return torch.cat(keys), torch.cat(values)


def patch_labels(mask: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Compute class shares of every patch from labels [S, S]: [h, w, C], and which have any [h, w].

    Shares are of the patch's pixels that count, those without the label IGNORED.
    """
    side = mask.shape[0] // patch
    blocks = mask.view(side, patch, side, patch).transpose(1, 2).flatten(2)
    valid = blocks != IGNORED
    pixels = one_hot(blocks.where(valid, 0), len(CLASSES)) * valid[..., None]
    sums = pixels.sum(dim=2).float()
    return sums / sums.sum(dim=-1, keepdim=True).clamp(min=1), valid.any(dim=2)
