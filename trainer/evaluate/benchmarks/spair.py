"""Keypoint recall on SPair-71k: is a cat's left ear found on another cat? After Probe3D (El Banani et al., CVPR 2024).

A keypoint of the source image takes its feature from the source's map and goes to the target's patch of highest cosine
similarity. It is found if that is nearer than 0.1 of the longer side of the target's bounding box. Recall is over keypoints
within a class, then a mean over classes; in four passes: small, medium and large differences of viewpoint, and all of them,
which is drawn by itself and so is not the mean of the three.

Two things are not Probe3D's. Its sample of pairs follows the order in which the file system lists them; here they are sorted
before the seeded shuffle, and a digest names the list. And beside its readout, which takes a patch's corner for its place, there
is one that takes the centre.
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
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from manifests.fingerprint import fingerprint_lines
from manifests.wording import pluralise
from shards.errors import SettingsError
from trainer.evaluate.benchmarks.image_datasets import (
    SPAIR,
    as_tensor,
    check_dataset,
    describing,
    open_image,
    read_json,
)
from trainer.evaluate.benchmarks.settings import Readout, SpairSettings
from trainer.evaluate.features import PatchFeatures, encode_images, padding
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

log = logging.getLogger(__name__)


PASSES = {"S": 0, "M": 1, "L": 2, "All": None}
"""The four passes and the difference of viewpoint each is for; None for any."""
THRESHOLD = 0.1
_BATCH = 8
_FILL = (124, 116, 104)  # ImageNet's mean
_COVERED = (0.1, 0.3)  # of the bounding box


@dataclass(frozen=True)
class PairScore:
    """The keypoints of one pair that are annotated in both images and hidden in neither.

    `errors` and `clean`, the same without occlusion, are distances in parts of the target's bounding box: found is below 0.1.
    """

    category: str
    viewpoint: int
    errors: tuple[float, ...]
    clean: tuple[float, ...]


@dataclass(frozen=True)
class SpairResult:
    """Recall on SPair-71k, in per cent. `passes` lists each pass's pairs; a pair that is in two of them was scored once."""

    settings: SpairSettings
    patch: int
    passes: dict[str, tuple[str, ...]]
    pairs: dict[str, PairScore]
    images: int
    digest: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The classes that have pairs, sorted."""
        return tuple(sorted({score.category for score in self.pairs.values()}))

    def recall(self, which: str, category: str | None = None, clean: bool = False) -> float:
        """Recall of a pass: of one class, or the mean over those with keypoints. NaN if there are none. `clean` for the same
        keypoints in the images as they are."""
        if category is None:
            return finite_mean([self.recall(which, name, clean) for name in self.categories])
        scores = [
            self.pairs[name] for name in self.passes[which] if self.pairs[name].category == category
        ]
        errors = [error for score in scores for error in (score.clean if clean else score.errors)]
        return (
            100 * sum(error < THRESHOLD for error in errors) / len(errors) if errors else math.nan
        )

    def by_item(self) -> dict[str, dict[str, float]]:
        """What each pair adds to the recall of its passes, so scaled that a pass's mean is its recall: for a bootstrap."""
        return {
            f"recall, {which}": dict(zip(self.passes[which], self._shares(which), strict=True))
            for which in PASSES
        }

    def _shares(self, which: str) -> list[float]:
        scores = [self.pairs[name] for name in self.passes[which]]
        keypoints = Counter[str]()
        for score in scores:
            keypoints[score.category] += len(score.errors)
        classes = sum(count > 0 for count in keypoints.values())
        found = [
            (score.category, sum(error < THRESHOLD for error in score.errors)) for score in scores
        ]
        return [
            100 * n * len(scores) / (classes * keypoints[category]) if n else 0.0
            for category, n in found
        ]

    def paper_rows(self) -> dict[str, list[float]]:
        """The published table of the same kind, and our row of it; none but for the test split."""
        if self.settings.split != "test":
            return {}
        hidden = self.settings.occluded
        table = "spair" if hidden == "none" else f"spair_{hidden}_occluded"
        return {table: [self.recall(which) for which in PASSES]}

    def rows(self) -> list[Row]:
        """Name, then recall for S, M, L and All: the mean over classes, then each class."""
        return [
            [name or "mean over classes", *(self.recall(which, name) for which in PASSES)]
            for name in (None, *self.categories)
        ]

    def keypoints(self, which: str) -> int:
        """How many keypoints a pass has."""
        return sum(len(self.pairs[name].errors) for name in self.passes[which])

    def to_json(self) -> dict[str, Any]:
        """Settings, figures, and what each pair gave."""
        kinds = {"recall": False} | (
            {} if self.settings.occluded == "none" else {"clean_recall": True}
        )
        figures = {
            kind: {which: self.recall(which, clean=clean) for which in PASSES}
            for kind, clean in kinds.items()
        }
        listed = {
            name: {
                "category": score.category,
                "viewpoint": score.viewpoint,
                "keypoints": len(score.errors),
                "found": sum(error < THRESHOLD for error in score.errors),
                "found_clean": sum(error < THRESHOLD for error in score.clean),
            }
            for name, score in self.pairs.items()
        }
        found: dict[str, Any] = plain(
            {
                "dataset": SPAIR.name,
                "settings": self.settings.model_dump(),
                "patch": self.patch,
                **figures,
                "classes": {
                    name: {which: self.recall(which, name) for which in PASSES}
                    for name in self.categories
                },
                "keypoints": {which: self.keypoints(which) for which in PASSES},
                "images": self.images,
                "digest": self.digest,
                "passes": self.passes,
                "pairs": listed,
            }
        )
        return found

    def __str__(self) -> str:
        s = self.settings
        rows = self.rows()
        if s.occluded != "none":
            clean = [self.recall(which, clean=True) for which in PASSES]
            change = [
                self.recall(which) - value for which, value in zip(PASSES, clean, strict=True)
            ]
            rows[1:1] = [["  the same keypoints, not occluded", *clean], ["  difference", *change]]
        rows += [
            ["pairs", *(len(self.passes[which]) for which in PASSES)],
            ["keypoints", *(self.keypoints(which) for which in PASSES)],
        ]
        hidden = "" if s.occluded == "none" else f", {s.occluded} of the two views occluded"
        return (
            f"SPair-71k {s.split}: recall@{THRESHOLD} in % at {s.size} px, patches of {self.patch}, readout {s.readout}{hidden}\n"
            f"{table(('', *PASSES), rows)}\n  {len(self.pairs)} pairs of {self.images} images, list {self.digest}"
        )


