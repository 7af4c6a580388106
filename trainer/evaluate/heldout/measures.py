"""Label-free measures at every point of a frame pair, and the metrics made of them.

A pair is an anchor frame a and a later frame b. Its n points lie at p in a (the queries) and at q
in b (the targets), as fractions of the image. Features F are unit vectors, sampled bilinearly
between patches; a patch's feature lies at its centre. d is the distance from q to the centre of the
patch of b that is most similar to F_a(p).

- PCK@t: the share of points with d < t. On *moving* points, those with |q - p| > 0.1, an answer
  that never moves scores nothing.
- matching AUC: the mean of 1 - min(d / 0.5, 1); median error: the median of d.
- location error: the mean city-block distance |dx| + |dy| from q to that centre.
- track@k: among the n points of b, is one of the k most similar to F_a(p) the same point, or less
  than a patch away from it? Of moving points, too, an answer that never moves finds few.
- epipolar recall: the share of points whose answer, refined between patches, lies within 4 px of
  the stored frame of the epipolar line of p. It needs cameras and no q, and a world at rest.
- rank correlation (Spearman's) and overlap@10 of the orders into which F_a(p) and F_b(q) bring the
  patches of a reference bank.
- consistency gap: cos(F_a(p), F_b(q)) less its mean over the other points q' of b.

Effective rank (Roy & Vetterli, The effective rank, EUSIPCO 2007) and the mean cosine of different
patches show features that collapse; drift is 1 - the mean cosine of a patch's features in two
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from trainer.evaluate.intervals import Better

PCK_THRESHOLDS = (0.05, 0.1, 0.2)
MOVING_DISTANCE = 0.1
AUC_LIMIT = 0.5
TRACK_RANKS = (1, 5)
OVERLAP_RANKS = 10


@dataclass(frozen=True)
class Metric:
    """The mean (or median) of a measure over points.

    moving:  over moving points only
    objects: over points on objects only, as the clips' masks tell them
    angles:  over points with a viewing angle from the first to below the second of these degrees
    listed:  shown in tables; metrics that are not are in the results only
    """

    name: str
    title: str
    measure: str
    better: Better
    moving: bool = False
    median: bool = False
    objects: bool = False
    angles: tuple[float, float] | None = None
    listed: bool = True


METRICS = (
    Metric("moving_pck@0.1", "moving points found, PCK@0.1", "pck@0.1", "higher", moving=True),
    Metric("moving_pck@0.05", "moving points found, PCK@0.05", "pck@0.05", "higher", moving=True),
    Metric("moving_pck@0.2", "moving points found, PCK@0.2", "pck@0.2", "higher", moving=True),
    Metric("pck@0.05", "all points found, PCK@0.05", "pck@0.05", "higher"),
    Metric("pck@0.1", "all points found, PCK@0.1", "pck@0.1", "higher"),
    Metric("pck@0.2", "all points found, PCK@0.2", "pck@0.2", "higher"),
    Metric("auc", "matching AUC", "auc", "higher"),
    Metric("error", "median error, in parts of the image", "error", "lower", median=True),
    Metric(
        "city_block", "location error, city block, in parts of the image", "city_block", "lower"
    ),
    Metric(
        "moving_track@1", "moving tracks told apart, first answer", "track@1", "higher", moving=True
    ),
    Metric(
        "moving_track@5", "moving tracks told apart, first five", "track@5", "higher", moving=True
    ),
    Metric("track@1", "tracks told apart, first answer", "track@1", "higher", listed=False),
    Metric("track@5", "tracks told apart, first five", "track@5", "higher", listed=False),
    Metric("epipolar@4px", "answers within 4 px of the epipolar line", "epipolar@4px", "higher"),
    Metric("rank_correlation", "rank correlation over the bank", "rank_correlation", ""),
    Metric("overlap@10", "overlap of the bank's first ten", "overlap@10", ""),
    Metric("consistency", "consistency gap", "consistency", ""),
    Metric(
        "object_pck@0.1_at_40-70",
        "points on objects found at 40-70 degrees, PCK@0.1",
        "pck@0.1",
        "higher",
        objects=True,
        angles=(40.0, 70.0),
    ),
)
"""The first is the headline. Names and titles are written into results."""
NAMED = {metric.name: metric for metric in METRICS}
BY_VIEWING_ANGLE = (NAMED["pck@0.1"], NAMED["city_block"])
"""Metrics with a table and a curve over points' viewing angles."""
ENDPOINT = NAMED["object_pck@0.1_at_40-70"]
"""The metric that experiments decide by."""

Measures = dict[str, NDArray[np.float64]]
"""A measure's name → its value at each point of a pair [n]; NaN where it has none."""


