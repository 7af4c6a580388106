"""Segmentation on PASCAL VOC 2012 without training: do features of one class lie together?

Two ways. *Clustering*, after Leopart and MoSiC: k-means over the patch features of all validation images; with as many clusters as
classes each cluster is matched to one class (Hungarian method), with more of them each goes to the class that most of its pixels
have. *Retrieval*, after hummingbird (Balažević et al., NeurIPS 2023): each patch takes its label from the most similar patches of a
memory of training images. Both give the mean over classes of intersection over union (mIoU), background included; pixels labelled
255 do not count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from manifests.fingerprint import fingerprint_lines
from shards.errors import PretrackError, SettingsError
from trainer.evaluate.benchmarks.image_datasets import VOC, as_tensor, check_dataset, open_image
from trainer.evaluate.benchmarks.settings import ClusteringSettings, RetrievalSettings, Split
from trainer.evaluate.features import PatchFeatures, encode_images
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

log = logging.getLogger(__name__)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_NOTHING = 255  # the label of pixels that do not count
_BATCH = 16
_TELL = 500  # images between two lines of progress
_CHUNK = 256  # queries compared with the memory at once


@dataclass(frozen=True)
class VocResult:
    """IoU in per cent: for every way (`21 clusters, one to one`, `retrieval`) and class; NaN for a class that is in no image."""

    settings: ClusteringSettings | RetrievalSettings
    patch: int
    iou: dict[str, dict[str, float]]
    images: int
    digest: str

    @property
    def miou(self) -> dict[str, float]:
        """For every way the mean over classes."""
        return {way: finite_mean(list(classes.values())) for way, classes in self.iou.items()}

    def rows(self) -> list[Row]:
        """Way and mIoU."""
        return [[way, value] for way, value in self.miou.items()]

    def by_item(self) -> dict[str, dict[str, float]]:
        """None: IoU is counted over the pixels of all images together."""
        return {}

    def paper_rows(self) -> dict[str, list[float]]:
        """None that can be compared."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """Settings and figures."""
        found: dict[str, Any] = plain(
            {
                "dataset": VOC.name,
                "miou": self.miou,
                **asdict(self),
                "settings": self.settings.model_dump(),
            }
        )
        return found

    def __str__(self) -> str:
        return (
            f"PASCAL VOC 2012 val, {self.settings.size} px, patches of {self.patch}\n{table(('', 'mIoU (%)'), self.rows())}\n"
            f"  {self.images} images, list {self.digest}"
        )


def evaluate_clustering(
    features: PatchFeatures, patch: int, root: Path, settings: ClusteringSettings | None = None
) -> VocResult:
    """Clusters the patch features of VOC's validation images in the folder `root` (VOC2012).

    Features of all images are held at once, in float32: 1.1 GB of a ViT-B. Raises SettingsError or PretrackError, in one
    sentence, if the dataset is missing, incomplete or broken.
    """
    from scipy.cluster.vq import kmeans2  # half a second, which other evaluations need not wait

    s = settings or ClusteringSettings()
    names = _listed(root, "val", s.images)
    maps, truth = _reduced(features, patch, root, names, s)
    sample = _sampled(maps, s)
    iou = {}
    for k in s.clusters:
        centres, _ = kmeans2(
            sample,
            min(k, len(sample)),
            iter=s.iterations,
            minit="++",
            rng=np.random.default_rng(s.seed),
        )
        counts = np.zeros((k, len(CLASSES)), np.int64)
        for part, labels in zip(maps.split(_BATCH), truth.split(_BATCH), strict=True):
            counts += _counts(
                _nearest(_enlarged(part, s.grid), torch.from_numpy(centres).float()), labels, k
            )
        alone = k == len(CLASSES)
        way = f"{k} clusters, {'one' if alone else 'many'} to one"
        iou[way] = _named((one_to_one if alone else many_to_one)(counts))
    return VocResult(s, patch, iou, len(names), fingerprint_lines(names))


def evaluate_retrieval(
    features: PatchFeatures, patch: int, root: Path, settings: RetrievalSettings | None = None
) -> VocResult:
    """Segments VOC's validation images by the nearest patches of its training images, in the folder `root` (VOC2012).

    Errors as `evaluate_clustering`; also SettingsError for a size that patches do not fill.
    """
    s = settings or RetrievalSettings()
    if s.size % patch:
        raise SettingsError(
            f"retrieval gives every patch labels of its own pixels, and patches of {patch} do not fill {s.size}"
        )
    learnt, names = _listed(root, s.memory_split, s.images), _listed(root, "val", s.images)
    keys, values = _remembered(features, patch, root, learnt, s)
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for images, labels in _batches(root, "val", names, s.size):
        maps = normalize(encode_images(features, images, patch), dim=-1)
        scores = retrieved(maps.flatten(0, 2), keys, values, s.neighbours, s.temperature).unflatten(
            0, maps.shape[:3]
        )
        sharp = interpolate(scores.movedim(-1, 1), size=(s.size, s.size), mode="bilinear")
        counts += _counts(sharp.argmax(dim=1).cpu(), labels, len(CLASSES))
    iou = {f"retrieval from {len(keys)} patches of {s.memory_split}": _named(class_iou(counts))}
    return VocResult(s, patch, iou, len(names), fingerprint_lines([*learnt, "", *names]))


def one_to_one(counts: NDArray[np.int64]) -> list[float]:
    """IoU of every class with the cluster it is matched to, so that their sum is greatest; NaN for a class without pixels.

    counts[k, c] is the number of pixels of cluster k and class c. A class that no cluster is left for has 0.
    """
    from scipy.optimize import linear_sum_assignment  # see above

    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    shares = counts / np.maximum(union, 1)
    clusters, classes = linear_sum_assignment(shares, maximize=True)
    iou = np.zeros(counts.shape[1])
    iou[classes] = shares[clusters, classes]
    return [
        float(v) if present else math.nan
        for v, present in zip(iou, counts.sum(axis=0) > 0, strict=True)
    ]


def many_to_one(counts: NDArray[np.int64]) -> list[float]:
    """IoU of every class with all clusters of which most pixels have it (highest precision); NaN for a class without pixels."""
    merged = np.zeros((counts.shape[1], counts.shape[1]), np.int64)
    np.add.at(merged, counts.argmax(axis=1), counts)
    return class_iou(merged)


def class_iou(counts: NDArray[np.int64]) -> list[float]:
    """IoU of every class from counts[found, true] of pixels; NaN for a class without pixels."""
    union = counts.sum(axis=1) + counts.sum(axis=0) - counts.diagonal()
    present = counts.sum(axis=0) > 0
    return [
        float(i / u) if p else math.nan
        for i, u, p in zip(counts.diagonal(), union, present, strict=True)
    ]


def retrieved(
    queries: Tensor, keys: Tensor, values: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """Of the unit vectors `queries` [N, D], `keys` [M, D]: the mean of the nearest keys' values [M, C], weighted by the softmax of
    their cosine similarities divided by the temperature: [N, C]. A few hundred queries at a time, so that memory is bounded."""
    found = []
    for part in queries.split(_CHUNK):
        similarity, index = (part @ keys.T).topk(min(neighbours, len(keys)), dim=1)
        found.append(
            ((similarity / temperature).softmax(dim=1)[..., None] * values[index]).sum(dim=1)
        )
    return torch.cat(found)


def _named(iou: list[float]) -> dict[str, float]:
    return {name: 100 * value for name, value in zip(CLASSES, iou, strict=True)}


def _listed(root: Path, split: Split, at_most: int | None) -> list[str]:
    """The images of a split. Raises SettingsError if the dataset or the split is not there."""
    check_dataset(root, VOC)
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    missing = [path for path in (file, _masks(root, split)) if not path.exists()]
    if missing:
        extra = (
            "; it is no part of the dataset as released: add it, or use the split 'train'"
            if split == "trainaug"
            else ""
        )
        raise SettingsError(f"{missing[0]} is missing{extra or ': unpack the dataset again'}")
    names = file.read_text().split()
    if not names:
        raise SettingsError(f"{file} lists no images")
    if at_most is None or at_most >= len(names):
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, at_most).round().astype(int)]


def _masks(root: Path, split: Split) -> Path:
    return root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")


def _batches(
    root: Path, split: Split, names: Sequence[str], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [B, 3, size, size] and labels int64 [B, size, size], squashed to the square (labels by nearest neighbours)."""
    for start in range(0, len(names), _BATCH):
        chosen = names[start : start + _BATCH]
        images = [
            open_image(root / "JPEGImages" / f"{name}.jpg").resize(
                (size, size), Image.Resampling.BILINEAR
            )
            for name in chosen
        ]
        labels = [_read_labels(_masks(root, split) / f"{name}.png", size) for name in chosen]
        yield torch.stack([as_tensor(image) for image in images]), torch.stack(labels)
        done = start + len(chosen)
        if done // _TELL > start // _TELL:
            log.info("%s: %d of %d images done", split, done, len(names))


