"""Correspondence on NAVI: is a point on an object found in another photograph of it?

After Probe3D (El Banani et al., CVPR 2024).

Patch features of two photographs are upsampled to a grid. Each grid point on the object in the
first is matched to the grid point on the object in the second with the most similar feature. Poses
and depth give both a position in space; a match is correct if these are less than 2 cm apart.
Recall is computed per pair, then averaged over pairs within bins of the angle between the two
poses.

Probe3D keeps the 1000 matches of highest ratio (1 - distance to the nearest / to the second
nearest). On an upsampled grid the second nearest is mostly the neighbour of the nearest, which
makes the ratio noisy, so recall over all points is given as well. Its pairs depend on the order in
which the file system lists them; here they are sorted, and a digest identifies the list.

Pairs of photographs whose luminances differ little or much show the effect of lighting. Pairs are
split into terciles within each bin of angle, so that the angles of the terciles are alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from manifests.fingerprint import fingerprint_lines
from shards.errors import SettingsError
from trainer.evaluate.benchmarks.image_datasets import NAVI
from trainer.evaluate.benchmarks.navi_data import (
    Crop,
    Photograph,
    list_photographs,
    read_crop,
    shown_camera,
)
from trainer.evaluate.benchmarks.settings import NaviSettings
from trainer.evaluate.features import PatchFeatures, ShownCameras, encode_images
from trainer.evaluate.geometry import angle_between
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

log = logging.getLogger(__name__)

BINS = {"3DPoV": (0, 15, 30, 60, 120), "Probe3D": (0, 30, 60, 90, 120)}
"""Edges in degrees of the bins of angle that papers report; a bin contains its lower edge only."""
METRES = (0.01, 0.02, 0.05)
PIXELS = (5, 25, 50)
_HEADLINE = METRES.index(0.02)
_LEVELS = 32  # of a luminance histogram
_LUMA = (0.299, 0.587, 0.114)  # weights of RGB, ITU-R BT.601
_CHUNK = 2048  # queries matched at once
_LOG_EVERY = 50  # pairs
_MIN_POINTS = 2  # per photograph: a ratio needs a second nearest

Points = Literal["best", "all"]
Light = Literal["similar", "different"]

PairFeatures = Callable[[Tensor, ShownCameras], Tensor]
"""uint8 RGB crops of a pair [2, 3, S, S], and their cameras → float32 features [2, h, w, D]."""


@dataclass(frozen=True)
class Recalls:
    """Shares of a pair's matches that are correct.

    metres: nearer than 1, 2 and 5 cm in space
    pixels: nearer than 5, 25 and 50 px in the second crop
    """

    metres: tuple[float, ...]
    pixels: tuple[float, ...]


@dataclass(frozen=True)
class PairRecalls:
    """The result of one pair of photographs.

    angle:  degrees between the poses
    light:  difference of luminance, 0 to 2 (`luminance_distance`)
    points: number of points matched
    best:   recall of the matches of highest ratio
    all:    recall of all matches
    """

    first: str
    second: str
    angle: float
    light: float
    points: int
    best: Recalls
    all: Recalls


@dataclass(frozen=True)
class NaviResult:
    """Recall of correspondences on NAVI, in per cent.

    skipped: photographs without a partner within the angle, and pairs in which an object has fewer
             than two points
    digest:  of the list of pairs
    """

    settings: NaviSettings
    patch: int
    pairs: tuple[PairRecalls, ...]
    skipped: int
    digest: str

    def recall(self, points: Points = "best", metres: float = 0.02) -> float:
        """Compute the recall at a distance in space, over all pairs."""
        limit = METRES.index(metres)
        return 100 * finite_mean([getattr(pair, points).metres[limit] for pair in self.pairs])

    def pixel_recall(self, points: Points = "best", pixels: int = 25) -> float:
        """Compute the recall at a distance in the second crop, over all pairs."""
        limit = PIXELS.index(pixels)
        return 100 * finite_mean([getattr(pair, points).pixels[limit] for pair in self.pairs])

    def within(self, low: float, high: float, light: Light | None = None) -> list[PairRecalls]:
        """Return the pairs in a bin of angle; with `light`, its least or most different third."""
        inside = sorted(
            (pair for pair in self.pairs if low <= pair.angle < high),
            key=lambda pair: (pair.light, pair.first),
        )
        third = len(inside) // 3
        if light is None:
            return inside
        return inside[:third] if light == "similar" else inside[len(inside) - third :]

    def by_angle(
        self, edges: Sequence[float], points: Points = "best", light: Light | None = None
    ) -> list[tuple[float, int]]:
        """Compute the recall at 2 cm and the number of pairs per bin; NaN for an empty bin."""
        bins = [self.within(low, high, light) for low, high in pairwise(edges)]
        return [
            (
                100 * finite_mean([getattr(pair, points).metres[_HEADLINE] for pair in inside]),
                len(inside),
            )
            for inside in bins
        ]

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return the recall at 2 cm of each pair, by bin of angle."""
        kinds: tuple[Points, ...] = ("best", "all")
        return {
            f"{points}, {low}-{high}°": {
                f"{pair.first} {pair.second}": 100 * getattr(pair, points).metres[_HEADLINE]
                for pair in self.within(low, high)
            }
            for points in kinds
            for low, high in pairwise(BINS["3DPoV"])
        }

    def paper_rows(self) -> dict[str, list[float]]:
        """Name the published tables, each with our row."""
        tables: dict[str, Light | None] = {
            "navi": None,
            "navi_less_lighting": "similar",
            "navi_intense_lighting": "different",
        }
        return {
            name: [recall for recall, _ in self.by_angle(BINS["3DPoV"], "best", light)]
            for name, light in tables.items()
        }

    def rows(self, bins: str = "3DPoV") -> list[Row]:
        """Return rows of a name, then the recall at 2 cm in each bin of angle."""
        edges = BINS[bins]
        kinds: list[tuple[str, Points, Light | None]] = [
            (f"best {self.settings.matches} matches", "best", None),
            ("all points", "all", None),
            ("best, similar light", "best", "similar"),
            ("best, different light", "best", "different"),
        ]
        return [
            [name, *(recall for recall, _ in self.by_angle(edges, points, light))]
            for name, points, light in kinds
        ]

    def to_json(self) -> dict[str, Any]:
        """Return settings, recall, and every pair."""
        kinds: tuple[Points, ...] = ("best", "all")
        document: dict[str, Any] = plain(
            {
                "dataset": NAVI.name,
                "settings": self.settings.model_dump(),
                "patch": self.patch,
                "recall_metres": {
                    kind: {metres: self.recall(kind, metres) for metres in METRES} for kind in kinds
                },
                "recall_pixels": {
                    kind: {pixels: self.pixel_recall(kind, pixels) for pixels in PIXELS}
                    for kind in kinds
                },
                "by_angle": {
                    name: {
                        "edges": edges,
                        "pairs": [count for _, count in self.by_angle(edges)],
                        "rows": {row[0]: row[1:] for row in self.rows(name)},
                    }
                    for name, edges in BINS.items()
                },
                "skipped": self.skipped,
                "digest": self.digest,
                "pairs": [asdict(pair) for pair in self.pairs],
            }
        )
        return document

    def __str__(self) -> str:
        title = f"NAVI wild_set: recall in % at {self.settings.size} px, patches of {self.patch}"
        by_bin = "\n".join(self._bin_table(name) for name in BINS)
        return (
            f"{title}\n{self._overall_table()}\n{by_bin}\n"
            f"  {len(self.pairs)} pairs ({self.skipped} skipped), list {self.digest}; "
            "light: a third of a bin's pairs each"
        )

    def _overall_table(self) -> str:
        """Format the recall over all angles at every distance."""
        kinds: list[tuple[str, Points]] = [
            (f"best {self.settings.matches} matches", "best"),
            ("all points", "all"),
        ]
        rows: list[Row] = [
            [
                name,
                *(self.recall(kind, metres) for metres in METRES),
                *(self.pixel_recall(kind, pixels) for pixels in PIXELS),
            ]
            for name, kind in kinds
        ]
        distances = [
            *(f"{metres * 100:.0f} cm" for metres in METRES),
            *(f"{pixels} px" for pixels in PIXELS),
        ]
        return table(("all angles", *distances), rows)

    def _bin_table(self, bins: str) -> str:
        """Format the recall at 2 cm, and the number of pairs, in each bin of angle."""
        edges = BINS[bins]
        header = (f"2 cm, bins of {bins}", *(f"{low}-{high}°" for low, high in pairwise(edges)))
        counts: Row = ["pairs", *(count for _, count in self.by_angle(edges))]
        return table(header, [*self.rows(bins), counts])


