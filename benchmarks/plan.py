"""Measure the time and memory of a plan: `python -m benchmarks.plan [--largest]`.

Writes output folders as a finished build leaves them (a snapshot's tables, and sparse tar files of
the right size without frames), and plans on them. Each size and case runs in a new process:

    unchanged     the same videos and settings
    grid          another tracks.grid
    one percent   1 % more videos
    no-op build   all of `pretrack build --stored` when there is nothing to do

Videos are files with one shot of 120 frames, so 5 clips of 24 frames; a shard has 64 clips. Seconds
are wall-clock time from the end of the imports to the result; memory is the process's peak resident
set.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.receipt import shard_name
from manifests.settings import check_settings
from manifests.snapshot import open_snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import Catalog, stored_catalog
from pipeline.planning.plan import Plan, make_plan
from shards.track_scores import scores_version

SIZES = (10**5, 10**6)
LARGEST = 10**7
CASES = ("unchanged", "grid", "one percent", "no-op build")
CLIPS_PER_VIDEO, CLIP_FRAMES = 5, 24
SHARD_BYTES = 64 * 1_000_000


def settings_for(out: Path, grid: int = 16) -> BuildSettings:
    """Return the settings of the synthetic folders, with this tracks.grid."""
    values = {
        "sources": [{"dataset": "video_folder", "name": "many", "root": "/videos"}],
        "frames": {"clip_frames": CLIP_FRAMES},
        "tracks": {"tracker": "lucas_kanade", "grid": grid, "anchors": [0, 8, 16]},
        "split": {"eval_fraction": 0.0},
        "out": str(out),
    }
    return check_settings(BuildSettings, values, "benchmark")


def constant(value: object, rows: int, kind: pa.DataType) -> pa.Array:
    """Make a column with the same value in every row."""
    return pa.repeat(pa.scalar(value, kind), rows)


def lists(values: np.ndarray, length: int, kind: pa.DataType) -> pa.Array:
    """Make a column of lists with `length` values each."""
    offsets = np.arange(0, len(values) + 1, length)
    return pa.LargeListArray.from_arrays(offsets, pa.array(values)).cast(pa.list_(kind.value_type))


def make_videos(first: int, count: int) -> pa.Table:
    """Make `count` rows of the videos table, numbered from `first` on."""
    names = pa.array(
        [f"folder-{n % 1000:03d}/clip-{n:08d}.mp4" for n in range(first, first + count)]
    )
    frames = CLIPS_PER_VIDEO * CLIP_FRAMES
    made: dict[str, object] = {
        "source": "many",
        "dataset": "video_folder",
        "split": "train",
        "root": "/videos",
        "width": 640,
        "height": 360,
        "frames": frames,
        "scan": "shots, version 1",
        "terms": "yours",
        "image_files": [],
        "frame_numbers": [],
        "cameras": None,
        "viewpoint_quality": None,
        "depth": None,
        "mask_files": None,
        "cuts": [],
    }
    columns = {
        field.name: constant(made[field.name], count, field.type)
        for field in VIDEOS
        if field.name in made
    }
    columns |= {
        "video_id": names,
        "file": names,
        "sequence": pc.binary_join_element_wise("many", names, "/"),
    }
    columns["identity"] = pa.array([f"{n:032x}" for n in range(first, first + count)])
    columns["timestamps"] = lists(
        np.tile(np.arange(frames) / 25, count), frames, VIDEOS.field("timestamps").type
    )
    return pa.table([columns[name] for name in VIDEOS.names], schema=VIDEOS)


def make_folder(out: Path, clips: int) -> None:
    """Write the output folder of a finished build with this many clips."""
    settings = settings_for(out)
    videos = make_videos(0, clips // CLIPS_PER_VIDEO)
    plan = make_plan(settings, Catalog(videos, FAILURES.empty_table(), videos.num_rows))
    counts = [shard.count for shard in plan.shards]
    names = [shard_name(shard.group, f"{number:016x}") for number, shard in enumerate(plan.shards)]
    shards = pa.Table.from_pylist(
        [
            {
                **{name: getattr(shard, name) for name in SHARDS.names if hasattr(shard, name)},
                "shard": name,
                "clips": shard.count,
                "bytes": SHARD_BYTES,
                "checksum": name[-16:],
                "decode_seconds": 0.1 * shard.count,
                "track_seconds": 0.3 * shard.count,
                "write_seconds": 0.01 * shard.count,
                "scores": scores_version("video_folder"),
            }
            for name, shard in zip(names, plan.shards, strict=True)
        ],
        schema=SHARDS,
    )
    clip_rows = make_clips(plan, np.repeat(np.arange(len(names)), counts), names)
    tables = {
        "videos": videos,
        "clips": clip_rows,
        "shards": shards,
        "failures": FAILURES.empty_table(),
    }
    publish_snapshot(out, tables, settings.model_dump(mode="json"))
    (out / "shards").mkdir()
    for name in names:
        with open(out / "shards" / f"{name}.tar", "wb") as file:
            file.truncate(SHARD_BYTES)


def make_clips(plan: Plan, shard: np.ndarray, names: list[str]) -> pa.Table:
    """Make the rows of the clips table; `shard` is the index of each clip's shard."""
    count, videos = len(plan.clips), plan.catalog.videos
    columns = {
        field.name: pa.repeat(pa.scalar(1, pa.int8()), count).cast(field.type)
        for field in CLIPS
        if not pa.types.is_list(field.type)
    }
    columns |= {
        name: pa.nulls(count, CLIPS.field(name).type)
        for name in ("depth_offsets", "depth_sizes", "mask_offsets", "mask_sizes")
    }
    columns |= {
        name: videos[name].take(plan.clips["video"])
        for name in ("source", "dataset", "video_id", "sequence", "split")
    }
    columns |= {
        "key": plan.clips["key"],
        "frames": plan.clips["frames"],
        "shard": pa.array(names).take(pa.array(shard)),
    }
    columns["anchors"] = lists(
        np.tile(np.array([0, 8, 16], np.int32), count), 3, CLIPS.field("anchors").type
    )
    parts = np.random.default_rng(1).integers(10_000, 16_000, 3 * count)
    columns["anchor_sizes"] = lists(parts, 3, CLIPS.field("anchor_sizes").type)
    sizes = np.random.default_rng(0).integers(20_000, 60_000, count * CLIP_FRAMES)
    columns["frame_sizes"] = lists(sizes, CLIP_FRAMES, CLIPS.field("frame_sizes").type)
    columns["frame_offsets"] = lists(
        np.cumsum(sizes), CLIP_FRAMES, CLIPS.field("frame_offsets").type
    )
    return pa.table([columns[name] for name in CLIPS.names], schema=CLIPS)


