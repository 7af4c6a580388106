"""Clips cut from all videos at once are those of a plain loop over videos, shots and windows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.planning.assignment
from manifests.fingerprint import fingerprint_lines
from manifests.tables import VIDEOS
from pipeline.config import FrameSettings
from pipeline.planning.assignment import Assignment, frames_fingerprints
from pipeline.planning.clip_windows import plan_clips, video_names, videos_of
from pipeline.sources.listing import SourceName
from shards.reader import iterate_shard
from tests.helpers.clips import make_clip, write_clips


def windows(frames: int, cuts: list[int], settings: FrameSettings) -> Iterator[tuple[int, int]]:
    """Yield (start, frames) of the clips of one video."""
    for begin, end in pairwise([0, *cuts, frames]):
        stored = (end - begin) // settings.stride
        for first in range(0, stored, settings.clip_frames):
            if min(settings.clip_frames, stored - first) >= settings.min_frames:
                yield begin + first * settings.stride, min(settings.clip_frames, stored - first)


@st.composite
def some_videos(draw: st.DrawFn) -> pa.Table:
    """A videos table with the columns that cutting reads."""
    rows = []
    for number in range(draw(st.integers(0, 6))):
        frames = draw(st.integers(0, 120))
        cuts = (
            sorted(draw(st.sets(st.integers(1, max(1, frames - 1)), max_size=5)))
            if frames > 1
            else []
        )
        name = f"{draw(st.text(max_size=5))}/{number}"
        rows.append(
            {
                "source": "some",
                "video_id": name,
                "frames": frames,
                "cuts": draw(st.sampled_from([cuts, None])),
            }
        )
    return pa.Table.from_pylist(rows, schema=VIDEOS)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(some_videos(), st.integers(2, 30), st.integers(1, 5), st.integers(2, 30))
def test_clips_are_those_of_a_plain_loop(
    videos: pa.Table, clip_frames: int, stride: int, min_frames: int
) -> None:
    assert_cut_as_by_hand(
        videos,
        FrameSettings(
            clip_frames=clip_frames, stride=stride, min_frames=min(min_frames, clip_frames)
        ),
    )


@pytest.mark.parametrize("clip_frames", [24, 30])
def test_starts_may_have_more_digits_than_keys_leave_room_for(clip_frames: int) -> None:
    rows = [
        {
            "source": "some",
            "video_id": str(frames),
            "frames": frames,
            "cuts": [c for c in (999_999, 1_000_001) if c < frames],
        }
        for frames in (999_998, 1_000_000, 1_000_100)
    ]
    assert_cut_as_by_hand(
        pa.Table.from_pylist(rows, schema=VIDEOS),
        FrameSettings(clip_frames=clip_frames, stride=20, min_frames=2),
    )


def assert_cut_as_by_hand(videos: pa.Table, frames: FrameSettings) -> None:
    """Assert that clips, and the videos their keys name, are those of a plain loop."""
    names = video_names(videos)
    expected = [
        {"key": f"{names[number]}-{start:06d}", "video": number, "start": start, "frames": count}
        for number, row in enumerate(videos.to_pylist())
        for start, count in windows(row["frames"], row["cuts"] or [], frames)
    ]
    clips = plan_clips(videos, names, frames)
    assert clips.to_pylist() == expected
    assert (
        videos_of(clips["key"]).to_pylist()
        == names.take(clips["video"].combine_chunks()).to_pylist()
    )


def test_the_longest_key_fits_a_tars_header(tmp_path: Path) -> None:
    (most,) = get_args(SourceName)[1:]
    video = pa.Table.from_pylist(
        [{"source": "n" * most.max_length, "video_id": "v" * 80}], schema=VIDEOS
    )
    key = f"{video_names(video)[0]}-99999999"
    write_clips(tmp_path / "s.tar", [make_clip(key)])
    assert [clip.info.key for clip in iterate_shard(tmp_path / "s.tar")] == [key]


def test_fingerprints_are_those_of_the_lines_however_they_are_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = pa.table(
        {
            "key": [f"clip-{i}" for i in range(12)],
            "video": [i // 2 for i in range(12)],
            "frames": range(12),
        }
    )
    identities = pa.chunked_array([[f"file {i}" for i in range(4)], ["file 4", "file 5"]])
    bounds = [0, 1, 2, 9, 12]
    assigned = Assignment(clips, tuple("abcd"), pa.array(bounds).to_numpy())
    expected = [
        fingerprint_lines(["{}", *(f"clip-{i} file {i // 2} {i}" for i in range(first, last))])
        for first, last in pairwise(bounds)
    ]
    for block in (1, 4, 100):
        monkeypatch.setattr(pipeline.planning.assignment, "_BLOCK", block)
        assert frames_fingerprints(assigned, identities, "{}") == expected
