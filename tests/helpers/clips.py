"""Make small clips, for tests that need a shard and no video."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from shards import jpeg
from shards.clip import Camera, ClipInfo, Tracks
from shards.codec import encode_tracks
from shards.files import Location
from shards.geometry import grid_points, inside
from shards.score_codec import encode_scores
from shards.stored_clip import StoredClip
from shards.track_scores import score_clip
from shards.writer import ClipMembers, open_shard

WIDTH, HEIGHT = 96, 64
GREY = 110


def make_tracks(seed: int, anchors: tuple[int, ...], frames: int, points: int) -> Tracks:
    """Make random walks, some of which leave the frame, with random visibility and confidence."""
    rng = np.random.default_rng(seed)
    shape = (len(anchors), frames, points)
    walks = np.cumsum(rng.normal(0, 3, (*shape, 2)), axis=1) + rng.uniform(
        -20, 150, (len(anchors), 1, points, 2)
    )
    return Tracks(
        anchors=np.asarray(anchors, np.int32),
        positions=walks.astype(np.float32),
        visibility=rng.integers(0, 256, shape).astype(np.uint8),
        confidence=rng.integers(0, 256, shape).astype(np.uint8),
    )


def make_clip(
    key: str = "made-a-00000000-000000",
    seed: int = 0,
    frames: int = 6,
    split: str = "train",
    points: int = 9,
) -> StoredClip:
    """Make a clip of smooth noise, 96x64, with two anchors and a camera in every second frame."""
    rng = np.random.default_rng(seed)
    pictures = [
        cv2.GaussianBlur(rng.integers(0, 256, (64, 96, 3), np.uint8), (0, 0), 2)
        for _ in range(frames)
    ]
    camera = Camera(80.0, 81.0, 47.5, 31.5, tuple(float(v) for v in np.eye(4)[:3].ravel()))
    info = ClipInfo(
        key=key,
        source="made",
        dataset="video_folder",
        video_id=key,
        sequence=f"made/{key}",
        split=split,
        width=WIDTH,
        height=HEIGHT,
        source_width=192,
        source_height=128,
        frame_numbers=tuple(range(3, 3 + frames)),
        timestamps=tuple(i / 10 for i in range(frames)),
        cameras=tuple(camera if i % 2 else None for i in range(frames)),
        terms="made by a test",
        frames_settings="f" * 32,
        tracks_settings="t" * 32,
    )
    jpegs = tuple(jpeg.encode(picture, 90) for picture in pictures)
    return StoredClip(info, make_tracks(seed, (0, frames // 2), frames, points), jpegs)


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
    """Make a grey clip of 96x64 whose points move by `step` pixels per frame.

    Points are visible while they are inside the frame.
    """
    info = replace(make_clip(key, 0, frames, split).info, video_id=video or key, source=source)
    shift = np.array([[t - a for t in range(frames)] for a in anchors], np.float32)
    positions = grid_points(grid, WIDTH, HEIGHT) + shift[..., None, None] * np.array(
        step, np.float32
    )
    visible = inside(positions, WIDTH, HEIGHT).astype(np.uint8) * 255
    tracks = Tracks(
        np.array(anchors, np.int32), positions, visible, np.full_like(visible, confidence)
    )
    picture = jpeg.encode(np.full((HEIGHT, WIDTH, 3), GREY, np.uint8), 90)
    return StoredClip(info, tracks, (picture,) * frames)


def write_clips(
    path: Location, clips: list[StoredClip], *, scored: bool = False
) -> tuple[dict[str, ClipMembers], int, str]:
    """Write a shard, with scores if `scored`; return its members by key, its size and checksum."""
    with open_shard(path) as writer:
        members = {
            clip.info.key: writer.add(
                clip.info,
                encode_tracks(clip.tracks),
                clip.jpegs,
                encode_scores(score_clip(clip.tracks, clip.info).tracks) if scored else None,
                maps=clip.maps,
            )
            for clip in clips
        }
    return members, writer.size, writer.checksum
