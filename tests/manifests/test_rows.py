"""A video's row survives the way through its table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manifests.rows import VideoRow
from manifests.tables import VIDEOS, table_of
from shards.clip import Camera

VIDEO = VideoRow(
    source="mine",
    dataset="video_folder",
    video_id="trips/rome.mp4",
    sequence="mine/trips/rome.mp4",
    split="train",
    root="/videos",
    file="trips/rome.mp4",
    image_files=(),
    frame_numbers=(),
    timestamps=(0.0, 0.1, 0.30000000000000004),
    cameras=(Camera(500.5, 510.0, 320.0, 240.0, tuple(map(float, range(12)))), None, None),
    width=640,
    height=480,
    cuts=(2,),
    frames=3,
    identity="a1",
    scan="b2",
    terms="",
)
PICTURES = replace(
    VIDEO,
    file="",
    image_files=("0.jpg", "7.jpg"),
    frame_numbers=(0, 1 << 40),
    timestamps=None,
    cameras=None,
    cuts=(),
    frames=2,
)


@pytest.mark.parametrize("video", [VIDEO, PICTURES], ids=["file", "pictures"])
def test_a_video_comes_back_from_its_table(video: VideoRow) -> None:
    (fields,) = table_of([video], VIDEOS).to_pylist()
    assert VideoRow.from_fields(fields) == video
