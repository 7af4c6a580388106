"""Track the clips of a shard without letting the tracker wait.

JPEGs are unpacked ahead of the tracker, those of the first batch even before the shard's turn has
come. While the tracker works on one batch, the tracks of the batch before are encoded. All of it
runs in threads: libjpeg, the tracker and zstandard leave Python's lock to others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.rows import Failure
from pipeline.config import BuildSettings
from pipeline.execution.decoded_clip import DecodedClip
from pipeline.execution.shard_stages import DecodedShard, TrackedClip, TrackedShard
from pipeline.execution.track_summary import summarise_tracks
from pipeline.failures import Reason
from pipeline.trackers.batching import split_evenly
from pipeline.trackers.protocol import DepthTracker, PinsFrames, Tracker
from shards import jpeg
from shards.clip import Tracks
from shards.codec import encode_tracks
from shards.errors import PretrackError, ShardError
from shards.frame_maps import decode_depths
from shards.geometry import grid_points

Frames = NDArray[Any]
"""What a tracker reads of a clip: its frames, uint8 [T, H, W, 3]; or its depth maps, float32
[T, H, W]."""

_CLIPS_PER_BATCH = 16
"""Clips passed to a tracker at most: enough to fill a GPU, few enough to hold their frames."""
_IN_FLIGHT = 2
"""Batches that the tracker was given and that are not encoded: one is tracked, and one is encoded,
or waits on the GPU for its turn."""
_UNPACKING_THREADS = 2
_TRACKER_ERRORS = (ValueError, RuntimeError, PretrackError)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Clips of one shape, and what the tracker reads of them once it is unpacked."""

    clips: Sequence[DecodedClip]
    frames: Sequence[Future[Frames]]


class ShardTracking:
    """Track one shard: `unpack` its first batch, at any time, then `track` all of it."""

    def __init__(
        self, decoded: DecodedShard, tracker: Tracker | DepthTracker, settings: BuildSettings
    ) -> None:
        self._tracker = tracker
        self._settings = settings
        self._unpackers = ThreadPoolExecutor(_UNPACKING_THREADS)
        self._waiting = deque(_batches(decoded.clips))
        self._unpacked: deque[_Batch] = deque()

    def unpack(self) -> None:
        """Unpack the frames of the first batch. Raises ShardError if a stored frame is damaged."""
        self._start_unpacking()
        for batch in self._unpacked:
            for frames in batch.frames:
                frames.result()

    def track(self) -> TrackedShard:
        """Track all clips on the frames as they are stored; `unpack` comes first.

        Clips that the tracker raises an error for become failures. Raises ShardError if a stored
        frame is damaged.
        """
        started = time.monotonic()
        clips: list[TrackedClip] = []
        failures: list[Failure] = []
        in_flight: deque[tuple[_Batch, Future[list[TrackedClip]]]] = deque()
        with self._unpackers, ThreadPoolExecutor(1) as encoder:
            while self._unpacked or in_flight:
                if self._unpacked:
                    batch = self._unpacked.popleft()
                    frames = [clip.result() for clip in batch.frames]
                    self._start_unpacking()
                    in_flight.append((batch, self._begin(batch.clips, frames, encoder)))
                if len(in_flight) == _IN_FLIGHT or not self._unpacked:
                    tracked, left_out = self._end(*in_flight.popleft())
                    clips += tracked
                    failures += left_out
        return TrackedShard(tuple(clips), tuple(failures), time.monotonic() - started)

    def _start_unpacking(self) -> None:
        """Begin to unpack the next batch, if there is one."""
        if not self._waiting:
            return
        clips = self._waiting.popleft()
        if isinstance(self._tracker, DepthTracker):
            frames = [self._unpackers.submit(_unpack_depth, clip) for clip in clips]
            self._unpacked.append(_Batch(clips, frames))
            return
        info = clips[0].info
        shape = (len(clips), info.frames, info.height, info.width, 3)
        memory = (
            self._tracker.frame_memory(shape)
            if isinstance(self._tracker, PinsFrames)
            else np.empty(shape, np.uint8)
        )
        frames = [
            self._unpackers.submit(_unpack, clip, part)
            for clip, part in zip(clips, memory, strict=True)
        ]
        self._unpacked.append(_Batch(clips, frames))

    def _begin(
        self, clips: Sequence[DecodedClip], frames: Sequence[Frames], encoder: ThreadPoolExecutor
    ) -> Future[list[TrackedClip]]:
        """Track clips of one shape, and begin to encode their tracks.

        The future raises what the tracker raised.
        """
        try:
            tracks = self._call_tracker(clips, frames)
        except _TRACKER_ERRORS as error:
            failed: Future[list[TrackedClip]] = Future()
            failed.set_exception(error)
            return failed
        return encoder.submit(self._encode, clips, tracks)

    def _end(
        self, batch: _Batch, encoded: Future[list[TrackedClip]]
    ) -> tuple[list[TrackedClip], list[Failure]]:
        """Return the tracks of a batch; if it failed, track its clips one at a time."""
        try:
            return encoded.result(), []
        except _TRACKER_ERRORS:
            pass  # one of the clips may be the cause, and the others should not fail with it
        tracked: list[TrackedClip] = []
        failures: list[Failure] = []
        for clip, frames in zip(batch.clips, batch.frames, strict=True):
            try:
                tracked += self._encode([clip], self._call_tracker([clip], [frames.result()]))
            except _TRACKER_ERRORS as error:
                failures.append(_failure(clip, self._settings, error))
        return tracked, failures

    def _call_tracker(
        self, clips: Sequence[DecodedClip], frames: Sequence[Frames]
    ) -> Sequence[Tracks]:
        infos = [clip.info for clip in clips]
        # A short clip has no anchors beyond its end.
        anchors = [anchor for anchor in self._settings.tracks.anchors if anchor < infos[0].frames]
        queries = grid_points(self._settings.tracks.grid, infos[0].width, infos[0].height)
        track = (
            self._tracker.track_depth
            if isinstance(self._tracker, DepthTracker)
            else self._tracker.track
        )
        return track(frames, infos, tuple(anchors), queries)

    def _encode(
        self, clips: Sequence[DecodedClip], tracks_of_clips: Sequence[Tracks]
    ) -> list[TrackedClip]:
        """Encode the tracks of clips, once they are computed."""
        directions = self._settings.tracks.directions
        return [
            TrackedClip(
                clip.info.key,
                encode_tracks(tracks),
                summarise_tracks(tracks, clip.info.width, clip.info.height, directions),
            )
            for clip, tracks in zip(clips, tracks_of_clips, strict=True)
        ]