def evaluate_navi(
    features: PatchFeatures, patch: int, root: Path, settings: NaviSettings | None = None
) -> NaviResult:
    """Score features with patches of `patch` pixels on NAVI in the folder `root`.

    Raises SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or
    broken.
    """
    return evaluate_navi_pairs(lambda images, _: features(images), patch, root, settings)


def evaluate_navi_pairs(
    features: PairFeatures, patch: int, root: Path, settings: NaviSettings | None = None
) -> NaviResult:
    """Score features that both photographs of a pair have together; otherwise `evaluate_navi`."""
    settings = settings or NaviSettings()
    chosen, alone = choose_pairs(list_photographs(root, "wild_set"), settings)
    if not chosen:
        raise SettingsError(
            f"{root} has no two photographs of one object within {settings.farthest:g} degrees "
            "of each other"
        )
    scores = []
    for number, pair in enumerate(chosen, start=1):
        crops = read_crop(pair[0], settings.size), read_crop(pair[1], settings.size)
        maps = _encode_grid(features, pair, crops, patch=patch, settings=settings)
        scores.append(_score(pair, crops, maps, settings))
        if number % _LOG_EVERY == 0:
            log.info("%d of %d pairs done", number, len(chosen))
    pairs = tuple(score for score in scores if score is not None)
    return NaviResult(
        settings=settings,
        patch=patch,
        pairs=pairs,
        skipped=alone + len(scores) - len(pairs),
        digest=fingerprint_lines([f"{first.name} {second.name}" for first, second in chosen]),
    )


