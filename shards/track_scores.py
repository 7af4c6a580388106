"""Score tracks by what did not make them: cameras, and following a point to and fro.

On a static scene a right track stays on its anchor's epipolar lines, and all its rays meet in one
point. Neither needs depth, labels or another tracker. What a score cannot see: errors along the
line (triangulation sees most of them), and whether a point that leaves its line is wrong or moves.

Legend of shapes: A anchors, T frames, N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from shards.clip import RENDERED_DATASETS, VISIBLE_THRESHOLD, ClipInfo, Tracks
from shards.cycles import cycle_errors
from shards.epipolar import Poses, read_poses, sampson_distances, triangulate

INLIER_PX = 2.0
"""A point nearer to its epipolar line than this is an inlier."""

LEAST_PARALLAX = 1.0
"""Degrees of parallax from which a track is triangulated."""
_FEWEST_POINTS = 8
"""Visible points of an anchor that a frame needs to be compared with its poses."""
_WRONG_PX, _WRONG_RATIO = 3.0, 6.0
"""The pose of a frame is wrong if the median distance of its points is above both this many pixels
and this multiple of the clip's median frame."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrackScores:
    """Scores of a clip's tracks, float32 [A, N] each; NaN where there is none.

    epipolar:     largest Sampson distance from the anchor's epipolar line while visible, in pixels
    reprojection: root mean square distance from the projections of the triangulated point, in
                  pixels; only with a parallax of at least 1 degree
    parallax:     largest angle between the ray in the anchor frame and that in another, in degrees
    cycle:        mean error of going to each of the other anchors and back, in pixels
    """

    epipolar: Scores
    reprojection: Scores
    parallax: Scores
    cycle: Scores

    @property
    def planes(self) -> tuple[Scores, ...]:
        """The four scores, in their stored order."""
        return self.epipolar, self.reprojection, self.parallax, self.cycle


@dataclass(frozen=True)
class ClipScores:
    """Scores of a clip: columns of the clips table. None where there is none, never 0.

    posed:            whether at least two frames have usable poses that differ
    turn:             largest angle between two optical axes, in degrees
    baseline:         largest distance between two cameras, relative to the median depth of the
                      triangulated points
    epipolar_px:      median Sampson distance of all visible points, in pixels
    epipolar_inliers: the part of them within 2 px
    reprojection_px:  median over tracks of the reprojection error
    cycle_px:         median error of going to another anchor and back
    """

    posed: bool
    turn: float | None = None
    baseline: float | None = None
    epipolar_px: float | None = None
    epipolar_inliers: float | None = None
    reprojection_px: float | None = None
    cycle_px: float | None = None


@dataclass(frozen=True, eq=False)
class ScoredClip:
    """The scores of a clip.

    unusable: frames whose cameras are not finite, out of range, singular or mirrored
    wrong:    frames whose points leave their epipolar lines together, so that their poses are
              wrong; none in a rendered dataset, whose cameras are exact: these points move

    Wrong frames take no part in scores, except for the median and the inliers of the clip.
    """

    tracks: TrackScores
    clip: ClipScores
    unusable: tuple[int, ...]
    wrong: tuple[int, ...]


def scores_version(dataset: str) -> int:
    """Return the version of the scores of a dataset's tracks.

    It is raised by hand when the same tracks and cameras give other scores: a build scores them
    again.
    """
    # 2: exact cameras are not doubted
    return 2 if dataset in RENDERED_DATASETS else 1


