"""What the scores of tracks say about a snapshot: by source, by gap, by angle, and by video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from shards.clip import RENDERED_DATASETS, VISIBLE_THRESHOLD, ClipInfo, Tracks
from shards.epipolar import read_poses, sampson_distances
from shards.track_scores import INLIER_PX

_SUSPICIOUS = 0.9
"""Videos with a smaller part of inliers than this are listed."""
_LISTED = 10
_ANGLES = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 180.0)
"""Edges of the bins of angles between optical axes, in degrees."""
_GAP_BINS = 12


@dataclass(frozen=True)
class SourceScores:
    """Scores of a source's clips: medians over clips, None where no clip has one.

    scored, posed:    numbers of its clips that have scores, and usable poses
    epipolar_inliers: the mean over clips
    """

    source: str
    clips: int
    scored: int
    posed: int
    turn: float | None
    baseline: float | None
    epipolar_px: float | None
    epipolar_inliers: float | None
    reprojection_px: float | None
    cycle_px: float | None


@dataclass(frozen=True)
class SuspiciousVideo:
    """A video with few inliers: the means over its posed clips."""

    source: str
    video_id: str
    clips: int
    epipolar_inliers: float
    epipolar_px: float


@dataclass(frozen=True)
class Inliers:
    """The part of visible points near their epipolar lines, from `low` up to `high`.

    Frames from the anchor frame, or degrees between the optical axes of the two frames.
    """

    low: float
    high: float
    points: int
    inliers: float


def source_scores(clips: pa.Table) -> tuple[SourceScores, ...]:
    """Summarise the columns of scores by source, in alphabetical order."""
    names = sorted(pc.unique(clips["source"]).to_pylist())
    return tuple(
        _source_scores(name, clips.filter(pc.equal(clips["source"], name))) for name in names
    )


def _source_scores(name: str, clips: pa.Table) -> SourceScores:
    return SourceScores(
        source=name,
        clips=len(clips),
        scored=len(clips) - clips["scores_size"].null_count,
        posed=pc.sum(clips["posed"]).as_py() or 0,
        turn=_median(clips["turn"]),
        baseline=_median(clips["baseline"]),
        epipolar_px=_median(clips["epipolar_px"]),
        epipolar_inliers=pc.mean(clips["epipolar_inliers"]).as_py(),
        reprojection_px=_median(clips["reprojection_px"]),
        cycle_px=_median(clips["cycle_px"]),
    )


def _median(column: pa.ChunkedArray) -> float | None:
    values = column.drop_null().to_numpy()
    return float(np.median(values)) if len(values) else None


def suspicious_videos(clips: pa.Table) -> tuple[tuple[SuspiciousVideo, ...], int]:
    """List the videos with the fewest inliers, the fewest first; at most a few. Count them all.

    Rendered videos are left out: their poses are exact, and points that move leave their lines.
    """
    rendered = pc.is_in(clips["dataset"], value_set=pa.array(RENDERED_DATASETS))
    posed = clips.filter(pc.and_(pc.is_valid(clips["epipolar_inliers"]), pc.invert(rendered)))
    means = posed.group_by(["source", "video_id"]).aggregate(
        [("key", "count"), ("epipolar_inliers", "mean"), ("epipolar_px", "mean")]
    )
    few = means.filter(pc.less(means["epipolar_inliers_mean"], _SUSPICIOUS))
    few = few.sort_by([("epipolar_inliers_mean", "ascending"), ("video_id", "ascending")])
    listed = tuple(
        SuspiciousVideo(
            source=row["source"],
            video_id=row["video_id"],
            clips=row["key_count"],
            epipolar_inliers=row["epipolar_inliers_mean"],
            epipolar_px=row["epipolar_px_mean"],
        )
        for row in few.slice(0, _LISTED).to_pylist()
    )
    return listed, len(few)


class InlierCounts:
    """Count inliers by frames from the anchor and by viewing angle, over sampled clips."""

    def __init__(self) -> None:
        self._gaps = [np.empty(0, np.int64)]
        self._angles = [np.empty(0)]
        self._inside = [np.empty(0, np.bool_)]

    def add(self, info: ClipInfo, tracks: Tracks) -> None:
        """Add the points of a clip; one without usable poses adds none."""
        poses = read_poses(info.cameras, info.frames)
        if not poses.differ:
            return
        positions = np.ascontiguousarray(np.moveaxis(tracks.positions, -1, 0), np.float64)
        distances = sampson_distances(poses, tracks.anchors, positions)
        visible = (tracks.visibility >= VISIBLE_THRESHOLD) & np.isfinite(distances)
        since = np.abs(np.arange(info.frames) - tracks.anchors[:, None])  # [A, T]
        axes = poses.rotations[:, 2]
        angles = np.degrees(np.arccos(np.clip(axes[tracks.anchors] @ axes.T, -1, 1)))
        for values, kept in ((since, self._gaps), (angles, self._angles)):
            kept.append(np.broadcast_to(values[..., None], distances.shape)[visible])
        self._inside.append(distances[visible] <= INLIER_PX)

    def by_gap(self) -> tuple[Inliers, ...]:
        """Return the part of inliers by frames from the anchor, in a dozen bins at most."""
        gaps = np.concatenate(self._gaps)
        width = -(-int(gaps.max(initial=1)) // _GAP_BINS)
        edges = np.arange(1, int(gaps.max(initial=1)) + width + 1, width, dtype=float)
        return tuple(self._bins(gaps, edges))

    def by_angle(self) -> tuple[Inliers, ...]:
        """Return the part of inliers by the angle between the two optical axes."""
        return tuple(self._bins(np.concatenate(self._angles), np.array(_ANGLES)))

    def _bins(self, values: NDArray[Any], edges: NDArray[np.float64]) -> Iterable[Inliers]:
        inside = np.concatenate(self._inside)
        number = np.searchsorted(edges, values, side="right") - 1
        for index, (low, high) in enumerate(pairwise(edges)):
            chosen = inside[number == index]
            if len(chosen):
                yield Inliers(float(low), float(high), len(chosen), float(chosen.mean()))


@dataclass(frozen=True)
class GeometryFigures:
    """All figures of scores.

    suspicious: the worst of the `suspicious_videos` videos with few inliers
    by_gap, by_angle: of sampled clips with poses
    """

    sources: tuple[SourceScores, ...]
    suspicious: tuple[SuspiciousVideo, ...]
    suspicious_videos: int
    by_gap: tuple[Inliers, ...]
    by_angle: tuple[Inliers, ...]


def measure_geometry(snapshot: Snapshot, counts: InlierCounts) -> GeometryFigures:
    """Collect the figures from the clips table and from the points counted so far."""
    suspicious, total = suspicious_videos(snapshot.clips)
    return GeometryFigures(
        sources=source_scores(snapshot.clips),
        suspicious=suspicious,
        suspicious_videos=total,
        by_gap=counts.by_gap(),
        by_angle=counts.by_angle(),
    )
