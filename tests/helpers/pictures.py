"""Write videos as folders of images, and make the settings of a small build of them."""

from __future__ import annotations

from pathlib import Path

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from shards import jpeg
from tests.helpers.panning import panning_frames

FRAMES = {"clip_frames": 10, "min_frames": 6, "short_side": 64}
TRACKS = {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]}
VIDEOS = {"a": 20, "b": 20, "c": 10, "d": 10}
"""Frames per video. With two clips per shard, the shards hold a, b, and c with d."""


def write_images(folder: Path, seed: int, frames: int) -> None:
    """Write `frames` panning frames of 96 x 64 pixels as JPEG files 000.jpg, 001.jpg, …"""
    folder.mkdir(parents=True)
    for number, frame in enumerate(panning_frames(seed, frames, 96, 64)):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg.encode(frame, 90))


def settings_for(root: Path, **changes: object) -> BuildSettings:
    """Make the settings that build ROOT/videos to ROOT/out; `changes` replace top-level keys."""
    values = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(root / "videos")}],
        "frames": FRAMES,
        "tracks": TRACKS,
        "shards": {"clips_per_shard": 2},
        "split": {"eval_fraction": 0.0},
        "max_failed_videos": 0.5,
        "out": str(root / "out"),
        **changes,
    }
    return check_settings(BuildSettings, values, "test")
