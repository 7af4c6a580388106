"""Keypoint recall on SPair-71k: is a cat's left ear found on another cat?

After Probe3D (El Banani et al., CVPR 2024).

The feature of a keypoint is sampled from the source image's map and matched to the target's patch
of highest cosine similarity. The match is correct if it is nearer than 0.1 of the longer side of
the target's bounding box. Recall is over the keypoints of a class, then a mean over classes. There
are four passes: small, medium and large differences of viewpoint, and all of them; the last is a
separate draw of pairs, not the mean of the others.

Two things differ from Probe3D. Its sample of pairs follows the order in which the file system lists
them; here they are sorted before the seeded shuffle, and a digest identifies the list. And beside
its readout, which takes a patch's corner for its position, there is one that takes the centre.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from manifests.fingerprint import fingerprint_lines
from manifests.wording import pluralise
from trainer.evaluate.benchmarks.image_datasets import SPAIR, check_dataset
from trainer.evaluate.benchmarks.settings import Readout, SpairSettings
from trainer.evaluate.benchmarks.spair_data import (
    AnnotatedImage,
    ImagePair,
    read_annotated_image,
    read_pairs,
)
from trainer.evaluate.features import PatchFeatures, encode_images, padding
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

log = logging.getLogger(__name__)

PASSES = {"S": 0, "M": 1, "L": 2, "All": None}
"""The four passes, each with the difference of viewpoint of its pairs; None for any."""
THRESHOLD = 0.1
_BATCH = 8  # images encoded at once
_FILL = (124, 116, 104)  # RGB of an occluder: ImageNet's mean
_COVERED = (0.1, 0.3)  # share of the bounding box that an occluder covers


@dataclass(frozen=True)
class PairErrors:
    """The errors of a pair's keypoints that are annotated in both images and occluded in neither.

    errors: distances from the match to the target keypoint, as fractions of the longer side of the
            target's bounding box; a match is correct below THRESHOLD
    clean:  the errors of the same keypoints without occlusion
    """

    category: str
    viewpoint: int
    errors: tuple[float, ...]
    clean: tuple[float, ...]

    @property
    def correct(self) -> int:
        """Number of correct matches."""
        return sum(error < THRESHOLD for error in self.errors)

    @property
    def correct_clean(self) -> int:
        """Number of correct matches without occlusion."""
        return sum(error < THRESHOLD for error in self.clean)


@dataclass(frozen=True)
class SpairResult:
    """Recall on SPair-71k, in per cent.

    passes: pass → names of its pairs; a pair in two passes is scored once
    pairs:  name → errors
    images: number of images encoded
    digest: of the list of pairs
    """

    settings: SpairSettings
    patch: int
    passes: dict[str, tuple[str, ...]]
    pairs: dict[str, PairErrors]
    images: int
    digest: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The classes that have pairs, sorted."""
        return tuple(sorted({pair.category for pair in self.pairs.values()}))

    def recall(self, name: str, category: str | None = None, clean: bool = False) -> float:
        """Compute the recall of a pass: of one class, or the mean over classes with keypoints.

        NaN if there are no keypoints. `clean`: of the same keypoints without occlusion.
        """
        if category is None:
            return finite_mean([self.recall(name, each, clean) for each in self.categories])
        pairs = [pair for pair in self._of_pass(name) if pair.category == category]
        keypoints = sum(len(pair.errors) for pair in pairs)
        correct = sum(pair.correct_clean if clean else pair.correct for pair in pairs)
        return 100 * correct / keypoints if keypoints else math.nan

    def _of_pass(self, name: str) -> list[PairErrors]:
        return [self.pairs[pair] for pair in self.passes[name]]

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return the contribution of each pair to the recall of its passes, for comparisons."""
        return {
            f"recall, {name}": dict(zip(self.passes[name], self._contributions(name), strict=True))
            for name in PASSES
        }

    def _contributions(self, name: str) -> list[float]:
        """Scale each pair's correct matches so that their mean is the recall of the pass.

        Recall is the sum over pairs of correct / (classes * keypoints of the class).
        """
        pairs = self._of_pass(name)
        keypoints = Counter[str]()
        for pair in pairs:
            keypoints[pair.category] += len(pair.errors)
        classes = sum(count > 0 for count in keypoints.values())
        return [
            100 * pair.correct * len(pairs) / (classes * keypoints[pair.category])
            if pair.correct
            else 0.0
            for pair in pairs
        ]

    def paper_rows(self) -> dict[str, list[float]]:
        """Name the published table of the same kind, with our row; none except for `test`."""
        if self.settings.split != "test":
            return {}
        occluded = self.settings.occluded
        name = "spair" if occluded == "none" else f"spair_{occluded}_occluded"
        return {name: [self.recall(each) for each in PASSES]}

    def rows(self) -> list[Row]:
        """Return rows of recall for S, M, L and All: the mean over classes, then each class."""
        return [
            [category or "mean over classes", *(self.recall(name, category) for name in PASSES)]
            for category in (None, *self.categories)
        ]

    def keypoints(self, name: str) -> int:
        """Count the keypoints in a pass."""
        return sum(len(pair.errors) for pair in self._of_pass(name))

    def to_json(self) -> dict[str, Any]:
        """Return settings, recall, and the counts of each pair."""
        recalls = {"recall": {name: self.recall(name) for name in PASSES}}
        if self.settings.occluded != "none":
            recalls["clean_recall"] = {name: self.recall(name, clean=True) for name in PASSES}
        pairs = {
            name: {
                "category": pair.category,
                "viewpoint": pair.viewpoint,
                "keypoints": len(pair.errors),
                "found": pair.correct,
                "found_clean": pair.correct_clean,
            }
            for name, pair in self.pairs.items()
        }
        document: dict[str, Any] = plain(
            {
                "dataset": SPAIR.name,
                "settings": self.settings.model_dump(),
                "patch": self.patch,
                **recalls,
                "classes": {
                    category: {name: self.recall(name, category) for name in PASSES}
                    for category in self.categories
                },
                "keypoints": {name: self.keypoints(name) for name in PASSES},
                "images": self.images,
                "digest": self.digest,
                "passes": self.passes,
                "pairs": pairs,
            }
        )
        return document

    def __str__(self) -> str:
        s = self.settings
        rows = self.rows()
        if s.occluded != "none":
            clean = [self.recall(name, clean=True) for name in PASSES]
            change = [self.recall(name) - value for name, value in zip(PASSES, clean, strict=True)]
            rows[1:1] = [["  the same keypoints, not occluded", *clean], ["  difference", *change]]
        rows.append(["pairs", *(len(self.passes[name]) for name in PASSES)])
        rows.append(["keypoints", *(self.keypoints(name) for name in PASSES)])
        occlusion = "" if s.occluded == "none" else f", {s.occluded} of the two views occluded"
        return (
            f"SPair-71k {s.split}: recall@{THRESHOLD} in % at {s.size} px, "
            f"patches of {self.patch}, readout {s.readout}{occlusion}\n"
            f"{table(('', *PASSES), rows)}\n"
            f"  {len(self.pairs)} pairs of {self.images} images, list {self.digest}"
        )


def evaluate_spair(
    features: PatchFeatures, patch: int, root: Path, settings: SpairSettings | None = None
) -> SpairResult:
    """Score features with patches of `patch` pixels on SPair-71k in the folder `root`.

    Features are kept in float32, exactly as the backbone gave them, for the images of one class at
    a time: a test class has about thirty, 0.3 GB for a ViT-B. Occluded images differ from pair to
    pair and are encoded pair by pair. Raises SettingsError or PretrackError, in one sentence, if
    the dataset is missing, incomplete or broken.
    """
    settings = settings or SpairSettings()
    check_dataset(root, SPAIR)
    passes = choose_pairs(read_pairs(root, settings.split), settings)
    unique = {pair.name: pair for chosen in passes.values() for pair in chosen}
    scores: dict[str, PairErrors] = {}
    encoded_images = 0
    for category in sorted({pair.category for pair in unique.values()}):
        pairs = [pair for pair in unique.values() if pair.category == category]
        images = {
            name: read_annotated_image(root, category, name, settings.size)
            for name in sorted({name for pair in pairs for name in pair.images})
        }
        maps = dict(
            zip(images, _encode([i.image for i in images.values()], features, patch), strict=True)
        )
        encoded_images += len(images)
        for pair in pairs:
            scores[pair.name] = _score(
                pair, images, maps, features=features, patch=patch, settings=settings
            )
        count = pluralise(len(images), "image")
        log.info("%s: %s, %d of %d pairs done", category, count, len(scores), len(unique))
    names = {name: tuple(pair.name for pair in chosen) for name, chosen in passes.items()}
    digest = fingerprint_lines(
        [f"{name} {pair}" for name, listed in names.items() for pair in listed]
    )
    return SpairResult(
        settings=settings,
        patch=patch,
        passes=names,
        pairs=scores,
        images=encoded_images,
        digest=digest,
    )


def choose_pairs(pairs: Sequence[ImagePair], settings: SpairSettings) -> dict[str, list[ImagePair]]:
    """Choose up to `settings.pairs` per class and pass, by a seeded shuffle of the sorted list."""
    ordered = sorted(pairs, key=lambda pair: pair.name)
    chosen: dict[str, list[ImagePair]] = {name: [] for name in PASSES}
    for name, viewpoint in PASSES.items():
        for category in sorted({pair.category for pair in ordered}):
            candidates = [
                pair
                for pair in ordered
                if pair.category == category and viewpoint in (None, pair.viewpoint)
            ]
            random.Random(settings.seed).shuffle(candidates)
            chosen[name] += candidates[: settings.pairs]
    return chosen


def _encode(images: Sequence[Tensor], features: PatchFeatures, patch: int) -> list[Tensor]:
    """Encode images to unit features [h, w, D]. Raises SettingsError if they do not fit `patch`."""
    maps: list[Tensor] = []
    for start in range(0, len(images), _BATCH):
        batch = torch.stack(list(images[start : start + _BATCH]))
        maps += normalize(encode_images(features, batch, patch), dim=-1)
    return maps


def _score(
    pair: ImagePair,
    images: dict[str, AnnotatedImage],
    maps: dict[str, Tensor],
    *,
    features: PatchFeatures,
    patch: int,
    settings: SpairSettings,
) -> PairErrors:
    """Match the keypoints of a pair.

    images, maps: the images of the class and their unit features [h, w, D], by name
    """
    both = [images[name] for name in pair.images]
    count = min(len(image.keypoints) for image in both)
    source, target = (image.keypoints[:count] for image in both)
    scored = ~(source.isnan() | target.isnan()).any(dim=1)
    clean_maps = [maps[name] for name in pair.images]
    occluded_maps = list(clean_maps)
    occluded_views = {"none": (), "one": (1,), "both": (0, 1)}[settings.occluded]
    for view in occluded_views:
        image = both[view]
        box = occluder(pair.name, view, [side * image.zoom for side in pair.boxes[view]])
        scored &= ~_inside(image.keypoints[:count], box)
        (occluded_maps[view],) = _encode([_occlude(image.image, box)], features, patch)
    source, target = source[scored], target[scored]

    def errors(source_map: Tensor, target_map: Tensor) -> tuple[float, ...]:
        matches = match(
            source_map,
            target_map,
            source,
            size=settings.size,
            patch=patch,
            readout=settings.readout,
        )
        # Probe3D cuts keypoints to whole pixels.
        targets = (target.floor() if settings.readout == "probe3d" else target) / settings.size
        return tuple(((matches - targets).norm(dim=1) / pair.scale).tolist())

    with_occlusion = errors(*occluded_maps)
    return PairErrors(
        category=pair.category,
        viewpoint=pair.viewpoint,
        errors=with_occlusion,
        clean=errors(*clean_maps) if occluded_views else with_occlusion,
    )


def match(
    source: Tensor, target: Tensor, points: Tensor, *, size: int, patch: int, readout: Readout
) -> Tensor:
    """Match points of one image to another: unit features [h, w, D] twice, points [K, 2] → [K, 2].

    points: (x, y) in pixels of the encoded square of `size`
    return: matches, as fractions of that square

    `readout` says which position a patch stands for; `probe3d` also cuts points to whole pixels, as
    Probe3D does.
    """
    columns = source.shape[1]
    if readout == "probe3d":
        positions = points.floor() / size
    else:
        # The map covers the image and its padding.
        positions = (points + padding(size, patch)[0]) / (columns * patch)
    samples = grid_sample(
        source.movedim(-1, 0)[None],
        (2 * positions - 1).to(source.device)[None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=readout == "probe3d",
    )
    best = (samples[0, :, 0].T @ target.flatten(0, 1).T).argmax(dim=1).cpu()
    return patch_positions(columns, size, patch, readout)[best]


def patch_positions(columns: int, size: int, patch: int, readout: Readout) -> Tensor:
    """Return the positions of the patches of a square map, row by row: [columns², 2], (x, y).

    As fractions of the image of `size` pixels, without its padding.
    """
    if readout == "probe3d":
        along = torch.arange(columns) / columns
    else:
        along = ((torch.arange(columns) + 0.5) * patch - padding(size, patch)[0]) / size
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def occluder(pair: str, view: int, box: Iterable[float]) -> tuple[int, int, int, int]:
    """Draw a rectangle (left, top, right, bottom) in whole pixels inside a bounding box.

    It covers 10 to 30 % of the box, and its aspect ratio is between half and twice the box's. It
    depends only on the pair's name, the view (0 or 1) and the box.
    """
    left, top, right, bottom = box
    digest = hashlib.sha256(f"{pair} {view}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    share, stretch = rng.uniform(*_COVERED), 2 ** rng.uniform(-0.5, 0.5)
    width, height = (right - left) * share**0.5 * stretch, (bottom - top) * share**0.5 / stretch
    x = left + rng.uniform() * (right - left - width)
    y = top + rng.uniform() * (bottom - top - height)
    return round(x), round(y), round(x + width), round(y + height)


def _inside(points: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Tell which points [K, 2] lie in a box; its right and bottom border are outside."""
    left, top, right, bottom = box
    x, y = points.unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _occlude(image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Copy an image [3, S, S], with a box filled."""
    left, top, right, bottom = box
    occluded = image.clone()
    occluded[:, top:bottom, left:right] = torch.tensor(_FILL, dtype=torch.uint8)[:, None, None]
    return occluded
