"""Rows survive the way through their tables; a clip's row leads back to its members."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from manifests.rows import TrackSummary, VideoRow, clip_row, members_of
from manifests.tables import VIDEOS, table_of
from shards.clip import Camera
from shards.errors import PretrackError
from shards.writer import ByteRange, ClipMembers
from tests.helpers.clips import make_clip

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


MEMBERS = ClipMembers(
    info=ByteRange(512, 300),
    tracks=ByteRange(1536, 70),
    anchors=(30, 40),
    frames=(ByteRange(2560, 900), ByteRange(4096, 901)),
    checksum="0f",
)


def test_a_clips_row_leads_back_to_its_members() -> None:
    info = make_clip("made-a-000000", frames=2).info
    row = clip_row("made-train-000000-00", info, MEMBERS, TrackSummary((0, 1), 9, 0.5, 0.25))
    assert members_of(asdict(row)) == MEMBERS
    assert (row.key, row.shard, row.frames, row.width, row.height) == (
        "made-a-000000",
        "made-train-000000-00",
        2,
        96,
        64,
    )
    assert (row.anchors, row.points, row.visible_fraction, row.motion) == ([0, 1], 9, 0.5, 0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_sizes": [1]}, "made-a has 2 offsets and 1 sizes of frames"),
        ({"frame_offsets": None}, "made-a lacks offsets or sizes of its members"),
        ({"anchor_sizes": [30, None]}, "made-a lacks offsets or sizes of its members"),
    ],
)
def test_a_damaged_row_is_named(change: dict[str, Any], message: str) -> None:
    row = clip_row("s", make_clip("made-a").info, MEMBERS, TrackSummary((0, 1), 9, 0.5, 0.25))
    with pytest.raises(PretrackError, match=f"the clips table is damaged: {message}"):
        members_of({**asdict(row), **change})
