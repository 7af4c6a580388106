"""Published snapshots of small clips made here, without a build: grey frames over which points move as they are told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from manifests.receipt import shard_path
from manifests.snapshot import Snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, ShardRow, TrackSummary, clip_row, table_of
from shards import jpeg
from shards.clip import StoredClip, Tracks
from shards.geometry import grid_points, inside
from tests.clips import make_clip, write_clips

WIDTH, HEIGHT = 96, 64
GREY = 110


def grey_clip(
    key: str,
    *,
    video: str = "",
    source: str = "made",
    split: str = "train",
    frames: int = 8,
    grid: int = 4,
    anchors: tuple[int, ...] = (0, 4),
    step: tuple[float, float] = (3.0, 1.0),
    confidence: int = 255,
) -> StoredClip:
    """A clip of 96x64 whose points move by `step` pixels a frame; they are visible while they are inside."""
    info = replace(make_clip(key, 0, frames, split).info, video_id=video or key, source=source)
    shift = np.array([[t - a for t in range(frames)] for a in anchors], np.float32)
    positions = grid_points(grid, WIDTH, HEIGHT) + shift[..., None, None] * np.array(step, np.float32)
    visible = inside(positions, WIDTH, HEIGHT).astype(np.uint8) * 255
    tracks = Tracks(np.array(anchors, np.int32), positions, visible, np.full_like(visible, confidence))
    picture = jpeg.encode(np.full((HEIGHT, WIDTH, 3), GREY, np.uint8), 90)
    return StoredClip(info, tracks, (picture,) * frames)


def publish_clips(
    out: Path,
    clips: Sequence[StoredClip],
    *,
    shard: str = "made-000000-0123456789abcdef",
    motion: Sequence[float] = (),
    settings: dict[str, Any] | None = None,
    failures: Sequence[dict[str, str]] = (),
) -> Snapshot:
    """Writes clips as one shard and publishes a snapshot of them."""
    members, size, checksum = write_clips(shard_path(out, shard), list(clips))
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
        )
        for number, clip in enumerate(clips)
    ]
    row = ShardRow(shard, "made-000000", "made", "train", len(rows), size, checksum, "f", "t", "{}", "{}", 2.0, 6.0, 0.5, 0)
    tables = {
        "videos": table_of([], VIDEOS),
        "clips": table_of(rows, CLIPS),
        "shards": table_of([row], SHARDS),
        "failures": table_of(failures, FAILURES),
    }
    return publish_snapshot(out, tables, settings or {})
