"""What is measured at every point of a pair of frames, and the figures that follow. No model and no file in here.

A pair is an anchor frame a and a later frame b; its n points lie at p in a and at q in b, in parts of the image. Features F are
unit vectors, read bilinearly between patches, each with its feature at its centre. d is the distance from q to the centre of the
patch of b that is most like F_a(p).

- PCK@t: the part of points with d < t. On *moving* points, those with |q - p| > 0.1, standing still earns nothing.
- matching AUC: the mean of 1 - min(d / 0.5, 1); median error: the median of d.
- track@k: among the n points of b, is one of the k most like F_a(p) the same point, or less than a patch away from it?
- rank correlation (Spearman's) and overlap@10 of the orders into which F_a(p) and F_b(q) bring the patches of a reference bank.
- consistency gap: cos(F_a(p), F_b(q)) less its mean over the other points q' of b.

Effective rank (Roy & Vetterli, The effective rank, EUSIPCO 2007) and the mean cosine of different patches show features that
collapse; drift is 1 - the mean cosine of a patch's features in two models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from trainer.evaluate.bootstrap import Better

NEAR = (0.05, 0.1, 0.2)
MOVING = 0.1
FARTHEST = 0.5
NEIGHBOURS = (1, 5)
OVERLAP = 10


@dataclass(frozen=True)
class Metric:
    """A figure: the mean (or median) of a measure over points, or over the moving ones."""

    name: str
    title: str
    measure: str
    better: Better
    moving: bool = False
    median: bool = False


METRICS = (
    Metric("moving_pck@0.1", "moving points found, PCK@0.1", "pck@0.1", "higher", moving=True),
    Metric("moving_pck@0.05", "moving points found, PCK@0.05", "pck@0.05", "higher", moving=True),
    Metric("moving_pck@0.2", "moving points found, PCK@0.2", "pck@0.2", "higher", moving=True),
    Metric("pck@0.05", "all points found, PCK@0.05", "pck@0.05", "higher"),
    Metric("pck@0.1", "all points found, PCK@0.1", "pck@0.1", "higher"),
    Metric("pck@0.2", "all points found, PCK@0.2", "pck@0.2", "higher"),
    Metric("auc", "matching AUC", "auc", "higher"),
    Metric("error", "median error, in parts of the image", "error", "lower", median=True),
    Metric("track@1", "tracks told apart, first answer", "track@1", "higher"),
    Metric("track@5", "tracks told apart, first five", "track@5", "higher"),
    Metric("rank_correlation", "rank correlation over the bank", "rank_correlation", ""),
    Metric("overlap@10", "overlap of the bank's first ten", "overlap@10", ""),
    Metric("consistency", "consistency gap", "consistency", ""),
)
"""The first is the headline."""

Measures = dict[str, NDArray[np.float64]]
"""By a measure's name, its value at each of a pair's points [n]; NaN where it has none."""


@dataclass(frozen=True, eq=False)
class FramePair:
    """A pair of frames of a clip: `gap` steps apart, `angle` degrees (NaN: not known), and what was measured at its points [n]."""

    clip: int
    gap: int
    angle: float
    moving: NDArray[np.bool_]
    measures: Measures


def figure(metric: Metric, pairs: Sequence[FramePair]) -> float:
    """A metric over all points of some pairs; NaN where there is none."""
    parts = [
        pair.measures[metric.measure][pair.moving]
        if metric.moving
        else pair.measures[metric.measure]
        for pair in pairs
    ]
    values = np.concatenate([*parts, np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan")
    return float(np.median(values) if metric.median else values.mean())


def angle_between(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Degrees between two poses with these rotation matrices [3, 3]: the angle of `second @ first.T`, from its trace."""
    return math.degrees(math.acos(float(np.clip((np.trace(second @ first.T) - 1) / 2, -1, 1))))


def moving(starts: Tensor, goals: Tensor) -> NDArray[np.bool_]:
    """Which points of a pair move: [n, 2], [n, 2] → [n]."""
    return ((goals - starts).norm(dim=-1) > MOVING).numpy()


def measure(anchor: Tensor, later: Tensor, starts: Tensor, goals: Tensor, bank: Tensor) -> Measures:
    """Every measure of a model at the points of a pair.

    anchor, later: [h, w, D] unit features of the two frames
    starts, goals: [n, 2] where the points lie in them
    bank:          [R, D] unit features of patches of other clips
    """
    rows, columns = later.shape[:2]
    queries, answers = features_at(anchor, starts), features_at(later, goals)
    alike = queries @ answers.T
    measures = located((found_at(anchor, later, starts) - goals).norm(dim=-1))
    measures |= told_apart(alike, goals, rows, columns)
    measures |= ranked(queries @ bank.T, answers @ bank.T)
    measures["consistency"] = consistency(alike)
    return {name: values.double().numpy() for name, values in measures.items()}


def measure_still(starts: Tensor, goals: Tensor, rows: int, columns: int) -> Measures:
    """The same for the answer "it has not moved": what a model without features would score on these points."""
    measures = located((goals - starts).norm(dim=-1))
    measures |= told_apart(-_apart(starts, goals), goals, rows, columns)
    nothing = torch.full((len(goals),), torch.nan)
    measures |= dict.fromkeys(("rank_correlation", "overlap@10", "consistency"), nothing)
    return {name: values.double().numpy() for name, values in measures.items()}