@dataclass(frozen=True, eq=False)
class FramePair:
    """A pair of frames of a clip, with the measures at its n points.

    clip:   index of the clip
    gap:    steps from the anchor frame to the later one
    angle:  degrees between their cameras; NaN if a pose is unknown
    moving: bool [n], which points move
    viewing_angles: float [n], degrees between the rays to each point, NaN if unknown; None for all
    on_object: bool [n], which points lie on objects; None if no mask tells
    """

    clip: int
    gap: int
    angle: float
    moving: NDArray[np.bool_]
    measures: Measures
    viewing_angles: NDArray[np.float64] | None = None
    on_object: NDArray[np.bool_] | None = None

    def counted(self, metric: Metric) -> NDArray[np.bool_]:
        """Tell which points a metric counts: bool [n]."""
        chosen = self.moving.copy() if metric.moving else np.ones_like(self.moving)
        if metric.objects:
            chosen &= False if self.on_object is None else self.on_object
        if metric.angles:
            low, high = metric.angles
            degrees = np.nan if self.viewing_angles is None else self.viewing_angles
            chosen &= (degrees >= low) & (degrees < high)  # NaN is neither
        return chosen


def aggregate(
    metric: Metric,
    pairs: Sequence[FramePair],
    parts: Sequence[NDArray[np.bool_] | bool] | None = None,
) -> float:
    """Compute a metric over all points of some pairs; NaN if there is none.

    parts: the points of each pair to take, bool [n]; None for all
    """
    per_pair = [np.zeros(0)]
    for pair, part in zip(pairs, [True] * len(pairs) if parts is None else parts, strict=True):
        per_pair.append(pair.measures[metric.measure][pair.counted(metric) & part])
    values = np.concatenate(per_pair)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan
    return float(np.median(values) if metric.median else values.mean())


def moving_points(queries: Tensor, targets: Tensor) -> NDArray[np.bool_]:
    """Tell which points of a pair move: positions [n, 2], [n, 2] → bool [n]."""
    return ((targets - queries).norm(dim=-1) > MOVING_DISTANCE).numpy()


def measure_model(
    anchor: Tensor, later: Tensor, queries: Tensor, targets: Tensor, references: Tensor
) -> Measures:
    """Compute every measure of a model at the points of a pair.

    anchor, later:    [h, w, D] unit features of the two frames
    queries, targets: [n, 2] positions of the points in the anchor and in the later frame
    references:       [R, D] unit features of patches of other clips, the reference bank
    """
    rows, columns = later.shape[:2]
    query_features, target_features = (
        sample_features(anchor, queries),
        sample_features(later, targets),
    )
    similarities = query_features @ target_features.T
    measures = localisation(match(anchor, later, queries) - targets)
    measures |= track_retrieval(similarities, targets, rows, columns)
    measures |= rank_agreement(query_features @ references.T, target_features @ references.T)
    measures["consistency"] = consistency_gap(similarities)
    return _as_numpy(measures)


def measure_static(queries: Tensor, targets: Tensor, rows: int, columns: int) -> Measures:
    """Measure the static baseline, the answer "it has not moved".

    This is what a model whose features never move would score on these points.
    """
    measures = localisation(targets - queries)
    measures |= track_retrieval(-_distances(queries, targets), targets, rows, columns)
    undefined = torch.full((len(targets),), torch.nan)
    measures |= dict.fromkeys(("rank_correlation", "overlap@10", "consistency"), undefined)
    return _as_numpy(measures)


def measure_chance(targets: Tensor, rows: int, columns: int, references: int) -> Measures:
    """Compute the expected measures of features without information.

    All patches, points and orders are equally likely.

    references: number of patches in the reference bank
    """
    count = len(targets)
    # Localisation: any patch of the later frame may be the answer.
    offsets = patch_centres(rows, columns) - targets[:, None]
    by_patch = localisation(offsets)
    measures = {name: values.mean(dim=1) for name, values in by_patch.items()}
    measures["error"] = by_patch["error"].median(dim=1).values
    # Track@k: k points are drawn without replacement, and none of them may be close to the target.
    close = (_patch_distances(targets, rows, columns) < 1).sum(dim=1).double()
    total = torch.tensor(float(count))
    for k in TRACK_RANKS:
        missed = torch.ones(count, dtype=torch.float64)
        for drawn in range(min(k, count)):
            missed *= ((total - close - drawn) / (total - drawn)).clamp_min(0)
        measures[f"track@{k}"] = 1 - missed
    # Orders of the bank: uncorrelated, and the top ranks of one are anywhere in the other.
    overlap = min(OVERLAP_RANKS, references) / references if references else torch.nan
    measures["rank_correlation"] = torch.full((count,), 0.0 if references > 1 else torch.nan)
    measures["overlap@10"] = torch.full((count,), overlap)
    measures["consistency"] = torch.zeros(count)
    return _as_numpy(measures)


def _as_numpy(measures: dict[str, Tensor]) -> Measures:
    return {name: values.double().numpy() for name, values in measures.items()}


