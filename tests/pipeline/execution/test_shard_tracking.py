"""Tracking a shard: nothing waits, and a clip that cannot be tracked leaves the others alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.decoded_clip import DecodedClip
from pipeline.execution.shard_stages import DecodedShard
from pipeline.execution.shard_tracking import track_shard
from pipeline.execution.tracker_worker import UNPACKING, TrackerWorker
from pipeline.trackers.protocol import Tracker
from shards.clip import ClipInfo, Tracks
from shards.errors import ShardError
from tests.helpers.brittle_tracker import Slow, with_tracker
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
    assert tracker.batches == [9, 9, 2]
    assert len(tracked.clips) == 20


def test_a_clip_too_short_for_an_anchor_goes_without_it() -> None:
    long, short = (
        track_shard(decoded("made-a-0", frames=frames), StandingStill(), SETTINGS).clips[0].summary
        for frames in (8, 6)
    )
    assert (long.anchors, short.anchors) == ((0, 6), (0,))
    assert (long.points, long.visible_fraction, long.motion) == (4, 1.0, 0.0)


class Lazy(Sequence[Tracks]):
    """Tracks that are there once `ready` is set, within ten seconds; `error` is raised instead."""

    def __init__(
        self, tracks: list[Tracks], ready: threading.Event, error: Exception | None = None
    ) -> None:
        self._tracks = tracks
        self._ready = ready
        self._error = error

    def __len__(self) -> int:
        return len(self._tracks)

    def __getitem__(self, index: Any) -> Any:
        if not self._ready.wait(10):
            raise AssertionError("the next batch was not given to the tracker meanwhile")
        if self._error:
            raise self._error
        return self._tracks[index]


class OneBehind(StandingStill):
    """Computes a batch only when it has been given the next, like a GPU that never runs dry."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._ready = [threading.Event() for _ in range(batches)]

    def track(self, clips: Any, infos: Any, anchors: Any, queries: Any) -> Any:
        tracks = super().track(clips, infos, anchors, queries)
        number = len(self.batches)
        for ready in self._ready[: number if number == len(self._ready) else number - 1]:
            ready.set()
        return Lazy(tracks, self._ready[number - 1])


def test_a_tracker_has_its_next_batch_before_the_last_one_is_encoded() -> None:
    tracker = OneBehind(batches=3)
    keys = [f"made-{number:02d}-0" for number in range(33)]
    tracked = track_shard(decoded(*keys), tracker, SETTINGS)
    assert tracker.batches == [11, 11, 11]
    assert [clip.key for clip in tracked.clips] == keys


class OwnMemory(StandingStill):
    """Gives memory for frames, and counts how much of it was asked for before each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[NDArray[np.uint8]] = []
        self.given_before: list[int] = []

    def frame_memory(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        self.given.append(np.zeros(shape, np.uint8))
        return self.given[-1]

    def track(self, clips: Any, infos: Any, anchors: Any, queries: Any) -> Any:
        memory = self.given[len(self.batches)]
        assert all(np.shares_memory(clip, part) for clip, part in zip(clips, memory, strict=True))
        assert memory.min() > 100, "all grey frames are there"
        self.given_before.append(len(self.given))
        return super().track(clips, infos, anchors, queries)


def test_frames_are_unpacked_one_batch_ahead_into_memory_of_the_tracker() -> None:
    tracker = OwnMemory()
    track_shard(decoded(*(f"made-{number:02d}-0" for number in range(33))), tracker, SETTINGS)
    assert tracker.given_before == [2, 3, 3]


class FailsLater(StandingStill):
    """Raises an error of bad clips only when their tracks are looked at, as a GPU does."""

    def track(self, clips: Any, infos: Any, anchors: Any, queries: Any) -> Any:
        bad = any("bad" in info.key for info in infos)
        named = [replace(info, key="made-a-0") for info in infos]
        ready = threading.Event()
        ready.set()
        error = RuntimeError("the kernel failed") if bad else None
        return Lazy(super().track(clips, named, anchors, queries), ready, error)


class FarAway(FailsLater):
    """Bad clips have tracks that cannot be stored."""

    def track(self, clips: Any, infos: Any, anchors: Any, queries: Any) -> Any:
        named = [replace(info, key="made-a-0") for info in infos]
        tracks = StandingStill.track(self, clips, named, anchors, queries)
        return [
            replace(one, positions=one.positions * np.inf) if "bad" in info.key else one
            for one, info in zip(tracks, infos, strict=True)
        ]


@pytest.mark.parametrize(
    ("tracker", "says"),
    [(FailsLater(), "the kernel failed"), (FarAway(), "tracks hold positions that are not finite")],
)
def test_an_error_that_comes_late_leaves_one_clip_out(tracker: StandingStill, says: str) -> None:
    tracked = track_shard(decoded("made-a-0", "made-bad-0", "made-c-0"), tracker, SETTINGS)
    assert [clip.key for clip in tracked.clips] == ["made-a-0", "made-c-0"]
    (failure,) = tracked.failures
    assert failure.clip == "made-bad-0"
    assert failure.detail.startswith(f"the tracker lucas_kanade failed: {says}")


def test_damaged_frames_are_not_tracked() -> None:
    whole = decoded("made-a-0")
    jpegs = (whole.clips[0].jpegs[0][:200], *whole.clips[0].jpegs[1:])
    damaged = replace(whole, clips=(replace(whole.clips[0], jpegs=jpegs),))
    with pytest.raises(ShardError, match="JPEG"):
        track_shard(damaged, StandingStill(), SETTINGS)


def test_a_frame_of_another_size_than_described_is_not_tracked() -> None:
    clip = decoded("made-a-0").clips[0]
    wider = DecodedShard((replace(clip, info=replace(clip.info, width=104)),), (), 0.0)
    with pytest.raises(ShardError, match="a stored frame of the clip made-a-0 has another size"):
        track_shard(wider, StandingStill(), SETTINGS)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_the_next_shard_is_unpacked_while_the_tracker_works() -> None:
    """The first shard takes the tracker three seconds."""
    worker = ray.remote(num_cpus=0, concurrency_groups={UNPACKING: 1})(TrackerWorker).remote(
        with_tracker(SETTINGS, Slow)
    )
    unpack = worker.unpack.options(concurrency_group=UNPACKING)
    ray.get(worker.load.remote())
    shards = [decoded(*(f"made-{shard}-{n}" for n in range(6))) for shard in range(2)]
    ray.get(unpack.remote(0, shards[0], ""))
    first = worker.track.options(num_returns=2).remote(0)
    ray.get(unpack.remote(1, shards[1], "made-1-3"))
    assert ray.wait(first, num_returns=2, timeout=0)[0] == [], "it still tracks the first"
    tracked, seconds = ray.get(worker.track.options(num_returns=2).remote(1))
    assert [clip.key for clip in tracked.clips] == ["made-1-3"]
    assert seconds == tracked.seconds
    assert len(ray.get(first[0]).clips) == 6
