"""A finished build of moving pictures with exact tracks, made without a tracker."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.gpu.moving_pictures import MOTION, moving_pictures
from manifests.receipt import shard_path
from manifests.rows import TrackSummary, clip_row
from manifests.snapshot import publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, table_of
from shards import jpeg
from shards.clip import ClipInfo, Tracks
from shards.codec import encode_tracks
from shards.geometry import grid_points, inside
from shards.writer import open_shard

SHARD = "made-000000"


def write_build(out: Path, clips: int, frames: int, height: int, width: int, grid: int) -> None:
    """Publish a snapshot of one shard; every clip has grid x grid points from its first frame."""
    queries = grid_points(grid, width, height)
    # the window moves over the picture, so the picture's points move the other way
    shift = -np.arange(frames)[:, None, None] * np.array(MOTION)
    positions = (queries + shift).astype(np.float32)[None]
    visible = inside(positions, width, height).astype(np.uint8) * 255
    tracks = Tracks(np.zeros(1, np.int32), positions, visible, np.full_like(visible, 255))
    rows = []
    with open_shard(shard_path(out, SHARD)) as writer:
        for number, clip in enumerate(moving_pictures(clips, frames, height, width)):
            pictures = np.ascontiguousarray(clip.permute(0, 2, 3, 1).numpy())
            info = ClipInfo(
                key=f"made-{number:04d}",
                source="made",
                dataset="video_folder",
                video_id=str(number),
                sequence=str(number),
                split="train",
                width=width,
                height=height,
                source_width=width,
                source_height=height,
                frame_numbers=tuple(range(frames)),
                timestamps=None,
                cameras=None,
                terms="made by a benchmark",
                frames_settings="",
                tracks_settings="",
            )
            members = writer.add(
                info, encode_tracks(tracks), tuple(jpeg.encode(picture, 90) for picture in pictures)
            )
            rows.append(clip_row(SHARD, info, members, TrackSummary((0,), grid**2, 1.0, 0.1)))
    tables = {
        "videos": table_of([], VIDEOS),
        "clips": table_of(rows, CLIPS),
        "shards": table_of([], SHARDS),
        "failures": table_of([], FAILURES),
    }
    publish_snapshot(out, tables, {})