def match(anchor: Tensor, later: Tensor, queries: Tensor) -> Tensor:
    """Match points of the anchor frame to the centres of the most similar patches: [n, 2]."""
    rows, columns = later.shape[:2]
    similarities = sample_features(anchor, queries) @ later.flatten(0, 1).T
    return patch_centres(rows, columns)[similarities.argmax(dim=1)]


def sample_features(features: Tensor, positions: Tensor) -> Tensor:
    """Sample unit features between patches: [h, w, D] at positions [n, 2] → [n, D].

    Positions are (x, y) as fractions of the image. Beyond the outermost patch centres the border
    patch's feature is taken.
    """
    sampled = grid_sample(
        features.movedim(-1, 0)[None],
        (2 * positions - 1)[None, None].to(features.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return normalize(sampled[0, :, 0].T, dim=-1)


def patch_centres(rows: int, columns: int) -> Tensor:
    """Return patch centres (x, y), as fractions of the image, row by row: [rows * columns, 2]."""
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def localisation(offsets: Tensor) -> dict[str, Tensor]:
    """Compute PCK, AUC and errors of offsets [..., 2], in fractions of the image: [...] each."""
    distances = offsets.norm(dim=-1)
    pck = {f"pck@{t}": (distances < t).float() for t in PCK_THRESHOLDS}
    return pck | {
        "auc": 1 - (distances / AUC_LIMIT).clamp(max=1),
        "error": distances,
        "city_block": offsets.abs().sum(dim=-1),
    }


def track_retrieval(
    similarities: Tensor, targets: Tensor, rows: int, columns: int
) -> dict[str, Tensor]:
    """Compute track@k of each point.

    similarities: [n, n] from a point of the anchor frame (row) to every point of the later frame
    targets:      [n, 2] positions of the points in the later frame
    rows, columns: patches of the later frame; a distance below one patch counts as the same point
    """
    close = _patch_distances(targets, rows, columns) < 1
    measures = {}
    for k in TRACK_RANKS:
        nearest = similarities.topk(min(k, len(targets)), dim=1).indices
        measures[f"track@{k}"] = close.gather(1, nearest).any(dim=1).float()
    return measures


def rank_agreement(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Measure the agreement of two orders of the reference bank, from similarities [n, R] each.

    NaN for a bank of fewer than two patches; the correlation is also NaN if all similarities are
    equal.
    """
    count = first.shape[1]
    if count < 2:
        undefined = torch.full((len(first),), torch.nan)
        return {"rank_correlation": undefined, "overlap@10": undefined}
    # Spearman's correlation is Pearson's of the ranks.
    a, b = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (_ranks(first), _ranks(second)))
    correlation = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))  # 0 / 0 is NaN
    k = min(OVERLAP_RANKS, count)
    top_first, top_second = (values.topk(k, dim=1).indices for values in (first, second))
    shared = (top_first[:, :, None] == top_second[:, None]).any(dim=2)
    return {"rank_correlation": correlation, "overlap@10": shared.double().mean(dim=1)}


def consistency_gap(similarities: Tensor) -> Tensor:
    """Compute a point's cosine with itself less its mean with the others: [n, n] → [n].

    NaN for a point alone.
    """
    n = len(similarities)
    if n < 2:
        return torch.full((n,), torch.nan)
    same = similarities.diagonal()
    return same - (similarities.sum(dim=1) - same) / (n - 1)


def effective_rank(features: Tensor) -> float:
    """Compute exp of the entropy of the covariance's normalised eigenvalues: [rows, D] → 1 to D.

    NaN if all rows are equal.
    """
    eigenvalues = torch.linalg.eigvalsh(features.double().T.cov()).clamp_min(0)
    return float(torch.special.entr(eigenvalues / eigenvalues.sum()).sum().exp())


def mean_cosine(features: Tensor) -> float:
    """Compute the mean cosine of two different rows of unit features [rows, D].

    The squared norm of the sum is the sum over all pairs of rows, each with itself included.
    """
    rows = len(features)
    return float((features.double().sum(dim=0).square().sum() - rows) / (rows * (rows - 1)))


def drift(features: Tensor, base: Tensor) -> float:
    """Compute 1 - the mean cosine of unit features [..., D] of the same patches in two models.

    NaN if their widths differ.
    """
    if features.shape[-1] != base.shape[-1]:
        return np.nan
    return 1 - float((features * base).sum(dim=-1).double().mean())


def _ranks(values: Tensor) -> Tensor:
    """Rank values along the last axis [n, R]; equal values share their mean rank."""
    ordered = values.sort(dim=-1).values
    low, high = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (low + high).double() / 2


def _patch_distances(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Compute the distances between positions [n, 2], in patches: [n, n]."""
    scaled = positions * torch.tensor([columns, rows])
    return _distances(scaled, scaled)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Compute the distances between positions [n, 2] and [m, 2]: [n, m].

    Computed directly: by a matrix product, torch's default for many points, they would be inexact.
    """
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
