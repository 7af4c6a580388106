"""How well scores find bad tracks, and what they cost: `python -m benchmarks.track_scores`.

Static scenes of random points before cameras on an arc, 48 frames of 320x256, 3 anchors of 256
points, right tracks with a noise of 0.25 px, and planted faults. A track is bad if it is ever more
than 2 px off while visible. The table has the area under the ROC curve over the tracks that have a
score: of the larger of epipolar and reprojection score, of each alone, and of a stored confidence
that notices a part of the errors. Then the time of scoring such a clip, in CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import mean, median

import numpy as np

from shards.track_scores import score_clip
from tests.helpers.static_scene import FAULTS, area_under_curve, static_scene, with_confidence

SCENES, ROUNDS = 5, 200
TURNS = (2.0, 8.0, 20.0, 40.0, 90.0)


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


def main() -> None:
    """Print the table and the time."""
    print("| fault | turn | bad | scored | both | epipolar | reprojection | confidence |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows():
        print(row)
    times = [1e3 * seconds for seconds in seconds_per_clip()]
    print(f"\nCPU ms per clip of 48 frames and 768 tracks: median {median(times):.1f}, ", end="")
    print(f"fastest {min(times):.1f}, of {ROUNDS}")


if __name__ == "__main__":
    main()