@dataclass(frozen=True)
class ImagePair:
    """A pair of images of one class. Boxes are (left, top, right, bottom) in pixels of the image files."""

    name: str
    category: str
    viewpoint: int
    images: tuple[str, str]
    boxes: tuple[tuple[float, ...], tuple[float, ...]]
    scale: float
    """The longer side of the target's box, in parts of the longer side of its image."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as a square of `size` pixels [3, size, size], its keypoints [K, 2] there (NaN if not annotated), and the zoom."""

    image: Tensor
    keypoints: Tensor
    zoom: float


def evaluate_spair(
    features: PatchFeatures, patch: int, root: Path, settings: SpairSettings | None = None
) -> SpairResult:
    """Scores the features of `features`, whose patches are `patch` pixels, on SPair-71k in the folder `root`.

    Features are kept in float32, so that they are what the backbone gave, for the images of one class at a time: a test class has
    some thirty, 0.3 GB of a ViT-B. Occluded images differ from pair to pair, and are encoded pair by pair.
    Raises SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or broken.
    """
    settings = settings or SpairSettings()
    check_dataset(root, SPAIR)
    passes = choose_pairs(_read_pairs(root, settings.split), settings)
    unique = {pair.name: pair for chosen in passes.values() for pair in chosen}
    scores: dict[str, PairScore] = {}
    images = 0
    for category in sorted({pair.category for pair in unique.values()}):
        pairs = [pair for pair in unique.values() if pair.category == category]
        views = {
            name: _read_view(root, category, name, settings.size)
            for name in sorted({n for p in pairs for n in p.images})
        }
        maps = _encoded(features, [view.image for view in views.values()], patch)
        encoded = dict(zip(views, maps, strict=True))
        images += len(views)
        for pair in pairs:
            scores[pair.name] = _score(pair, views, encoded, features, patch, settings)
        log.info(
            "%s: %s, %d of %d pairs done",
            category,
            pluralise(len(views), "image"),
            len(scores),
            len(unique),
        )
    names = {which: tuple(pair.name for pair in chosen) for which, chosen in passes.items()}
    digest = fingerprint_lines(
        [f"{which} {name}" for which, listed in names.items() for name in listed]
    )
    return SpairResult(settings, patch, names, scores, images, digest)


