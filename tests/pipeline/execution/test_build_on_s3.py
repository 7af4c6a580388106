"""The whole build with its output on an object store, through a proxy that sometimes fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray

import pipeline.execution.lock
from manifests.settings import check_settings
from manifests.snapshot import open_snapshot
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import status
from shards import bucket
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import atomic_write, read_file, size_of, sizes_in
from shards.reader import iterate_shard
from tests.helpers.object_store import BUCKET, Behaviour
from tests.helpers.panning import panning_frames, write_video

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(store: Behaviour) -> Iterator[Behaviour]:
    """The store, with a Ray whose workers inherit the environment that names it."""
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield store
    ray.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write_video(root / f"{seed}.mp4", panning_frames(seed, 12))
    return root


def settings_for(videos: Path, out: str, grid: int = 6) -> BuildSettings:
    values = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(videos)}],
        "frames": {"clip_frames": 10, "min_frames": 6, "short_side": 96},
        "tracks": {"tracker": "lucas_kanade", "grid": grid, "anchors": [0]},
        "shards": {"clips_per_shard": 2},
        "split": {"eval_fraction": 0.0},
        "out": out,
    }
    return check_settings(BuildSettings, values, "test")


def test_a_build_on_a_bucket_gives_the_bytes_of_one_on_a_disk(
    store: Behaviour, videos: Path, tmp_path: Path
) -> None:
    store.fail_every, store.delay_s = 7, 0.01
    remote = settings_for(videos, f"s3://{BUCKET}/a")
    built = build(remote, QUIET)
    local = build(settings_for(videos, str(tmp_path)), QUIET)
    assert store.failed > 0, "the store did fail"
    assert (built.made, built.snapshot.clips.num_rows) == (2, 3)
    assert built.snapshot.clips.equals(local.snapshot.clips)
    for shard in local.snapshot.shards.column("shard").to_pylist():
        assert read_file(built.snapshot.shard_path(shard)) == read_file(
            local.snapshot.shard_path(shard)
        )
    assert verify_snapshot(built.snapshot, QUIET) == []
    assert build(remote, QUIET).made == 0
    again = build(settings_for(videos, f"s3://{BUCKET}/a", grid=8), QUIET, stored=True)
    assert (again.made, again.snapshot.name) == (2, "000002")
    assert verify_snapshot(again.snapshot, QUIET) == []
    shown = status(Url(f"s3://{BUCKET}/a"))
    assert (shown["build"]["state"], shown["snapshot"]["name"]) == ("finished", "000002")
    assert not [name for name in sizes_in(Url(f"s3://{BUCKET}/a")) if "lock" in name], (
        "the lease is released"
    )
    store.fail_every, store.delay_s = 0, 0.0


def test_damage_on_a_bucket_is_found(store: Behaviour, videos: Path) -> None:
    snapshot = build(settings_for(videos, f"s3://{BUCKET}/b"), QUIET).snapshot
    first, second = (
        snapshot.shard_path(shard) for shard in snapshot.shards.column("shard").to_pylist()
    )
    atomic_write(first, read_file(first)[:-2000])
    bucket.delete(second)  # type: ignore[arg-type]
    problems = [str(problem) for problem in verify_snapshot(snapshot, QUIET)]
    assert any(first.name in problem and "should have" in problem for problem in problems)
    assert any(second.name in problem and "is not there" in problem for problem in problems)
    assert build(settings_for(videos, f"s3://{BUCKET}/b"), QUIET).made == 2
    assert verify_snapshot(open_snapshot(f"s3://{BUCKET}/b"), QUIET) == []
    assert len([clip for path in (first, second) for clip in iterate_shard(path)]) == 3


def test_one_build_at_a_time(
    store: Behaviour, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(videos, f"s3://{BUCKET}/c")
    lock = Url(f"s3://{BUCKET}/c/build.lock")
    atomic_write(lock, json.dumps({"host": "elsewhere", "process": 7}).encode())
    with pytest.raises(
        PretrackError, match=r"another build is at work on s3://shards/c \(process 7 on elsewhere"
    ):
        build(settings, QUIET)
    monkeypatch.setattr(
        pipeline.execution.lock,
        "EXPIRES_AFTER_S",
        (datetime.now(UTC) - bucket.read_versioned(lock).written_at).total_seconds() - 1,
    )
    assert build(settings, QUIET).made == 2, "a dead build's lock is taken over"
    with pytest.raises(FileNotFoundError):
        size_of(lock)


class Robbed(Progress):
    """Another build takes the lease over as soon as an event happens."""

    def event(self, sentence: str, json_line: str, notable: bool) -> None:
        atomic_write(Url(f"s3://{BUCKET}/e/build.lock"), b"{}")


def test_a_build_that_lost_its_lock_publishes_nothing(store: Behaviour, videos: Path) -> None:
    settings = settings_for(videos, f"s3://{BUCKET}/e")
    with pytest.raises(
        PretrackError,
        match=r"e/build\.lock was taken by another build: this build stops; finished shards are",
    ):
        build(settings, Robbed(quiet=True))
    with pytest.raises(PretrackError, match="holds no finished build"):
        open_snapshot(settings.out)
    bucket.delete(Url(f"s3://{BUCKET}/e/build.lock"))
    assert (build(settings, QUIET).made, build(settings, QUIET).kept) == (0, 2), (
        "the shards were kept"
    )


def test_a_bucket_that_may_not_be_written_is_one_sentence(store: Behaviour, videos: Path) -> None:
    store.deny_writes = True
    with pytest.raises(
        PretrackError, match=r"output folder s3://shards/d cannot be written \(access is denied"
    ):
        build(settings_for(videos, f"s3://{BUCKET}/d"), QUIET)
    store.deny_writes = False
    with pytest.raises(PretrackError, match=r"there is no bucket s3://nowhere"):
        open_snapshot("s3://nowhere/d")
