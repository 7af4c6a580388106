"""How well scores find bad tracks, and what they cost: `python -m benchmarks.track_scores`.

Static scenes of random points before cameras on an arc, 48 frames of 320x256, 3 anchors of 256
points, right tracks with a noise of 0.25 px, and planted faults. A track is bad if it is ever more
than 2 px off while visible. The table has the area under the ROC curve over the tracks that have a
score: of the larger of epipolar and reprojection score, of each alone, and of a stored confidence
that notices a part of the errors. Then the time of scoring such a clip, in CPU time.

The last table has real tracks: those of Lucas-Kanade on rendered static planes, whose true tracks
are known. It compares all tracks with those that a filter keeps, `tracks.max_epipolar_px` or the
same number of tracks of the highest mean confidence, by TAP-Vid's metrics and by the part of the
points called visible that are really visible and within 2 px.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import make_parser
from benchmarks.tap_vid import FRAME_SIDE, tap_metrics
from pipeline.sources.synthetic_scene import render
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from shards.clip import VISIBLE_THRESHOLD, Tracks
from shards.geometry import grid_points
from shards.track_scores import score_clip
from tests.helpers.static_planes import static_planes
from tests.helpers.static_scene import FAULTS, area_under_curve, static_scene, with_confidence

SCENES, ROUNDS = 5, 200
TURNS = (2.0, 8.0, 20.0, 40.0, 90.0)
RENDERED_SCENES, RENDERED_FRAMES = 6, 24
RENDERED_TURNS = (10.0, 30.0, 60.0)
LIMIT_PX = 2.0


def rows() -> Iterator[str]:
    """Yield a row per fault and angle: means over scenes."""
    for fault, plant in FAULTS.items():
        for turn in TURNS:
            figures = []
            for seed in range(SCENES):
                scene = with_confidence(plant(static_scene(seed, turn=turn)), seed)
                scores = score_clip(scene.tracks, scene.info).tracks
                bad = scene.errors.ravel() > 2
                both = np.fmax(scores.epipolar, scores.reprojection).ravel()
                doubt = -scene.tracks.confidence.min(axis=1).ravel().astype(float)
                areas = []
                for values in (both, scores.epipolar.ravel(), scores.reprojection.ravel(), doubt):
                    known = ~(np.isnan(values) | np.isnan(both))
                    few = not bad[known].any() or bad[known].all()
                    area = area_under_curve(values[known].astype(np.float64), bad[known])
                    areas.append(np.nan if few else area)
                figures.append((bad.mean(), (~np.isnan(both)).mean(), *areas))
            bad_part, scored, *found = (mean(column) for column in zip(*figures, strict=True))
            cells = " | ".join("" if np.isnan(area) else f"{area:.3f}" for area in found)
            yield f"| {fault} | {turn:.0f}° | {bad_part:.0%} | {scored:.0%} | {cells} |"


def seconds_per_clip() -> list[float]:
    """Time the scoring of one clip, many times."""
    scene = static_scene()
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        score_clip(scene.tracks, scene.info)
        times.append(time.process_time() - started)
    return times


def filtered_rows() -> Iterator[str]:
    """Yield a row per angle and filter: means over scenes of real tracks."""
    for turn in RENDERED_TURNS:
        figures: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(RENDERED_SCENES):
            for name, values in _filtered(seed, turn).items():
                figures.setdefault(name, []).append(values)
        for name, rows_of_filter in figures.items():
            kept, *values = np.nanmean(rows_of_filter, axis=0)
            cells = " | ".join(f"{100 * value:.1f}" for value in values)
            yield f"| {turn:.0f}° | {name} | {kept:.0%} | {cells} |"


def _filtered(seed: int, turn: float) -> dict[str, tuple[float, ...]]:
    """Track one scene, and score what each filter keeps.

    Returns per filter: part kept, average Jaccard, delta, occlusion accuracy, part right.
    """
    planes = static_planes(seed, RENDERED_FRAMES, turn, FRAME_SIDE, FRAME_SIDE)
    frames = np.stack([render(planes.scene, t) for t in range(RENDERED_FRAMES)])
    queries = grid_points(16, FRAME_SIDE, FRAME_SIDE)
    (tracks,) = LucasKanadeSettings().load().track([frames], [planes.info], [0], queries)
    true, visible = planes.true_tracks(0, queries)
    epipolar = score_clip(tracks, planes.info).tracks.epipolar[0]
    by_score = ~(epipolar > LIMIT_PX)
    confidence = tracks.confidence[0].mean(axis=0)
    by_confidence = np.zeros(len(queries), np.bool_)
    by_confidence[np.argsort(-confidence, kind="stable")[: by_score.sum()]] = True
    filters = {
        "none": np.ones(len(queries), np.bool_),
        f"epipolar score ≤ {LIMIT_PX:g} px": by_score,
        "as many by confidence": by_confidence,
    }
    return {name: _quality(tracks, true, visible, kept) for name, kept in filters.items()}


def _quality(
    tracks: Tracks, true: NDArray[np.float64], visible: NDArray[np.bool_], kept: NDArray[np.bool_]
) -> tuple[float, ...]:
    """Score the kept tracks of anchor 0: true [T, N, 2], visible [T, N], kept [N]."""
    predicted = tracks.positions[0]
    called = tracks.visibility[0] >= VISIBLE_THRESHOLD
    metrics = tap_metrics(
        true=true[:, kept].swapaxes(0, 1),
        true_visible=visible[:, kept].T,
        predicted=predicted[:, kept].swapaxes(0, 1),
        predicted_visible=called[:, kept].T,
        query_frames=np.zeros(int(kept.sum()), np.intp),
        mode="first",
    )
    right = visible & (np.linalg.norm(predicted - true, axis=-1) < LIMIT_PX)
    used = called[1:, kept]
    part_right = float(right[1:, kept][used].mean()) if used.any() else np.nan
    return float(kept.mean()), *astuple(metrics), part_right


def main() -> None:
    """Print the tables and the time."""
    print("| fault | turn | bad | scored | both | epipolar | reprojection | confidence |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows():
        print(row)
    times = [1e3 * seconds for seconds in seconds_per_clip()]
    print(f"\nCPU ms per clip of 48 frames and 768 tracks: median {median(times):.1f}, ", end="")
    print(f"fastest {min(times):.1f}, of {ROUNDS}")
    print("\n| turn | filter | kept | AJ | δ_avg | OA | called visible and right |")
    print("|---|---|---|---|---|---|---|")
    for row in filtered_rows():
        print(row)


if __name__ == "__main__":
    make_parser("track_scores", __doc__).parse_args()
    main()