def choose_pairs(pairs: Sequence[ImagePair], settings: SpairSettings) -> dict[str, list[ImagePair]]:
    """The pairs of each pass: for every class up to `settings.pairs`, from a seeded shuffle of the sorted list."""
    ordered = sorted(pairs, key=lambda pair: pair.name)
    chosen: dict[str, list[ImagePair]] = {which: [] for which in PASSES}
    for which, viewpoint in PASSES.items():
        for category in sorted({pair.category for pair in ordered}):
            found = [
                pair
                for pair in ordered
                if pair.category == category and viewpoint in (None, pair.viewpoint)
            ]
            random.Random(settings.seed).shuffle(found)
            chosen[which] += found[: settings.pairs]
    return chosen


def _read_pairs(root: Path, split: str) -> list[ImagePair]:
    """All pairs of a split. Raises SettingsError or PretrackError."""
    folder = root / "PairAnnotation" / split
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SettingsError(f"{folder} holds no pairs (*.json): unpack {SPAIR.name} again")
    return [_as_pair(file, read_json(file)) for file in files]


def _as_pair(file: Path, values: dict[str, Any]) -> ImagePair:
    with describing(f"a pair of {SPAIR.name}", file):
        _, source, target = values["filename"].split(":")[0].split("-")
        left, top, right, bottom = values["trg_bndbox"]
        return ImagePair(
            name=values["filename"],
            category=str(values["category"]),
            viewpoint=int(values["viewpoint_variation"]),
            images=(source, target),
            boxes=(tuple(values["src_bndbox"]), (left, top, right, bottom)),
            scale=max(right - left, bottom - top) / max(values["trg_imsize"][:2]),
        )


def _read_view(root: Path, category: str, name: str, size: int) -> AnnotatedImage:
    """An image, filled up with white to a square on the right and below, then resized (bicubic, antialiased)."""
    picture = open_image(root / "JPEGImages" / category / f"{name}.jpg").convert("RGB")
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture, (0, 0))
    zoom = size / side
    keypoints = _read_keypoints(root / "ImageAnnotation" / category / f"{name}.json") * zoom
    return AnnotatedImage(
        as_tensor(square.resize((size, size), Image.Resampling.BICUBIC)), keypoints, zoom
    )


def _read_keypoints(file: Path) -> Tensor:
    """An image's keypoints in its pixels [K, 2], NaN where one is not annotated."""
    values = read_json(file)
    with describing(f"the keypoints of an image of {SPAIR.name}", file):
        listed = values["kps"]
        places = [listed[str(i)] or (math.nan, math.nan) for i in range(len(listed))]
        return torch.tensor(places, dtype=torch.float32).reshape(len(places), 2)


def _encoded(features: PatchFeatures, images: Sequence[Tensor], patch: int) -> list[Tensor]:
    """Unit features [h, w, D] of each image. Raises SettingsError if they are not a map of such patches."""
    maps: list[Tensor] = []
    for start in range(0, len(images), _BATCH):
        maps += normalize(
            encode_images(features, torch.stack(list(images[start : start + _BATCH])), patch),
            dim=-1,
        )
    return maps


