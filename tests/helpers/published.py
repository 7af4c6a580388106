"""Publish snapshots of given clips, for tests that read a finished build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.receipt import shard_name, shard_path
from manifests.rows import ShardRow, TrackSummary, clip_row
from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, table_of
from shards.stored_clip import StoredClip
from shards.track_scores import score_clip
from tests.helpers.clips import grey_clip, write_clips

HOSTILE = "<script>alert(1)</script>"
"""A name that must never reach a page as it is."""


def publish_clips(
    out: Path,
    clips: Sequence[StoredClip],
    *,
    motion: Sequence[float] = (),
    settings: dict[str, Any] | None = None,
    failures: Sequence[dict[str, str]] = (),
    scored: bool = False,
    tracks_settings: str = "{}",
) -> Snapshot:
    """Write clips as one shard, and publish a snapshot of them and their videos."""
    group = "made-train-000000"
    members, size, checksum = write_clips(out / "shards" / "new.tar", list(clips), scored=scored)
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
                motion=motion[number] if motion else 0.1,
            ),
            score_clip(clip.tracks, clip.info).clip if scored else None,
        )
        for number, clip in enumerate(clips)
    ]
    columns = ("source", "dataset", "video_id", "sequence", "split", "terms")
    videos = {
        (clip.info.source, clip.info.video_id): {name: getattr(clip.info, name) for name in columns}
        for clip in clips
    }
    row = ShardRow(
        shard=shard,
        group=group,
        source="made",
        split="train",
        clips=len(rows),
        bytes=size,
        checksum=checksum,
        frames_fingerprint="f",
        tracks_fingerprint="t",
        frames_settings="{}",
        tracks_settings=tracks_settings,
        decode_seconds=2.0,
        track_seconds=6.0,
        write_seconds=0.5,
        tries=0,
    )
    tables = {
        "videos": table_of(videos.values(), VIDEOS),
        "clips": table_of(rows, CLIPS),
        "shards": table_of([row], SHARDS),
        "failures": table_of(failures, FAILURES),
    }
    return publish_snapshot(out, tables, settings or {})


def publish_pans(out: Path) -> Snapshot:
    """Publish clips of two panning videos and a still one of the source `HOSTILE`, with failures.

    One failure is a clip of a video that has other clips; the other lost a whole video.
    """
    lost = {
        "source": "pans",
        "video_id": "bad.mp4",
        "clip": "",
        "stage": "scan",
        "reason": "unreadable video",
        "detail": "",
        "shard": "",
    }
    dropped = {
        **lost,
        "video_id": "a.mp4",
        "clip": "pans-a-000016",
        "stage": "decode",
        "reason": HOSTILE,
    }
    clips = [
        grey_clip("pans-a-000000", video="a.mp4", source="pans", frames=12),
        grey_clip("pans-a-000008", video="a.mp4", source="pans"),
        grey_clip("pans-b-000000", video="b.mp4", source="pans", split="eval", step=(40.0, 0.0)),
        grey_clip("walks-c-000000", video="c.mp4", source=HOSTILE, step=(0.0, 0.0)),
    ]
    return publish_clips(
        out,
        clips,
        motion=(0.05, 0.04, 0.6, 0.0),
        settings={"tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0, 4]}},
        failures=[lost, lost, dropped],
    )