def measure_chance(goals: Tensor, rows: int, columns: int, bank: int) -> Measures:
    """The expected measures of features that know nothing: each patch, point and order as likely as any other.

    `bank` is the number of patches in the reference bank.
    """
    distances = _apart(goals, patch_centres(rows, columns))
    measures = {name: values.mean(dim=1) for name, values in located(distances).items()}
    measures["error"] = distances.median(dim=1).values
    close = (_cells_apart(goals, rows, columns) < 1).sum(dim=1).double()
    count = torch.tensor(float(len(goals)))
    for k in NEIGHBOURS:
        missed = torch.ones(len(goals), dtype=torch.float64)
        for drawn in range(min(k, len(goals))):
            missed *= ((count - close - drawn) / (count - drawn)).clamp_min(0)
        measures[f"track@{k}"] = 1 - missed
    measures["rank_correlation"] = torch.full((len(goals),), 0.0 if bank > 1 else torch.nan)
    measures["overlap@10"] = torch.full(
        (len(goals),), min(OVERLAP, bank) / bank if bank else torch.nan
    )
    measures["consistency"] = torch.zeros(len(goals))
    return {name: values.double().numpy() for name, values in measures.items()}


def found_at(anchor: Tensor, later: Tensor, starts: Tensor) -> Tensor:
    """Where a model finds points of the anchor frame again: the most similar patches' centres, [n, 2] in parts of the image."""
    rows, columns = later.shape[:2]
    return patch_centres(rows, columns)[
        (features_at(anchor, starts) @ later.flatten(0, 1).T).argmax(dim=1)
    ]


def features_at(features: Tensor, places: Tensor) -> Tensor:
    """Unit features between patches: [h, w, D] at places [n, 2] (parts of the image) → [n, D]."""
    grid = (2 * places - 1)[None, None].to(features.dtype)
    found = grid_sample(
        features.movedim(-1, 0)[None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return normalize(found[0, :, 0].T, dim=-1)


def patch_centres(rows: int, columns: int) -> Tensor:
    """(x, y) of each patch's centre in parts of the image, row by row: [rows * columns, 2]."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def located(distances: Tensor) -> dict[str, Tensor]:
    """PCK, AUC and error of distances, in their shape."""
    near = {f"pck@{t}": (distances < t).float() for t in NEAR}
    return near | {"auc": 1 - (distances / FARTHEST).clamp(max=1), "error": distances}


def told_apart(alike: Tensor, goals: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
    """Track@k: of similarities [n, n] from a point of the anchor (row) to all points of the later frame, which lie at `goals`."""
    close = _cells_apart(goals, rows, columns) < 1
    found = {}
    for k in NEIGHBOURS:
        likest = alike.topk(min(k, len(goals)), dim=1).indices
        found[f"track@{k}"] = close.gather(1, likest).any(dim=1).float()
    return found


def ranked(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """How far two orders of the bank agree, of similarities [n, R] each; NaN where the bank is too small, or all of it alike."""
    count = first.shape[1]
    if count < 2:
        return {
            name: torch.full((len(first),), torch.nan)
            for name in ("rank_correlation", "overlap@10")
        }
    a, b = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (_ranks(first), _ranks(second)))
    correlation = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))  # 0 / 0 is NaN
    k = min(OVERLAP, count)
    tops = [similarities.topk(k, dim=1).indices for similarities in (first, second)]
    overlap = (tops[0][:, :, None] == tops[1][:, None]).any(dim=2).double().mean(dim=1)
    return {"rank_correlation": correlation, "overlap@10": overlap}


def consistency(alike: Tensor) -> Tensor:
    """A point's cosine with itself less that with the other points: [n, n] → [n], NaN for a point alone."""
    n = len(alike)
    own = alike.diagonal()
    return own - (alike.sum(dim=1) - own) / (n - 1) if n > 1 else torch.full((n,), torch.nan)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues: [rows, D] → 1..D; NaN where all rows are equal."""
    values = torch.linalg.eigvalsh(features.double().T.cov()).clamp_min(0)
    return float(torch.special.entr(values / values.sum()).sum().exp())


def mean_cosine(features: Tensor) -> float:
    """The mean cosine of two different rows of unit features [rows, D]."""
    rows = len(features)
    return float((features.double().sum(dim=0).square().sum() - rows) / (rows * (rows - 1)))


def drift(features: Tensor, base: Tensor) -> float:
    """1 - the mean cosine of the unit features of the same patches in two models [..., D]; NaN where their widths differ."""
    if features.shape[-1] != base.shape[-1]:
        return float("nan")
    return 1 - float((features * base).sum(dim=-1).double().mean())


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis, equal values sharing the mean of theirs: [n, R]."""
    ordered = values.sort(dim=-1).values
    low, high = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (low + high).double() / 2


def _cells_apart(places: Tensor, rows: int, columns: int) -> Tensor:
    """Distances between places [n, 2], in patches: [n, n]."""
    scaled = places * torch.tensor([columns, rows], dtype=places.dtype)
    return _apart(scaled, scaled)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Distances between places [n, 2] and [m, 2]: [n, m], without the matrix products that make them inexact."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
