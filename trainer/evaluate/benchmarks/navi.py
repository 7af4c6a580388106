"""Correspondence on NAVI: is a place on an object found in another photograph of it? After Probe3D (El Banani et al., CVPR 2024).

Patch features of two photographs are upsampled to a grid; each point of the object in the first goes to the point of the object in
the second with the most similar feature. With poses and depth both have a place in space; a match is right if these are less than
2 cm apart. Recall is a pair's own, then a mean over pairs within bins of the angle between the two poses.

Probe3D keeps the 1000 matches of highest ratio (1 - distance to the nearest / to the second nearest). On an upsampled grid the
second nearest is mostly the neighbour of the nearest, which makes the ratio noisy, so recall over all points is there too. Its
pairs depend on the order in which the file system lists them; here they are sorted, and a digest names the list.

Photographs of a pair whose luminances differ little or much show what lighting does. Pairs are split into terciles within each bin
of angle, so that the terciles' angles are alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from trainer.evaluate.benchmarks.navi_data import Crop, Photograph, list_views, read_crop
from trainer.evaluate.benchmarks.settings import NaviSettings
from trainer.evaluate.features import PatchFeatures, encode_images
from trainer.evaluate.geometry import angle_between
from trainer.evaluate.results import finite_mean, plain
from trainer.evaluate.tables import Row, table

log = logging.getLogger(__name__)

BINS = {"3DPoV": (0, 15, 30, 60, 120), "Probe3D": (0, 30, 60, 90, 120)}
"""Edges, in degrees, of the bins of angle that papers report; a bin has its lower edge and not its upper one."""
METRES = (0.01, 0.02, 0.05)
PIXELS = (5, 25, 50)
_LEVELS = 32  # of a luminance histogram
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 2048
_TELL = 50  # pairs between two lines of progress
_FEWEST = 2  # points a photograph needs for a second nearest

Points = Literal["best", "all"]
Light = Literal["similar", "different"]


@dataclass(frozen=True)
class Recalls:
    """Shares of matches nearer than 1, 2 and 5 cm in space, and than 5, 25 and 50 px in the second crop."""

    metres: tuple[float, ...]
    pixels: tuple[float, ...]


@dataclass(frozen=True)
class PairScore:
    """One pair: the angle between its poses in degrees, its two recalls, and how much its luminances differ, 0 to 2."""

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

    `skipped` counts photographs without a partner within the angle, and pairs in which an object has less than two points.
    """

    settings: NaviSettings
    patch: int
    pairs: tuple[PairScore, ...]
    skipped: int
    digest: str

    def recall(self, points: Points = "best", metres: float = 0.02) -> float:
        """Recall at a distance, over all pairs."""
        return 100 * finite_mean(
            [getattr(pair, points).metres[METRES.index(metres)] for pair in self.pairs]
        )

    def pixel_recall(self, points: Points = "best", pixels: int = 25) -> float:
        """Recall at a distance in the second crop, over all pairs."""
        return 100 * finite_mean(
            [getattr(pair, points).pixels[PIXELS.index(pixels)] for pair in self.pairs]
        )

    def within(self, low: float, high: float, light: Light | None = None) -> list[PairScore]:
        """The pairs of a bin of angle; with `light`, the third of them whose luminances differ least or most."""
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
        """Recall at 2 cm and number of pairs in each bin; NaN for an empty bin."""
        bins = [self.within(low, high, light) for low, high in pairwise(edges)]
        return [
            (
                100
                * finite_mean([getattr(pair, points).metres[METRES.index(0.02)] for pair in found]),
                len(found),
            )
            for found in bins
        ]

    def by_item(self) -> dict[str, dict[str, float]]:
        """Recall at 2 cm of each pair, by bin of angle."""
        kinds: tuple[Points, ...] = ("best", "all")
        return {
            f"{points}, {low}-{high}°": {
                f"{p.first} {p.second}": 100 * getattr(p, points).metres[1]
                for p in self.within(low, high)
            }
            for points in kinds
            for low, high in pairwise(BINS["3DPoV"])
        }

    def paper_rows(self) -> dict[str, list[float]]:
        """The published tables, and our rows of them."""
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
        """Name, then recall at 2 cm in each bin of angle."""
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
        """Settings, figures, and every pair."""
        found: dict[str, Any] = plain(
            {
                "dataset": NAVI.name,
                "settings": self.settings.model_dump(),
                "patch": self.patch,
                "recall_metres": {
                    kind: {m: self.recall(kind, m) for m in METRES} for kind in ("best", "all")
                },
                "recall_pixels": {
                    kind: {p: self.pixel_recall(kind, p) for p in PIXELS}
                    for kind in ("best", "all")
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
        return found

    def __str__(self) -> str:
        lines = [f"NAVI wild_set: recall in % at {self.settings.size} px, patches of {self.patch}"]
        kinds: list[tuple[str, Points]] = [
            (f"best {self.settings.matches} matches", "best"),
            ("all points", "all"),
        ]
        overall: list[Row] = [
            [
                name,
                *(self.recall(kind, m) for m in METRES),
                *(self.pixel_recall(kind, p) for p in PIXELS),
            ]
            for name, kind in kinds
        ]
        lines.append(
            table(
                (
                    "all angles",
                    *(f"{m * 100:.0f} cm" for m in METRES),
                    *(f"{p} px" for p in PIXELS),
                ),
                overall,
            )
        )
        for name, edges in BINS.items():
            header = (f"2 cm, bins of {name}", *(f"{low}-{high}°" for low, high in pairwise(edges)))
            lines.append(
                table(
                    header,
                    [*self.rows(name), ["pairs", *(count for _, count in self.by_angle(edges))]],
                )
            )
        lines.append(
            f"  {len(self.pairs)} pairs ({self.skipped} skipped), list {self.digest}; light: a third of a bin's pairs each"
        )
        return "\n".join(lines)


def evaluate_navi(
    features: PatchFeatures, patch: int, root: Path, settings: NaviSettings | None = None
) -> NaviResult:
    """Scores the features of `features`, whose patches are `patch` pixels, on NAVI in the folder `root`.

    Raises SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or broken.
    """
    settings = settings or NaviSettings()
    chosen, skipped = choose_pairs(list_views(root, "wild_set"), settings)
    if not chosen:
        raise SettingsError(
            f"{root} has no two photographs of one object within {settings.farthest:g} degrees of each other"
        )
    scores = []
    for first, second in chosen:
        crops = read_crop(first, settings.size), read_crop(second, settings.size)
        maps = _encoded(features, crops, patch, settings)
        score = _score((first, second), crops, maps, settings)
        scores.append(score)
        if len(scores) % _TELL == 0:
            log.info("%d of %d pairs done", len(scores), len(chosen))
    found = tuple(score for score in scores if score is not None)
    digest = fingerprint_lines([f"{first.name} {second.name}" for first, second in chosen])
    return NaviResult(settings, patch, found, skipped + len(scores) - len(found), digest)


def choose_pairs(
    views: Sequence[Photograph], settings: NaviSettings
) -> tuple[list[tuple[Photograph, Photograph]], int]:
    """Pairs of different photographs of one collection, and how many photographs found no partner.

    Every photograph draws one partner, uniformly from those within (0, `farthest`] degrees; then every so many are kept.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    partners: list[tuple[Photograph, Photograph | None]] = []
    for folder in sorted({view.folder for view in views}):
        collection = sorted(
            (view for view in views if view.folder == folder), key=lambda view: view.stem
        )
        for view in collection:
            near = [
                other
                for other in collection
                if other is not view
                and 0 < angle_between(view.rotation, other.rotation) <= settings.farthest
            ]
            drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
            partners.append((view, near[int(drawn * len(near))] if near else None))
    kept = partners[:: settings.every]
    pairs = [(view, partner) for view, partner in kept if partner is not None]
    skipped = len(kept) - len(pairs)
    if settings.pairs is not None and settings.pairs < len(pairs):
        pairs = [
            pairs[i] for i in np.linspace(0, len(pairs) - 1, settings.pairs).round().astype(int)
        ]
    return pairs, skipped


def _encoded(
    features: PatchFeatures, crops: tuple[Crop, Crop], patch: int, settings: NaviSettings
) -> Tensor:
    """Features of both crops, upsampled to the grid of points: [2, D, grid, grid]."""
    maps = encode_images(features, torch.stack([crop.image for crop in crops]), patch)
    grid = -(-settings.size // settings.cell)
    return interpolate(maps.movedim(-1, 1), size=(grid, grid), mode="bicubic")


def _score(
    pair: tuple[Photograph, Photograph],
    crops: tuple[Crop, Crop],
    maps: Tensor,
    settings: NaviSettings,
) -> PairScore | None:
    """Matches the first crop's points to the second's; None if one of them has less than two."""
    step = slice(None, None, settings.cell)
    points = [crop.points[step, step] for crop in crops]
    seen = [places[..., 2] > 0 for places in points]
    if min(int(mask.sum()) for mask in seen) < _FEWEST:
        return None
    vectors = [
        normalize(m.movedim(0, -1)[mask.to(m.device)], dim=-1)
        for m, mask in zip(maps, seen, strict=True)
    ]
    indices, weights = (values.cpu() for values in nearest_with_ratio(vectors[0], vectors[1]))
    first, second = pair
    rotation = torch.from_numpy(second.rotation @ first.rotation.T)
    translation = torch.from_numpy(second.translation) - rotation @ torch.from_numpy(
        first.translation
    )
    moved = points[0][seen[0]].double() @ rotation.T + translation
    found = points[1][seen[1]].double()[indices]
    apart = (moved - found).norm(dim=1)
    pixels = (projected(moved, crops[1].focal) - projected(found, crops[1].focal)).norm(dim=1)
    best = weights.topk(min(settings.matches, len(weights))).indices
    return PairScore(
        first=first.name,
        second=second.name,
        angle=angle_between(first.rotation, second.rotation),
        light=luminance_distance(*crops),
        points=len(apart),
        best=_recalls(apart[best], pixels[best]),
        all=_recalls(apart, pixels),
    )


def _recalls(metres: Tensor, pixels: Tensor) -> Recalls:
    return Recalls(
        tuple((metres < limit).double().mean().item() for limit in METRES),
        tuple((pixels < limit).double().mean().item() for limit in PIXELS),
    )


def nearest_with_ratio(queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Of unit vectors [N, D] and [M, D]: the index of the nearest candidate [N], and 1 - its cosine distance / the second's [N].

    A few thousand queries at a time, so that memory is bounded.
    """
    indices, weights = [], []
    for part in queries.split(_CHUNK):
        similarity, index = (part @ candidates.T).topk(2, dim=1)
        distance = (1 - similarity).clamp(min=1e-9)
        indices.append(index[:, 0])
        weights.append(1 - distance[:, 0] / distance[:, 1])
    return torch.cat(indices), torch.cat(weights)


def projected(points: Tensor, focal: float) -> Tensor:
    """Places in pixels [N, 2], up to the principal point, of points [N, 3] in front of a camera."""
    return focal * points[:, :2] / points[:, 2:].clamp(min=1e-9)


def luminance_distance(first: Crop, second: Crop) -> float:
    """L1 distance, 0 to 2, between the histograms of the object's luminance (32 levels, each summing to one)."""
    histograms = []
    for crop in (first, second):
        luma = (crop.image.double() * torch.tensor(_LUMA, dtype=torch.float64)[:, None, None]).sum(
            dim=0
        )[crop.depth > 0]
        levels = (luma * _LEVELS / 256).long().clamp(max=_LEVELS - 1)
        counts = torch.bincount(levels, minlength=_LEVELS).double()
        histograms.append(counts / counts.sum().clamp(min=1))
    return float((histograms[0] - histograms[1]).abs().sum())
