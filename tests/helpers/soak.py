"""Kill builds at random moments and check that nothing is lost: `make soak`, or

    python -m tests.helpers.soak --kills 100 --seed 0

A build runs in its own processes. Its driver, one of its Ray workers, its raylet or its GCS gets
SIGKILL at a random moment or right after a shard is done; then the build is started again, until it
finishes. After every kill, each shard with a receipt is whole. After every finished build, the
snapshot verifies, every clip exists exactly once, and all bytes equal those of an undisturbed
build. Builds and re-tracks alternate.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from manifests.receipt import list_receipts, read_receipt, shard_path
from manifests.settings import check_settings
from manifests.snapshot import Snapshot, open_snapshot
from pipeline.config import BuildSettings
from pipeline.execution.build import build as build_here
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from shards.files import size_of
from shards.reader import iterate_shard
from tests.helpers.panning import panning_frames, write_video

VIDEOS = 8
QUIET = Progress(quiet=True)
TARGETS = ("driver", "worker", "raylet", "gcs")
DURATION_S = 12.0
"""About how long a build takes, from the start of its process."""
Contents = dict[str, tuple[bytes, ...]]


def settings_for(videos: Path, out: Path, grid: int) -> BuildSettings:
    """A build with one clip per shard, so that there are many moments to be killed at."""
    values = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(videos)}],
        "frames": {"clip_frames": 10, "min_frames": 6, "short_side": 96},
        "tracks": {"tracker": "lucas_kanade", "grid": grid, "anchors": [0, 5]},
        "shards": {"clips_per_shard": 1},
        "split": {"eval_fraction": 0.0},
        "ray": {"cpus": 2},
        "out": str(out),
    }
    return check_settings(BuildSettings, values, "soak")


def contents(snapshot: Snapshot) -> Contents:
    """The bytes of every member of every clip, by key. Asserts that each key exists once."""
    members: Contents = {}
    for shard in snapshot.shards.column("shard").to_pylist():
        for clip in iterate_shard(snapshot.shard_path(shard)):
            assert clip.info.key not in members, f"{clip.info.key} exists twice"
            tracks = (
                clip.tracks.positions.tobytes(),
                clip.tracks.visibility.tobytes(),
                clip.tracks.confidence.tobytes(),
            )
            members[clip.info.key] = (clip.info.to_json(), *tracks, *clip.jpegs)
    assert sorted(members) == sorted(snapshot.clips.column("key").to_pylist())
    return members


@dataclass
class RunningBuild:
    """A build in its own session.

    family: all processes it ever had: they outlive their parents for a while
    """

    driver: subprocess.Popen[bytes]
    family: dict[psutil.Process, str] = field(default_factory=dict)

    def processes(self) -> dict[psutil.Process, str]:
        """Its processes now, with the target that each is."""
        processes: dict[psutil.Process, str] = {}
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.driver.pid)
            for process in (driver, *driver.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    processes[process] = kind_of(process, driver)
        self.family.update(processes)
        return processes

    def end(self) -> None:
        """Kill whatever is left of it."""
        for process in self.processes() | self.family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.driver.wait()


@contextmanager
def running_build(settings: BuildSettings, folder: Path) -> Iterator[RunningBuild]:
    """Run a build; when the block ends, kill whatever is left of it."""
    config = folder / "config.json"
    config.write_text(settings.model_dump_json())
    with open(folder / "log.txt", "a") as log:
        command = [sys.executable, "-m", "pipeline", "build", str(config)]
        # Without its GCS, Ray ends a driver after a minute.
        environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
        build = RunningBuild(
            subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        )
        try:
            yield build
        finally:
            build.end()


def kind_of(process: psutil.Process, driver: psutil.Process) -> str:
    """Return which target a process is, "other" if none."""
    if process == driver:
        return "driver"
    line = process.cmdline()
    if line and line[0].startswith("ray::"):
        return "worker"
    names = {"raylet": "raylet", "gcs_server": "gcs"}
    return names.get(Path(line[0]).name, "other") if line else "other"


def kill_once(build: RunningBuild, out: Path, rng: random.Random) -> str:
    """Wait for a random moment, or for some more shards, and kill a random target.

    Returns the target, or "" if it was too late.
    """
    by_time, shards = rng.random() < 0.3, len(list_receipts(out)) + rng.randint(0, 3)
    until = time.monotonic() + (rng.uniform(0, DURATION_S) if by_time else 5 * DURATION_S)
    while (
        build.driver.poll() is None
        and time.monotonic() < until
        and (by_time or len(list_receipts(out)) < shards)
    ):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    target = rng.choice(TARGETS)
    candidates = sorted(
        (process.pid for process, kind in build.processes().items() if kind == target)
    )
    if build.driver.poll() is not None or not candidates:
        return ""
    with suppress(ProcessLookupError):
        os.kill(rng.choice(candidates), signal.SIGKILL)
    return target


def check_receipts(out: Path) -> None:
    """Assert that every shard with a receipt is whole."""
    for shard in list_receipts(out):
        row = read_receipt(out, shard).shard
        assert size_of(shard_path(out, shard)) == row.bytes, (
            f"{shard} has a receipt and is not whole"
        )


def soak(folder: Path, kills: int, seed: int, grids: Sequence[int] = (6, 7)) -> Counter[str]:
    """Build with the first grid and re-track with the next, over and over, until `kills` kills.

    Returns how often each target was killed, and the number of "finished builds".
    """
    rng = random.Random(seed)
    videos, out = folder / "videos", folder / "out"
    for number in range(VIDEOS):
        write_video(videos / f"{number}.mp4", panning_frames(number, 10))
    expected = {
        grid: contents(
            build_here(settings_for(videos, folder / "undisturbed", grid), QUIET).snapshot
        )
        for grid in grids
    }
    killed, left = Counter[str](), list(grids)
    settled = False
    while not settled:
        with running_build(settings_for(videos, out, left[0]), folder) as build:
            while kills_in(killed) < kills and build.driver.poll() is None:
                target = kill_once(build, out, rng)
                killed[target or "too late"] += 1
                if target != "worker":  # a build survives the loss of a worker: kill it again
                    break
            try:
                ended = build.driver.wait(180)
            except subprocess.TimeoutExpired:
                ended = -1
                killed["hung"] += 1
        check_receipts(out)
        if ended == 0 and not open_snapshot(out).failures.num_rows:
            assert verify_snapshot(open_snapshot(out), QUIET) == []
            assert contents(open_snapshot(out)) == expected[left.pop(0)], (
                "the content is not what an undisturbed build gives"
            )
            killed["finished builds"] += 1
        if not left:
            shutil.rmtree(out)
            left, settled = list(grids), kills_in(killed) >= kills
        print(dict(killed), flush=True)
    return killed


def kills_in(killed: Counter[str]) -> int:
    """Number of kills."""
    return sum(killed[target] for target in TARGETS)


def main() -> None:
    """Print what was killed; fail on the first loss."""
    parser = argparse.ArgumentParser(
        description="Kill builds at random moments and check that nothing is lost."
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pretrack-soak-") as folder:
        started = time.monotonic()
        killed = soak(Path(folder), a.kills, a.seed)
        print(f"nothing lost in {time.monotonic() - started:.0f} s: {dict(killed)}")


if __name__ == "__main__":
    main()