def _read_labels(path: Path, size: int) -> Tensor:
    """int64 [size, size]. Raises PretrackError for an image that is broken or shows something else."""
    labels = np.array(open_image(path).resize((size, size), Image.Resampling.NEAREST)).astype(
        np.int64
    )
    if labels.ndim != 2 or not np.isin(labels, [*range(len(CLASSES)), _NOTHING]).all():
        raise PretrackError(
            f"{path} is no image of labels 0 to {len(CLASSES) - 1} and {_NOTHING}: unpack the dataset again"
        )
    return torch.from_numpy(labels)


def _reduced(
    features: PatchFeatures,
    patch: int,
    root: Path,
    names: Sequence[str],
    settings: ClusteringSettings,
) -> tuple[Tensor, Tensor]:
    """Principal components of the features of all images [N, h, w, C], and their labels, uint8 [N, size, size]."""
    maps, masks = torch.empty(0), list[Tensor]()
    for images, labels in _batches(root, "val", names, settings.size):
        part = encode_images(features, images, patch)
        maps = maps if len(maps) else torch.empty(len(names), *part.shape[1:])
        maps[_BATCH * len(masks) :][: len(part)] = part
        masks.append(labels.to(torch.uint8))
    return _principal(maps, settings.components), torch.cat(masks)