def score_clip(tracks: Tracks, info: ClipInfo) -> ScoredClip:
    """Score the tracks of a clip by its stored cameras and by each other."""
    errors = cycle_errors(tracks)
    cycle, cycle_px = _mean(errors), _median(errors[np.isfinite(errors)])
    poses = read_poses(info.cameras, info.frames)
    unusable = [t for t, camera in enumerate(info.cameras or ()) if camera and not poses.usable[t]]
    visible = visible_points(tracks)
    if not poses.differ:
        unknown = np.full_like(cycle, np.nan)
        return ScoredClip(
            TrackScores(unknown, unknown, unknown, cycle),
            ClipScores(posed=False, cycle_px=cycle_px),
            tuple(unusable),
            (),
        )
    # x and y apart, each in one piece of memory; one anchor at a time fits a core's cache.
    positions = np.ascontiguousarray(np.moveaxis(tracks.positions, -1, 0), np.float64)
    parts = [slice(row, row + 1) for row in range(len(tracks.anchors))]
    distances = np.empty(visible.shape, np.float32)
    for part in parts:
        distances[part] = sampson_distances(poses, tracks.anchors[part], positions[:, part])
    distances[~visible] = np.nan
    known = distances[np.isfinite(distances)]
    # Wrong poses tell nothing about tracks.
    exact = info.dataset in RENDERED_DATASETS
    wrong = np.zeros(info.frames, np.bool_) if exact else _wrong_frames(distances)
    if wrong.any():
        distances[wrong[tracks.anchors]] = np.nan
        distances[:, wrong] = np.nan
    right = poses.without(wrong)
    triangulated = [
        _triangulate(right, tracks.anchors[part], positions[:, part], visible[part])
        for part in parts
    ]
    reprojection, parallax, depths = map(np.concatenate, zip(*triangulated, strict=True))
    depth = _median(depths[depths > 0])
    return ScoredClip(
        # fmax leaves NaN out.
        tracks=TrackScores(np.fmax.reduce(distances, axis=1), reprojection, parallax, cycle),
        clip=ClipScores(
            posed=True,
            turn=_number(right.turn),
            baseline=_number(right.baselines.max() / depth) if depth else None,
            epipolar_px=_median(known),
            epipolar_inliers=float((known <= INLIER_PX).mean()) if len(known) else None,
            reprojection_px=_median(reprojection[~np.isnan(reprojection)]),
            cycle_px=cycle_px,
        ),
        unusable=tuple(unusable),
        wrong=tuple(np.flatnonzero(wrong).tolist()),
    )


def visible_points(tracks: Tracks) -> NDArray[np.bool_]:
    """Tell where points are visible: [A, T, N]. A point starts from its query, so it is there."""
    visible = tracks.visibility >= VISIBLE_THRESHOLD
    visible[np.arange(len(tracks.anchors)), tracks.anchors] = True
    return visible


def _triangulate(
    poses: Poses,
    anchors: NDArray[np.int32],
    positions: NDArray[np.float64],
    visible: NDArray[np.bool_],
) -> tuple[Scores, Scores, Scores]:
    """Return reprojection errors, parallax and depths [A, N], NaN where there is none."""
    points = triangulate(poses, anchors, positions, visible)
    # An anchor without a pose has no ray to compare others with.
    points.parallax[~poses.usable[anchors]] = np.nan
    near = points.parallax >= LEAST_PARALLAX
    errors, depths = (np.where(near, values, np.nan) for values in (points.errors, points.depths))
    return errors.astype(np.float32), points.parallax.astype(np.float32), depths.astype(np.float32)


def _wrong_frames(distances: Scores) -> NDArray[np.bool_]:
    """Tell which frames' poses do not fit: bool [T], from distances [A, T, N] (NaN if unknown).

    A frame is judged by its lower median over the anchors: tracks drift away from far anchors, and
    an anchor's own pose may be the wrong one. Most frames must agree, or none can be named.
    """
    counts = np.isfinite(distances).sum(axis=2)
    enough = counts >= _FEWEST_POINTS
    ordered = np.sort(distances, axis=2)  # NaN last
    middle = np.maximum(counts - 1, 0) // 2
    medians = np.take_along_axis(ordered, middle[..., None], axis=2)[..., 0]
    by_anchor = np.sort(np.where(enough, medians, np.inf), axis=0)
    voters = enough.sum(axis=0)  # [T]
    judged = voters > 0
    if not judged.any():
        return judged
    vote = by_anchor[np.maximum(voters - 1, 0) // 2, np.arange(len(voters))]
    limit = max(_WRONG_PX, _WRONG_RATIO * float(np.median(vote[judged])))
    return judged & (vote > limit)


def _mean(errors: NDArray[np.float32]) -> Scores:
    """Return the mean over the second axis, NaN left out: [A, A, N] → [A, N]."""
    known = np.isfinite(errors)
    with np.errstate(invalid="ignore"):
        means = np.where(known, errors, 0).sum(axis=1) / known.sum(axis=1)
    return np.asarray(means, np.float32)


def _median(values: NDArray[np.floating]) -> float | None:
    return _number(float(np.median(values))) if len(values) else None


def _number(value: float) -> float | None:
    """Return a finite number, None for any other: tables and JSON have no NaN."""
    return float(value) if isfinite(value) else None
