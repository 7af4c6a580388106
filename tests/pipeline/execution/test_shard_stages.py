"""Stages of a shard that go wrong: a clip that cannot be tracked does not take the others along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.clip_decoding import DecodedClip
from pipeline.execution.shard_stages import DecodedShard, track_shard
from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo, Tracks
from tests.helpers.clips import grey_clip

SETTINGS = check_settings(
    BuildSettings,
    {
        "sources": [{"dataset": "video_folder", "root": "/videos"}],
        "tracks": {"tracker": "lucas_kanade", "grid": 2, "anchors": [0, 6]},
        "out": "/out",
    },
    "test",
)


class StandingStill:
    """Points that never move. Fails on clips whose key says so; counts the clips of each call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def track(
        self,
        clips: Sequence[NDArray[np.uint8]],
        infos: Sequence[ClipInfo],
        anchors: Sequence[int],
        queries: NDArray[np.float32],
    ) -> list[Tracks]:
        self.batches.append(len(clips))
        if any("bad" in info.key for info in infos):
            raise ValueError("it shows nothing to follow")
        shape = (len(anchors), len(clips[0]), len(queries))
        certain = np.full(shape, 255, np.uint8)
        positions = np.broadcast_to(queries, (*shape, 2)).copy()
        return [Tracks(np.array(anchors, np.int32), positions, certain, certain) for _ in clips]


def decoded(*keys: str, frames: int = 8) -> DecodedShard:
    clips = [grey_clip(key, frames=frames) for key in keys]
    return DecodedShard(tuple(DecodedClip(clip.info, clip.jpegs) for clip in clips), (), 0.0)


def test_a_clip_that_the_tracker_refuses_is_left_out_alone() -> None:
    tracker: Tracker = StandingStill()
    tracked = track_shard(decoded("made-a-0", "made-bad-0", "made-c-0"), tracker, SETTINGS)
    assert [clip.key for clip in tracked.clips] == ["made-a-0", "made-c-0"]
    (failure,) = tracked.failures
    assert (failure.clip, failure.stage, failure.reason) == (
        "made-bad-0",
        "track",
        "tracker failed",
    )
    assert failure.detail == "the tracker lucas_kanade failed: it shows nothing to follow"


def test_clips_are_tracked_in_batches_of_one_shape() -> None:
    tracker = StandingStill()
    many = decoded(*(f"made-{number}-0" for number in range(18)))
    shorter = decoded("made-short-0", "made-short-1", frames=5)
    tracked = track_shard(DecodedShard((*many.clips, *shorter.clips), (), 0.0), tracker, SETTINGS)
    assert tracker.batches == [16, 2, 2]
    assert len(tracked.clips) == 20


def test_a_clip_too_short_for_an_anchor_goes_without_it() -> None:
    long, short = (
        track_shard(decoded("made-a-0", frames=frames), StandingStill(), SETTINGS).clips[0].summary
        for frames in (8, 6)
    )
    assert (long.anchors, short.anchors) == ((0, 6), (0,))
    assert (long.points, long.visible_fraction, long.motion) == (4, 1.0, 0.0)
