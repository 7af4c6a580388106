"""Score trackers on clips with true tracks: `python -m benchmarks.tap [--clips 8] [--davis FILE]`.

Prints TAP-Vid's metrics (`benchmarks.tap_vid`), averaged over synthetic scenes or over the clips of
TAP-Vid-DAVIS. The baseline "standing still" predicts that no point ever moves or disappears; a
tracker's merit is its distance from that. CoTracker3 is scored with `--weights FILE` (offline
weights) and TAPIR with `--tapir FILE`; `--random-cotracker3` and `--random-tapir` score them with
random weights, which is slow on a CPU and gives the line of chance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.tap_vid import (
    FRAME_SIDE,
    Mode,
    Probability,
    TapClip,
    TapMetrics,
    evaluate_tracker,
    mean_metrics,
)
from benchmarks.tap_vid_davis import read_tap_davis
from manifests.wording import pluralise
from pipeline.sources.synthetic_scene import SceneId, make_scene, render, true_tracks
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from pipeline.trackers.protocol import Tracker
from pipeline.trackers.tapir import TapirSettings
from shards.clip import ClipInfo, Tracks
from shards.geometry import grid_points

FRAMES = 24
GRID = 16


class StandingStill:
    """A baseline that predicts every point to stay at its query, visible."""

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """Return tracks that stay at their queries. See `Tracker.track`."""
        tracks = []
        for frames in clips:
            shape = (len(anchors), len(frames), len(queries))
            certain = np.full(shape, 255, np.uint8)
            positions = np.broadcast_to(queries, (*shape, 2))
            tracks.append(Tracks(np.asarray(anchors, np.int32), positions, certain, certain))
        return tracks


@dataclass(frozen=True)
class ScoredTracker:
    """A tracker to score.

    visible_from: from this probability on, a point counts as visible
    probability:  what that is: the visibility, or its product with the confidence
    """

    name: str
    tracker: Tracker
    visible_from: float = 0.5
    probability: Probability = "visibility"


def synthetic_clips(count: int) -> Iterator[TapClip]:
    """Render scenes of seed 0; their points are a grid in the first frame."""
    for number in range(count):
        scene = make_scene(SceneId(0, number, FRAMES, FRAME_SIDE, FRAME_SIDE))
        frames = np.stack([render(scene, frame) for frame in range(FRAMES)])
        positions, visible = true_tracks(scene, 0, grid_points(GRID, FRAME_SIDE, FRAME_SIDE))
        yield TapClip(str(scene.id), frames, positions.swapaxes(0, 1), visible.T)


def trackers_to_score(weights: str, tapir_weights: str) -> list[ScoredTracker]:
    """Load the trackers. CoTracker3 or TAPIR is left out if its weights are empty."""
    trackers = [
        ScoredTracker("standing still", StandingStill()),
        ScoredTracker("lucas_kanade", LucasKanadeSettings().load()),
    ]
    if weights:
        cotracker3 = CoTracker3Settings(tracker="cotracker3", weights=weights).load()
        # The published offline predictor calls a point visible from 0.9 on.
        trackers.append(ScoredTracker(f"cotracker3 {Path(weights).name}", cotracker3, 0.9))
    if tapir_weights:
        tapir = TapirSettings(tracker="tapir", weights=tapir_weights).load()
        name = f"tapir {Path(tapir_weights).name}"
        trackers.append(ScoredTracker(name, tapir, probability="visibility x confidence"))
    return trackers


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tap")
    parser.add_argument(
        "--clips", type=int, help="number of clips; by default 8 scenes, or all of DAVIS"
    )
    parser.add_argument(
        "--davis", type=Path, metavar="FILE", help="tapvid_davis.pkl, instead of synthetic scenes"
    )
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default="first",
        help="where points are queried: in their first visible frame, or in every fifth frame",
    )
    cotracker3 = parser.add_mutually_exclusive_group()
    cotracker3.add_argument(
        "--weights", metavar="FILE", default="", help="offline weights of CoTracker3"
    )
    cotracker3.add_argument(
        "--random-cotracker3",
        dest="weights",
        action="store_const",
        const="random_offline",
        help="CoTracker3 with random weights",
    )
    tapir = parser.add_mutually_exclusive_group()
    tapir.add_argument(
        "--tapir", metavar="FILE", default="", help="offline weights of TAPIR or BootsTAPIR"
    )
    tapir.add_argument(
        "--random-tapir",
        dest="tapir",
        action="store_const",
        const="random",
        help="TAPIR with random weights",
    )
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = parse_arguments()
    trackers = trackers_to_score(options.weights, options.tapir)
    results: dict[str, list[TapMetrics]] = {tracker.name: [] for tracker in trackers}
    seconds = dict.fromkeys(results, 0.0)
    clips = read_tap_davis(options.davis) if options.davis else synthetic_clips(options.clips or 8)
    for clip in islice(clips, options.clips):
        for scored in trackers:
            started = time.perf_counter()
            metrics = evaluate_tracker(
                scored.tracker,
                clip,
                options.mode,
                visible_from=scored.visible_from,
                probability=scored.probability,
            )
            results[scored.name].append(metrics)
            seconds[scored.name] += time.perf_counter() - started
    count = len(results["standing still"])
    source = options.davis or "synthetic scenes"
    print(
        f"means over {pluralise(count, 'clip')} of {source}, query mode '{options.mode}',", end=" "
    )
    print(f"{FRAME_SIDE}x{FRAME_SIDE}, metrics in %")
    heads = f"{'average Jaccard':>17}{'delta_avg':>11}{'occlusion accuracy':>20}"
    print(f"{'tracker':<28}{heads}{'seconds per clip':>18}")
    for name, of_clips in results.items():
        mean = mean_metrics(of_clips)
        figures = f"{100 * mean.average_jaccard:>17.1f}{100 * mean.delta_avg:>11.1f}"
        figures += f"{100 * mean.occlusion_accuracy:>20.1f}"
        print(f"{name:<28}{figures}{seconds[name] / count:>18.2f}")


if __name__ == "__main__":
    main()
