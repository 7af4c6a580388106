"""The figures of `pretrack diff`, worked out for two small snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manifests.changes import SettingChange
from manifests.diff import (
    ClipChanges,
    FailureChange,
    ScoreChange,
    ShardChanges,
    VideoChanges,
    compare,
)
from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, table_of

Rows = list[dict[str, Any]]


def publish(
    out: Path, grid: int, videos: Rows, clips: Rows, shards: Rows, failures: Rows
) -> Snapshot:
    tables = {
        "videos": table_of(videos, VIDEOS),
        "clips": table_of(clips, CLIPS),
        "shards": table_of(shards, SHARDS),
        "failures": table_of(failures, FAILURES),
    }
    return publish_snapshot(out, tables, {"grid": grid})


def video(source: str, video_id: str, identity: str) -> dict[str, Any]:
    return {"source": source, "video_id": video_id, "identity": identity}


def clip(key: str, checksum: str, sizes: list[int]) -> dict[str, Any]:
    return {"key": key, "checksum": checksum, "frame_sizes": sizes}


def failure(stage: str, reason: str) -> dict[str, Any]:
    return {"stage": stage, "reason": reason}


@pytest.fixture
def snapshots(tmp_path: Path) -> tuple[Snapshot, Snapshot]:
    old = publish(
        tmp_path,
        16,
        videos=[
            video("s", "same", "1"),
            video("s", "replaced", "2"),
            video("s", "removed", "3"),
            video("t", "same", "4"),
            video("s", "also removed", "5"),
        ],
        clips=[
            clip("same", "a", [10, 20]),
            clip("retracked", "b", [30, 40]),
            clip("retracked too", "c", [50]),
            clip("one frame differs", "d", [60, 70]),
            clip("shorter", "e", [80, 90]),
            clip("removed", "f", [1]),
        ],
        shards=[{"shard": "kept", "bytes": 1000}, {"shard": "old", "bytes": 200}],
        failures=[
            failure("scan", "too short"),
            failure("scan", "too short"),
            failure("track", "x"),
        ],
    )
    new = publish(
        tmp_path,
        24,
        videos=[
            video("t", "same", "4"),
            video("s", "same", "1"),
            video("s", "replaced", "22"),
            video("s", "added", "6"),
        ],
        clips=[
            clip("shorter", "ee", [80]),
            clip("one frame differs", "dd", [60, 71]),
            clip("retracked too", "cc", [50]),
            clip("retracked", "bb", [30, 40]),
            clip("same", "a", [10, 20]),
            clip("added", "g", [1]),
            clip("added too", "h", [2]),
        ],
        shards=[
            {"shard": "new", "bytes": 30},
            {"shard": "kept", "bytes": 1000},
            {"shard": "newer", "bytes": 4},
        ],
        failures=[failure("scan", "too short"), failure("decode", "x")],
    )
    return old, new


def test_every_change_between_two_snapshots_is_counted(
    snapshots: tuple[Snapshot, Snapshot],
) -> None:
    difference = compare(*snapshots)
    assert difference.settings == (SettingChange("grid", 16, 24),)
    assert difference.videos == VideoChanges(added=1, removed=2, replaced=1)
    assert difference.clips == ClipChanges(added=2, removed=1, same=1, retracked=2, other_frames=2)
    assert difference.failures == (
        FailureChange("decode", "x", old=0, new=1),
        FailureChange("scan", "too short", old=2, new=1),
        FailureChange("track", "x", old=1, new=0),
    )
    assert difference.shards == ShardChanges(
        shared=1, shared_bytes=1000, added=2, added_bytes=34, removed=1, removed_bytes=200
    )


def test_a_snapshot_does_not_differ_from_itself(snapshots: tuple[Snapshot, Snapshot]) -> None:
    difference = compare(snapshots[0], snapshots[0])
    assert difference.settings == ()
    assert difference.videos == VideoChanges(added=0, removed=0, replaced=0)
    assert difference.clips == ClipChanges(added=0, removed=0, same=6, retracked=0, other_frames=0)
    assert all(change.old == change.new for change in difference.failures)
    assert difference.shards == ShardChanges(
        shared=2, shared_bytes=1200, added=0, added_bytes=0, removed=0, removed_bytes=0
    )


def test_empty_snapshots_do_not_differ(tmp_path: Path) -> None:
    empty = publish(tmp_path, 16, [], [], [], [])
    difference = compare(empty, empty)
    assert difference.videos == VideoChanges(0, 0, 0)
    assert difference.clips == ClipChanges(0, 0, 0, 0, 0)
    assert difference.shards == ShardChanges(0, 0, 0, 0, 0, 0)
    assert pa.types.is_list(empty.clips.schema.field("frame_sizes").type)


def test_snapshots_with_nothing_in_common_replace_nothing(
    snapshots: tuple[Snapshot, Snapshot], tmp_path: Path
) -> None:
    empty = publish(tmp_path / "empty", 16, [], [], [], [])
    assert compare(empty, snapshots[0]).videos == VideoChanges(added=5, removed=0, replaced=0)
    assert compare(snapshots[0], empty).videos == VideoChanges(added=0, removed=5, replaced=0)


def test_all_videos_may_be_replaced(tmp_path: Path) -> None:
    old, new = (
        publish(tmp_path, 16, [video("s", "a", one), video("s", "b", two)], [], [], [])
        for one, two in (("1", "2"), ("11", "22"))
    )
    assert compare(old, new).videos == VideoChanges(added=0, removed=0, replaced=2)


def scored(key: str, **scores: float) -> dict[str, Any]:
    return clip(key, key, [1]) | scores


def test_scores_are_compared_over_the_clips_that_have_them_in_both(tmp_path: Path) -> None:
    """Medians over clips; a clip that lacks a score in either snapshot does not count."""
    old = [
        scored("a", epipolar_px=1.0, cycle_px=0.5),
        scored("b", epipolar_px=3.0, epipolar_inliers=0.5),
        scored("c", epipolar_px=4.0),
        scored("gone", epipolar_px=100.0),
    ]
    new = [
        scored("new", epipolar_px=100.0),
        scored("c", epipolar_px=1.0),
        scored("b", epipolar_px=2.0, epipolar_inliers=0.75),
        scored("a", epipolar_px=0.5),
    ]
    difference = compare(
        publish(tmp_path, 1, [], old, [], []), publish(tmp_path, 1, [], new, [], [])
    )
    assert difference.scores == (
        ScoreChange("epipolar_px", 3, 3.0, 1.0),
        ScoreChange("epipolar_inliers", 1, 0.5, 0.75),
    )
