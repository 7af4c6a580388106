"""A published snapshot of given clips, for tests that read a finished build and need no pipeline to make one."""

from __future__ import annotations

from pathlib import Path

from manifests.receipt import shard_name, shard_path
from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, ShardRow, TrackSummary, clip_row, table_of
from shards.clip import StoredClip
from tests.clips import write_clips


def publish(out: Path, clips: list[StoredClip]) -> Snapshot:
    """Writes clips as one shard and publishes a snapshot that has every table's rows, and one thing that was left out."""
    group = "made-train-000000"
    members, size, checksum = write_clips(out / "shards" / "new.tar", clips)
    shard = shard_name(group, checksum)
    (out / "shards" / "new.tar").rename(str(shard_path(out, shard)))
    rows = [
        clip_row(
            shard,
            clip.info,
            members[clip.info.key],
            TrackSummary(
                anchors=tuple(clip.tracks.anchors.tolist()),
                points=clip.tracks.positions.shape[2],
                visible_fraction=float(clip.tracks.visibility.mean()) / 255,
                motion=0.01 * number,
            ),
        )
        for number, clip in enumerate(clips)
    ]
    videos = [
        {name: getattr(clip.info, name) for name in ("source", "dataset", "video_id", "sequence", "split", "terms")}
        for clip in clips
    ]
    row = ShardRow(shard, group, "made", "train", len(clips), size, checksum, "f", "t", "{}", "{}", 1.0, 2.0, 0.1, 0)
    lost = {
        "source": "made",
        "video_id": "lost",
        "clip": "",
        "stage": "scan",
        "reason": "unreadable video",
        "detail": "x",
        "shard": "",
    }
    tables = {
        "videos": table_of(videos, VIDEOS),
        "clips": table_of(rows, CLIPS),
        "shards": table_of([row], SHARDS),
        "failures": table_of([lost], FAILURES),
    }
    return publish_snapshot(out, tables, {})
