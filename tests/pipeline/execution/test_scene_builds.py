"""Builds that render scenes: two at once into one folder, and one whose worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from manifests.settings import check_settings
from manifests.snapshot import open_snapshot
from manifests.tables import SHARDS, read_table, write_table
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.plan import Plan, make_plan
from shards.files import TEMPORARY
from tests.pipeline.execution.test_build import contents

pytestmark = pytest.mark.slow

QUIET = Progress(quiet=True)
FRAMES = 24
"""So that rendering the scene takes half a second after its first frame."""


def settings_for(root: Path, name: str, frames: str = "frames") -> BuildSettings:
    values = {
        "sources": [
            {
                "dataset": "scenes",
                "root": str(root / frames),
                "count": 1,
                "frames": FRAMES,
                "size": [48, 32],
                "objects": 1,
            }
        ],
        "frames": {"clip_frames": FRAMES, "min_frames": FRAMES, "masks": True},
        "tracks": {"tracker": "truth", "grid": 2, "anchors": [0]},
        "ray": {"cpus": 1},
        "out": str(root / name),
    }
    return check_settings(BuildSettings, values, "test")


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, temporary ones included, by path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two builds, `a` and `b`, that rendered into `frames` at the same time."""
    root = tmp_path_factory.mktemp("two")
    builds = []
    for name in ("a", "b"):
        config = root / f"{name}.yaml"
        config.write_text(settings_for(root, name).model_dump_json())
        command = [sys.executable, "-m", "pipeline", "build", str(config)]
        builds.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    try:
        for process in builds:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in builds:
            process.kill()
    return root


def test_two_builds_that_render_one_scene_at_once_end_with_the_same_frames(root: Path) -> None:
    first, second = open_snapshot(root / "a"), open_snapshot(root / "b")
    for snapshot in (first, second):
        assert (snapshot.clips.num_rows, snapshot.failures.num_rows) == (1, 0)
        assert snapshot.clips["frames"].to_pylist() == [FRAMES]
    assert contents(first) == contents(second)
    names = [*files_in(root / "frames")]
    assert len(names) == 2 * FRAMES
    assert not [name for name in names if TEMPORARY in name]


@pytest.mark.usefixtures("two_cores")
def test_a_worker_killed_while_it_renders_leaves_whole_frames_and_no_clip_out(
    root: Path, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, "out")
    ended, left = threading.Event(), list[int]()

    def kill() -> None:
        rendering = wait_for_renderer(tmp_path / "frames", ended)
        left.append(2 * FRAMES - len(files_in(tmp_path / "frames")))
        os.kill(rendering.ppid(), signal.SIGKILL)
        rendering.wait(60)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        snapshot = build(settings, QUIET).snapshot
    finally:
        ended.set()
        killer.join()
    assert left[0] > 0, "of the scene's files, when the worker was killed"
    log = (tmp_path / "out" / "build.log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log].count("decoder lost") == 1
    assert snapshot.failures.num_rows == 0
    assert verify_snapshot(snapshot, QUIET) == []
    assert contents(snapshot) == contents(open_snapshot(root / "a"))
    assert files_in(tmp_path / "frames") == files_in(root / "frames")


def wait_for_renderer(folder: Path, ended: threading.Event) -> psutil.Process:
    """Wait for the first file in a folder; stop the decoder that renders it, and return it."""
    while not any(folder.rglob("*.png")):
        assert not ended.wait(0.005)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            worker = process.parent()
            # Idle workers keep the decoders of earlier tests' builds.
            idle = worker is not None and "ray::IDLE" in worker.cmdline()
            if "pipeline.decode.worker" in process.cmdline() and not idle:
                process.suspend()
                return process
    raise AssertionError("no decoder is at work")


@pytest.mark.usefixtures("two_cores")
def test_scores_of_an_earlier_version_are_made_again(root: Path) -> None:
    """It may have called poses of moving scenes wrong."""
    settings, before = settings_for(root, "b"), open_snapshot(root / "b")
    assert {shard.action for shard in plan_of(settings).shards} == {"keep"}
    path = before.folder / "shards.parquet"
    shards = read_table(path, SHARDS.names)
    assert shards["scores"].to_pylist() == [2]
    ones = pa.array([1], pa.int32())
    write_table(path, shards.set_column(SHARDS.get_field_index("scores"), "scores", ones))
    planned = {(shard.action, shard.reason) for shard in plan_of(settings).shards}
    assert planned == {("score", "scored by another version")}
    after = build(settings, QUIET).snapshot
    assert after.shards["scores"].to_pylist() == [2]
    assert contents(after) == contents(before)
    assert {shard.action for shard in plan_of(settings).shards} == {"keep"}


def plan_of(settings: BuildSettings) -> Plan:
    return make_plan(settings, make_catalog(settings, QUIET))