def run_case(out: Path, case: str) -> dict[str, float]:
    """Run one case in this process, and return its seconds and peak memory in bytes."""
    settings = settings_for(out, grid=24 if case == "grid" else 16)
    videos = open_snapshot(out).videos if case == "one percent" else None
    started = time.perf_counter()
    if case == "no-op build":
        built = build(settings, Progress(quiet=True), stored=True)
        assert built.made == 0
    else:
        catalog = stored_catalog(settings)
        if videos is not None:
            more = make_videos(videos.num_rows, videos.num_rows // 100)
            catalog = replace(
                catalog,
                videos=pa.concat_tables([videos, more]),
                videos_found=len(videos) + len(more),
            )
        plan = make_plan(settings, catalog)
        actions = {shard.action for shard in plan.shards}
        assert (
            actions
            == {"unchanged": {"keep"}, "grid": {"retrack"}, "one percent": {"keep", "build"}}[case]
        )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """Print the table, or do one part of it in a process started for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", action="store_true", help=f"also measure {LARGEST:,} clips")
    parser.add_argument("--case", nargs=2, metavar=("FOLDER", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, metavar=("FOLDER", "CLIPS"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make_folder(Path(a.make[0]), int(a.make[1]))
    elif a.case:
        print(json.dumps(run_case(Path(a.case[0]), a.case[1])))
    else:
        measure((*SIZES, LARGEST) if a.largest else SIZES)


def measure(sizes: tuple[int, ...]) -> None:
    """Run every case of every size in a new process, and print the table."""
    print(
        "| clips | case | seconds | seconds per 10^6 clips | peak memory |\n|---|---|---|---|---|"
    )
    for clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.plan"]
            subprocess.run([*command, "--make", f"{folder}/out", str(clips)], check=True)
            for case in CASES:
                done = subprocess.run(
                    [*command, "--case", f"{folder}/out", case],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                figures = json.loads(done.stdout.splitlines()[-1])
                times = f"{figures['seconds']:.2f} | {figures['seconds'] / clips * 1e6:.1f}"
                memory = f"{figures['bytes'] / 1e9:.2f} GB"
                print(f"| {clips:,} | {case} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