def track_shard(
    decoded: DecodedShard, tracker: Tracker | DepthTracker, settings: BuildSettings
) -> TrackedShard:
    """Unpack and track the clips of a shard. See `ShardTracking`."""
    tracking = ShardTracking(decoded, tracker, settings)
    tracking.unpack()
    return tracking.track()


def _batches(clips: Iterable[DecodedClip]) -> list[Sequence[DecodedClip]]:
    """Group clips of one shape into batches of at most `_CLIPS_PER_BATCH`."""
    by_shape: dict[tuple[int, int, int], list[DecodedClip]] = {}
    for clip in clips:
        by_shape.setdefault((clip.info.frames, clip.info.height, clip.info.width), []).append(clip)
    return [
        batch
        for same_shape in by_shape.values()
        for batch in split_evenly(same_shape, _CLIPS_PER_BATCH)
    ]


def _unpack_depth(clip: DecodedClip) -> Frames:
    """Decode the stored depth maps of a clip; zeros without. Raises ShardError for damage."""
    size, scale = (clip.info.width, clip.info.height), clip.info.depth_scale
    if scale is None:
        return np.zeros((clip.info.frames, *size[::-1]), np.float32)
    return decode_depths(clip.maps.depths, size, scale)


def _unpack(clip: DecodedClip, memory: Frames) -> Frames:
    """Decode the stored frames of a clip into `memory`, and return it."""
    for data, frame in zip(clip.jpegs, memory, strict=True):
        if jpeg.decode(data, memory=frame.reshape(-1)).shape != frame.shape:
            raise ShardError(f"a stored frame of the clip {clip.info.key} has another size")
    return memory


def _failure(clip: DecodedClip, settings: BuildSettings, error: Exception) -> Failure:
    return Failure(
        source=clip.info.source,
        video_id=clip.info.video_id,
        clip=clip.info.key,
        stage="track",
        reason=Reason.TRACKER_FAILED,
        detail=f"the tracker {settings.tracks.tracker} failed: {error}",
    )