def choose_pairs(
    photographs: Sequence[Photograph], settings: NaviSettings
) -> tuple[list[tuple[Photograph, Photograph]], int]:
    """Pair photographs of one collection; also return how many found no partner.

    Every photograph draws one partner, uniformly from those within (0, `farthest`] degrees; then
    every n-th pair is kept.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    partners: list[tuple[Photograph, Photograph | None]] = []
    for folder in sorted({photograph.folder for photograph in photographs}):
        collection = sorted(
            (photograph for photograph in photographs if photograph.folder == folder),
            key=lambda photograph: photograph.stem,
        )
        for photograph in collection:
            candidates = [
                other
                for other in collection
                if other is not photograph
                and 0 < angle_between(photograph.rotation, other.rotation) <= settings.farthest
            ]
            # One number per photograph is drawn even if it has no candidates: others stay the same.
            drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
            partner = candidates[int(drawn * len(candidates))] if candidates else None
            partners.append((photograph, partner))
    subset = partners[:: settings.every]
    pairs = [(first, second) for first, second in subset if second is not None]
    alone = len(subset) - len(pairs)
    if settings.pairs is not None and settings.pairs < len(pairs):
        spaced = np.linspace(0, len(pairs) - 1, settings.pairs).round().astype(int)
        pairs = [pairs[i] for i in spaced]
    return pairs, alone


def _encode_grid(
    features: PairFeatures,
    pair: tuple[Photograph, Photograph],
    crops: tuple[Crop, Crop],
    *,
    patch: int,
    settings: NaviSettings,
) -> Tensor:
    """Encode both crops, and upsample to the grid of points: [2, D, grid, grid]."""
    intrinsics, poses = zip(*map(shown_camera, pair, crops), strict=True)
    cameras = ShownCameras(torch.stack(intrinsics), torch.stack(poses))
    images = torch.stack([crop.image for crop in crops])
    maps = encode_images(lambda both: features(both, cameras), images, patch)
    grid = -(-settings.size // settings.cell)
    return interpolate(maps.movedim(-1, 1), size=(grid, grid), mode="bicubic")


def _score(
    pair: tuple[Photograph, Photograph],
    crops: tuple[Crop, Crop],
    maps: Tensor,
    settings: NaviSettings,
) -> PairRecalls | None:
    """Match the first crop's points to the second's; None if one of them has fewer than two."""
    step = slice(None, None, settings.cell)
    grids = [crop.points[step, step] for crop in crops]
    on_object = [grid[..., 2] > 0 for grid in grids]
    if min(int(mask.sum()) for mask in on_object) < _MIN_POINTS:
        return None
    vectors = [
        normalize(image_map.movedim(0, -1)[mask.to(image_map.device)], dim=-1)
        for image_map, mask in zip(maps, on_object, strict=True)
    ]
    indices, ratios = (values.cpu() for values in nearest_with_ratio(vectors[0], vectors[1]))
    points = [grid[mask].double() for grid, mask in zip(grids, on_object, strict=True)]
    # Both ends of a match in the second camera's frame, in metres.
    true_points = _into_second_camera(points[0], *pair)
    matched_points = points[1][indices]
    metres = (true_points - matched_points).norm(dim=1)
    focal = crops[1].focal
    pixels = (project(true_points, focal) - project(matched_points, focal)).norm(dim=1)
    best = ratios.topk(min(settings.matches, len(ratios))).indices
    first, second = pair
    return PairRecalls(
        first=first.name,
        second=second.name,
        angle=angle_between(first.rotation, second.rotation),
        light=luminance_distance(*crops),
        points=len(metres),
        best=_recalls(metres[best], pixels[best]),
        all=_recalls(metres, pixels),
    )


def _into_second_camera(points: Tensor, first: Photograph, second: Photograph) -> Tensor:
    """Move points [N, 3] from the first camera's frame into the second's."""
    rotation = torch.from_numpy(second.rotation @ first.rotation.T)
    translation = torch.from_numpy(second.translation) - rotation @ torch.from_numpy(
        first.translation
    )
    return points @ rotation.T + translation


def _recalls(metres: Tensor, pixels: Tensor) -> Recalls:
    return Recalls(
        metres=tuple((metres < limit).double().mean().item() for limit in METRES),
        pixels=tuple((pixels < limit).double().mean().item() for limit in PIXELS),
    )


def nearest_with_ratio(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest candidate of each query, and its ratio: [N, D], [M, D] → [N], [N].

    Vectors have unit length. The ratio is 1 - cosine distance to the nearest / to the second
    nearest. Computed for a few thousand queries at a time, to bound memory.
    """
    indices, ratios = [], []
    for part in queries.split(_CHUNK):
        similarity, index = (part @ candidates.T).topk(2, dim=1)
        distance = (1 - similarity).clamp(min=1e-9)
        indices.append(index[:, 0])
        ratios.append(1 - distance[:, 0] / distance[:, 1])
    return torch.cat(indices), torch.cat(ratios)


def project(points: Tensor, focal: float) -> Tensor:
    """Project points [N, 3] to pixels [N, 2], relative to the principal point."""
    return focal * points[:, :2] / points[:, 2:].clamp(min=1e-9)


def luminance_distance(first: Crop, second: Crop) -> float:
    """Compute the L1 distance, 0 to 2, between histograms of the object's luminance.

    Histograms have 32 levels and sum to one.
    """
    histograms = []
    for crop in (first, second):
        weights = torch.tensor(_LUMA, dtype=torch.float64)[:, None, None]
        luma = (crop.image.double() * weights).sum(dim=0)[crop.depth > 0]
        levels = (luma * _LEVELS / 256).long().clamp(max=_LEVELS - 1)
        counts = torch.bincount(levels, minlength=_LEVELS).double()
        histograms.append(counts / counts.sum().clamp(min=1))
    return float((histograms[0] - histograms[1]).abs().sum())