def _score(
    pair: ImagePair,
    views: dict[str, AnnotatedImage],
    encoded: dict[str, Tensor],
    features: PatchFeatures,
    patch: int,
    settings: SpairSettings,
) -> PairScore:
    """Looks for the keypoints of a pair."""
    both = [views[name] for name in pair.images]
    count = min(len(view.keypoints) for view in both)
    source, target = (view.keypoints[:count] for view in both)
    scored = ~(source.isnan() | target.isnan()).any(dim=1)
    maps = [encoded[name] for name in pair.images]
    hidden = {"none": (), "one": (1,), "both": (0, 1)}[settings.occluded]
    shown = list(maps)
    for which in hidden:
        box = tuple(side * both[which].zoom for side in pair.boxes[which])
        left, top, right, bottom = occluder(pair.name, which, box)
        x, y = both[which].keypoints[:count].unbind(1)
        scored &= ~((x >= left) & (x < right) & (y >= top) & (y < bottom))
        image = both[which].image.clone()
        image[:, top:bottom, left:right] = torch.tensor(_FILL, dtype=torch.uint8)[:, None, None]
        (shown[which],) = _encoded(features, [image], patch)
    source, target = source[scored], target[scored]

    def errors(from_map: Tensor, to_map: Tensor) -> tuple[float, ...]:
        found = match(from_map, to_map, source, settings.size, patch, settings.readout)
        goals = (target.floor() if settings.readout == "probe3d" else target) / settings.size
        return tuple(((found - goals).norm(dim=1) / pair.scale).tolist())

    changed = errors(shown[0], shown[1])
    return PairScore(
        pair.category, pair.viewpoint, changed, errors(maps[0], maps[1]) if hidden else changed
    )


def match(
    source: Tensor, target: Tensor, points: Tensor, size: int, patch: int, readout: Readout
) -> Tensor:
    """Where points of one image are in another: [h, w, D], [h, w, D] unit features, [K, 2] → [K, 2].

    Points are (x, y) in pixels of the square of `size` that was encoded, found places in parts of it. A patch stands for a place as
    `readout` says; `probe3d` also cuts points to whole pixels, as Probe3D does.
    """
    columns = source.shape[1]
    side, before = (size, 0) if readout == "probe3d" else (columns * patch, padding(size, patch)[0])
    places = ((points.floor() if readout == "probe3d" else points) + before) / side
    grid = (2 * places - 1).to(source.device)[None, None]
    samples = grid_sample(
        source.movedim(-1, 0)[None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=readout == "probe3d",
    )
    best = (samples[0, :, 0].T @ target.flatten(0, 1).T).argmax(dim=1).cpu()
    return patch_places(columns, size, patch, readout)[best]


def patch_places(columns: int, size: int, patch: int, readout: Readout) -> Tensor:
    """Where the patches of a square map are, row by row, in parts of the image: [columns², 2], (x, y)."""
    if readout == "probe3d":
        along = torch.arange(columns) / columns
    else:
        along = ((torch.arange(columns) + 0.5) * patch - padding(size, patch)[0]) / size
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def occluder(pair: str, view: int, box: Iterable[float]) -> tuple[int, int, int, int]:
    """A rectangle (left, top, right, bottom) in whole pixels inside a box, of 10 to 30 % of its area, at most twice as long in one
    direction as the box is. It depends on the pair's name, the view and the box alone."""
    left, top, right, bottom = box
    rng = np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"{pair} {view}".encode()).digest()[:8])
    )
    share, stretch = rng.uniform(*_COVERED), 2 ** rng.uniform(-0.5, 0.5)
    width, height = (right - left) * share**0.5 * stretch, (bottom - top) * share**0.5 / stretch
    x, y = (
        left + rng.uniform() * (right - left - width),
        top + rng.uniform() * (bottom - top - height),
    )
    return round(x), round(y), round(x + width), round(y + height)
