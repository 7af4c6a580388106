"""How well trackers follow points whose true tracks are known: `python -m benchmarks.tap [--clips 8] [--davis FILE]`.

Prints the metrics of TAP-Vid (`benchmarks.tap_vid`), means over clips: over synthetic scenes, or over TAP-Vid-DAVIS. "standing still"
says that no point ever moves or disappears; what a tracker has above it is its own. CoTracker3 takes part with `--weights FILE`
(offline weights), or `--random-cotracker3`, which is slow on a CPU and only shows that everything runs.
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

from benchmarks.tap_vid import SIDE, Mode, TapClip, TapMetrics, evaluate, mean_metrics
from benchmarks.tap_vid_davis import read_tap_davis
from pipeline.sources.synthetic_scene import SceneId, make_scene, render, true_tracks
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo, Tracks
from shards.geometry import grid_points

FRAMES = 24
GRID = 16


class StandingStill:
    """Says that every point stays where it is, visible."""

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        """See `Tracker.track`."""
        found = []
        for frames in clips:
            shape = (len(anchors), len(frames), len(queries))
            certain = np.full(shape, 255, np.uint8)
            found.append(
                Tracks(
                    np.asarray(anchors, np.int32),
                    np.broadcast_to(queries, (*shape, 2)),
                    certain,
                    certain,
                )
            )
        return found


@dataclass(frozen=True)
class Entry:
    """A tracker that takes part, and from which probability on it calls a point visible."""

    name: str
    tracker: Tracker
    visible_from: float = 0.5


def synthetic_clips(count: int) -> Iterator[TapClip]:
    """Scenes of seed 0, with the points of a grid on their first frame."""
    for number in range(count):
        scene = make_scene(SceneId(0, number, FRAMES, SIDE, SIDE))
        frames = np.stack([render(scene, frame) for frame in range(FRAMES)])
        positions, visible = true_tracks(scene, 0, grid_points(GRID, SIDE, SIDE))
        yield TapClip(str(scene.id), frames, positions.swapaxes(0, 1), visible.T)


def entries(weights: str) -> list[Entry]:
    """Who takes part; CoTracker3 calls a point visible from 0.9 on, as its published offline predictor does."""
    found = [
        Entry("standing still", StandingStill()),
        Entry("lucas_kanade", LucasKanadeSettings().load()),
    ]
    if weights:
        found.append(
            Entry(
                f"cotracker3 {Path(weights).name}",
                CoTracker3Settings(tracker="cotracker3", weights=weights).load(),
                0.9,
            )
        )
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tap")
    parser.add_argument(
        "--clips", type=int, help="clips to use: 8 scenes by default, and all of DAVIS"
    )
    parser.add_argument(
        "--davis", type=Path, metavar="FILE", help="tapvid_davis.pkl, instead of synthetic scenes"
    )
    parser.add_argument(
        "--mode", choices=get_args(Mode), default="first", help="how the benchmark asks for points"
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
    options = parser.parse_args()
    taking_part = entries(options.weights)
    results: dict[str, list[TapMetrics]] = {entry.name: [] for entry in taking_part}
    seconds = dict.fromkeys(results, 0.0)
    clips = read_tap_davis(options.davis) if options.davis else synthetic_clips(options.clips or 8)
    for clip in islice(clips, options.clips):
        for entry in taking_part:
            started = time.perf_counter()
            results[entry.name].append(
                evaluate(entry.tracker, clip, options.mode, entry.visible_from)
            )
            seconds[entry.name] += time.perf_counter() - started
    used = len(results["standing still"])
    print(
        f"{used} clips of {options.davis or 'synthetic scenes'}, queries '{options.mode}', {SIDE}x{SIDE}, in %"
    )
    print(
        f"{'tracker':<28}{'average Jaccard':>17}{'delta_avg':>11}{'occlusion accuracy':>20}{'s/clip':>9}"
    )
    for name, metrics in results.items():
        mean = mean_metrics(metrics)
        numbers = f"{100 * mean.average_jaccard:>17.1f}{100 * mean.delta_avg:>11.1f}{100 * mean.occlusion_accuracy:>20.1f}"
        print(f"{name:<28}{numbers}{seconds[name] / used:>9.2f}")


if __name__ == "__main__":
    main()