def _principal(maps: Tensor, components: int) -> Tensor:
    """The first principal components of standardised features: [N, h, w, D] → [N, h, w, C], without a copy of all of them."""
    parts = maps.split(_BATCH)
    centre = (
        torch.stack([part.double().sum(dim=(0, 1, 2)) for part in parts]).sum(dim=0)
        / maps[..., 0].numel()
    )
    covariance = torch.zeros(len(centre), len(centre), dtype=torch.float64)
    for part in parts:
        rows = (part - centre).flatten(0, 2)
        covariance += rows.T @ rows / maps[..., 0].numel()
    spread = covariance.diagonal().sqrt()
    spread = spread.where(spread > 1e-6, 1)  # a channel that never changes stays 0
    axes = torch.linalg.eigh(covariance / torch.outer(spread, spread)).eigenvectors.flip(1)[
        :, :components
    ]
    return torch.cat([((part - centre) / spread @ axes).float() for part in parts])


def _enlarged(maps: Tensor, grid: int) -> Tensor:
    """[B, h, w, C] → [B, grid, grid, C], bilinearly."""
    return interpolate(maps.movedim(-1, 1), size=(grid, grid), mode="bilinear").movedim(1, -1)


def _sampled(maps: Tensor, settings: ClusteringSettings) -> NDArray[np.float32]:
    """Up to `points` cells, the same number of every image, drawn without replacement: [P, C]."""
    each = max(1, min(settings.grid**2, settings.points // len(maps)))
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = [
        _enlarged(part[None], settings.grid).flatten(0, 2)[
            torch.randperm(settings.grid**2, generator=generator)[:each]
        ]
        for part in maps
    ]
    return torch.cat(chosen).numpy()


def _nearest(maps: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of every cell: [B, g, g, C], [K, C] → [B, g, g]."""
    return torch.cdist(maps.flatten(0, 2), centres).argmin(dim=1).unflatten(0, maps.shape[:3])


def _counts(found: Tensor, labels: Tensor, kinds: int) -> NDArray[np.int64]:
    """Pixels of each kind found and each class: [kinds, classes]; `found` [B, g, g] is enlarged to the labels [B, S, S]."""
    found = interpolate(found[:, None].float(), size=labels.shape[1:], mode="nearest")[:, 0].long()
    counted = labels != _NOTHING
    pairs = found[counted] * len(CLASSES) + labels[counted]
    counts: NDArray[np.int64] = (
        torch.bincount(pairs, minlength=kinds * len(CLASSES)).view(kinds, len(CLASSES)).numpy()
    )
    return counts


def _remembered(
    features: PatchFeatures,
    patch: int,
    root: Path,
    names: Sequence[str],
    settings: RetrievalSettings,
) -> tuple[Tensor, Tensor]:
    """Unit features of training patches [M, D], and the shares of classes among their pixels [M, C]."""
    each = max(1, settings.memory // len(names))
    generator = torch.Generator().manual_seed(settings.seed)
    keys, values = [], []
    for images, labels in _batches(root, settings.memory_split, names, settings.size):
        for vectors, mask in zip(
            normalize(encode_images(features, images, patch), dim=-1), labels, strict=True
        ):
            shares, known = patch_labels(mask, patch)
            (usable,) = known.flatten().nonzero(as_tuple=True)
            kept = usable[torch.randperm(len(usable), generator=generator)[:each]].to(
                vectors.device
            )
            keys.append(vectors.flatten(0, 1)[kept])
            values.append(shares.flatten(0, 1).to(vectors.device)[kept])
    return torch.cat(keys), torch.cat(values)


def patch_labels(mask: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Shares of the classes among the pixels of every patch that count [h, w, C], and which patches have such pixels [h, w]."""
    side = mask.shape[0] // patch
    blocks = mask.view(side, patch, side, patch).transpose(1, 2).flatten(2)
    counted = blocks != _NOTHING
    sums = (one_hot(blocks.where(counted, 0), len(CLASSES)) * counted[..., None]).sum(dim=2).float()
    return sums / sums.sum(dim=-1, keepdim=True).clamp(min=1), counted.any(dim=2)
