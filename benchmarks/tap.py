"""Score trackers on clips with true tracks: `python -m benchmarks.tap [--scenes | --davis FILE]`.

Prints TAP-Vid's metrics (`benchmarks.tap_vid`), averaged over synthetic scenes, over rendered
scenes of objects in a room, or over the clips of TAP-Vid-DAVIS. For rendered scenes, it also prints
delta_avg of static and of moving points, and by how far a point's viewing angle has changed since
its query. The baseline "standing still" predicts that no point ever moves or disappears; a
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
    mean_metrics,
    predict,
)
from benchmarks.tap_vid_davis import read_tap_davis
from manifests.wording import pluralise
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import true_tracks, view_directions
from pipeline.sources import synthetic_scene
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
        scene_id = synthetic_scene.SceneId(0, number, FRAMES, FRAME_SIDE, FRAME_SIDE)
        scene = synthetic_scene.make_scene(scene_id)
        frames = np.stack([synthetic_scene.render(scene, frame) for frame in range(FRAMES)])
        queries = grid_points(GRID, FRAME_SIDE, FRAME_SIDE)
        positions, visible = synthetic_scene.true_tracks(scene, 0, queries)
        yield TapClip(str(scene.id), frames, positions.swapaxes(0, 1), visible.T)


def scene_clips(count: int) -> Iterator[TapClip]:
    """Render scenes with moving objects; their points are a grid in the first frame."""
    for number in range(count):
        scene_id = SceneId(
            split="eval",
            seed=0,
            number=number,
            motion="moving",
            width=FRAME_SIDE,
            height=FRAME_SIDE,
        )
        scene = make_scene(scene_id)
        with Renderer(scene) as renderer:
            frames = np.stack([renderer.picture(frame) for frame in range(scene_id.frames)])
        tracks = true_tracks(scene, 0, grid_points(GRID, FRAME_SIDE, FRAME_SIDE))
        directions = view_directions(scene, tracks.points)
        cosines = np.einsum("snc,tnc->nst", directions, directions)
        yield TapClip(
            name=str(scene_id),
            frames=frames,
            positions=tracks.positions.swapaxes(0, 1),
            visible=tracks.visible.T,
            moving=tracks.points.moving(scene),
            angles=np.degrees(np.arccos(cosines.clip(-1, 1))),
        )


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
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--scenes", action="store_true", help="rendered scenes, instead of synthetic ones"
    )
    source.add_argument(
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


def clips_of(options: argparse.Namespace) -> tuple[str, Iterator[TapClip]]:
    """Return what the clips are, and the clips."""
    if options.davis:
        return str(options.davis), islice(read_tap_davis(options.davis), options.clips)
    count = options.clips or 8
    if options.scenes:
        return "rendered scenes", scene_clips(count)
    return "synthetic scenes", synthetic_clips(count)


def print_groups(results: dict[str, dict[str, list[TapMetrics]]]) -> None:
    """Print delta_avg of each tracker by groups of points: tracker → group → metrics per clip."""
    names = list(next(iter(results.values())))
    print("\ndelta_avg by motion and by the change of the viewing angle")
    print(f"{'tracker':<28}" + "".join(f"{name:>9}" for name in names))
    for tracker, groups in results.items():
        means = [mean_metrics(of_clips).delta_avg for of_clips in groups.values()]
        print(f"{tracker:<28}" + "".join(f"{100 * mean:>9.1f}" for mean in means))


def main() -> None:
    """Print the table."""
    options = parse_arguments()
    trackers = trackers_to_score(options.weights, options.tapir)
    results: dict[str, list[TapMetrics]] = {tracker.name: [] for tracker in trackers}
    by_group: dict[str, dict[str, list[TapMetrics]]] = {name: {} for name in results}
    seconds = dict.fromkeys(results, 0.0)
    source, clips = clips_of(options)
    for clip in clips:
        for scored in trackers:
            started = time.perf_counter()
            predictions = predict(
                scored.tracker,
                clip,
                options.mode,
                visible_from=scored.visible_from,
                probability=scored.probability,
            )
            seconds[scored.name] += time.perf_counter() - started
            results[scored.name].append(predictions.metrics())
            for group, frames in predictions.groups().items():
                by_group[scored.name].setdefault(group, []).append(predictions.metrics(frames))
    count = len(results["standing still"])
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
    if by_group["standing still"]:
        print_groups(by_group)


if __name__ == "__main__":
    main()
