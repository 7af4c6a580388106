"""The stages of one shard: decode (or load), track, write; plain functions that run on workers.

`shard_chain` runs them on Ray. Tracking reads the frames as they are stored, so that the first
build and later re-tracks see the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import Receipt, shard_checksum, shard_name, shard_path, write_receipt
from manifests.rows import Failure, ShardRow, TrackSummary, clip_row
from pipeline.config import BuildSettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.clip_decoding import DecodedClip, decode_clips
from pipeline.execution.shard_scoring import StoredScores, score_stored
from pipeline.execution.shard_task import ShardTask
from pipeline.execution.track_summary import summarise_tracks
from pipeline.failures import Reason
from pipeline.trackers.protocol import Tracker
from shards import jpeg
from shards.clip import ClipInfo
from shards.codec import encode_tracks
from shards.errors import PretrackError, ShardError
from shards.geometry import grid_points
from shards.reader import iterate_shard
from shards.track_scores import SCORES_VERSION
from shards.writer import ClipMembers, open_shard_as

Frame = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height) in pixels."""

_CLIPS_PER_BATCH = 16
"""Clips passed to a tracker at once: enough to fill a GPU, few enough to hold their frames."""
_TRACKER_ERRORS = (ValueError, RuntimeError, PretrackError)


@dataclass(frozen=True, eq=False)
class DecodedShard:
    """The decoded clips of a shard, and what was left out; `seconds` is how long it took."""

    clips: tuple[DecodedClip, ...]
    failures: tuple[Failure, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class TrackedClip:
    """The encoded tracks of a clip, one part per anchor, and their summary for the clips table."""

    key: str
    tracks: tuple[bytes, ...]
    summary: TrackSummary


@dataclass(frozen=True, eq=False)
class TrackedShard:
    """The tracks of a shard's clips, and what was left out; `seconds` is how long it took."""

    clips: tuple[TrackedClip, ...]
    failures: tuple[Failure, ...]
    seconds: float


def decode_shard(task: ShardTask, decoder: SubprocessDecoder) -> DecodedShard:
    """Decode the clips of a shard, and copy intact clips from the shard being replaced.

    Clips and images that cannot be read become failures.
    """
    started = time.monotonic()
    results = list(decode_clips(task, decoder))
    return DecodedShard(
        clips=tuple(result.clip for result in results if result.clip),
        failures=tuple(failure for result in results for failure in result.failures),
        seconds=time.monotonic() - started,
    )


def load_shard(task: ShardTask) -> DecodedShard:
    """Read the frames of a shard, byte for byte, from the earlier shard of the same frames.

    Needs no source. Raises ShardError if the earlier shard is damaged.
    """
    started = time.monotonic()
    out, previous = task.settings.out, task.shard.previous
    # The stored description names the old tracking settings.
    digest = fingerprint_lines([task.shard.tracks_settings])
    clips = tuple(
        DecodedClip(replace(clip.info, tracks_settings=digest), clip.jpegs)
        for clip in iterate_shard(shard_path(out, previous), shard_checksum(previous))
    )
    # A shard has every planned clip, or a failure that says why not. Anything else is damage.
    stored, planned = {clip.info.key for clip in clips}, {clip.key for clip in task.clips}
    if stored - planned or planned - stored - {failure.clip for failure in task.failures}:
        raise ShardError(
            f"the shard {previous} does not hold the clips that its tables name: run 'pretrack "
            f"verify {out}'"
        )
    return DecodedShard(clips, task.failures, time.monotonic() - started)


def join_decoded(parts: Sequence[DecodedShard]) -> DecodedShard:
    """Join the parts of a shard whose clips were decoded one at a time."""
    return DecodedShard(
        clips=tuple(clip for part in parts for clip in part.clips),
        failures=tuple(failure for part in parts for failure in part.failures),
        seconds=sum(part.seconds for part in parts),
    )


def track_shard(decoded: DecodedShard, tracker: Tracker, settings: BuildSettings) -> TrackedShard:
    """Track the clips of a shard on the frames as they are stored, in batches of one shape.

    Clips that the tracker raises an error for become failures.
    """
    started = time.monotonic()
    clips: list[TrackedClip] = []
    failures: list[Failure] = []
    batches = _batches(decoded.clips)
    with ThreadPoolExecutor(1) as thread:
        # The next batch's JPEGs are decoded while this one is tracked, so that a GPU does not wait.
        next_frames: Future[list[Frame]] | None = None
        for number, batch in enumerate(batches):
            frames = next_frames.result() if next_frames else _decode_jpegs(batch)
            if number + 1 < len(batches):
                next_frames = thread.submit(_decode_jpegs, batches[number + 1])
            tracked, left_out = _track_batch(batch, frames, tracker, settings)
            clips += tracked
            failures += left_out
    return TrackedShard(tuple(clips), tuple(failures), time.monotonic() - started)


def join_tracked(parts: Sequence[TrackedShard]) -> TrackedShard:
    """Join the parts of a shard whose clips were tracked one at a time."""
    return TrackedShard(
        clips=tuple(clip for part in parts for clip in part.clips),
        failures=tuple(failure for part in parts for failure in part.failures),
        seconds=sum(part.seconds for part in parts),
    )


def write_shard(task: ShardTask, decoded: DecodedShard, tracked: TrackedShard) -> Receipt:
    """Write the tar, then its receipt. Raises OSError, such as for a full disk, leaving neither."""
    started = time.monotonic()
    shard, out = task.shard, task.settings.out
    # The tar: its name follows from its checksum, so it is known once all clips are written.
    tracks = {clip.key: clip for clip in tracked.clips}
    written: list[tuple[ClipInfo, ClipMembers, StoredScores | None]] = []
    with open_shard_as(
        out / "shards", lambda checksum: shard_path(out, shard_name(shard.group, checksum)).name
    ) as writer:
        for clip in decoded.clips:
            if clip.info.key in tracks:  # clips that could not be tracked are among the failures
                encoded = tracks[clip.info.key].tracks
                scored = score_stored(clip.info, encoded) if task.settings.scores else None
                data = scored.data if scored else None
                members = writer.add(clip.info, encoded, clip.jpegs, data)
                written.append((clip.info, members, scored))
    # Its rows of every table.
    name = shard_name(shard.group, writer.checksum)
    shard_row = ShardRow(
        shard=name,
        group=shard.group,
        source=shard.source,
        split=shard.split,
        clips=len(written),
        bytes=writer.size,
        checksum=writer.checksum,
        frames_fingerprint=shard.frames_fingerprint,
        tracks_fingerprint=shard.tracks_fingerprint,
        frames_settings=shard.frames_settings,
        tracks_settings=shard.tracks_settings,
        decode_seconds=decoded.seconds,
        track_seconds=tracked.seconds,
        write_seconds=time.monotonic() - started,
        tries=shard.tries,
        scores=SCORES_VERSION if task.settings.scores else None,
    )
    clip_rows = tuple(
        clip_row(name, info, members, tracks[info.key].summary, scored.columns if scored else None)
        for info, members, scored in written
    )
    notes = [note for _, _, scored in written if scored for note in scored.notes]
    failures = tuple(
        replace(failure, shard=name) for failure in (*decoded.failures, *tracked.failures, *notes)
    )
    # The receipt comes last: it makes the shard exist.
    receipt = Receipt(shard_row, clip_rows, failures, tuple(clip.key for clip in task.clips))
    write_receipt(out, receipt)
    return receipt


def _batches(clips: Iterable[DecodedClip]) -> list[list[DecodedClip]]:
    """Group clips of one shape into batches of at most `_CLIPS_PER_BATCH`."""
    by_shape: dict[tuple[int, int, int], list[DecodedClip]] = {}
    for clip in clips:
        by_shape.setdefault((clip.info.frames, clip.info.height, clip.info.width), []).append(clip)
    return [
        same_shape[first : first + _CLIPS_PER_BATCH]
        for same_shape in by_shape.values()
        for first in range(0, len(same_shape), _CLIPS_PER_BATCH)
    ]


def _decode_jpegs(clips: Sequence[DecodedClip]) -> list[Frame]:
    """Decode the stored frames of clips: uint8 [T, H, W, 3] each."""
    return [np.stack([jpeg.decode(data) for data in clip.jpegs]) for clip in clips]


def _track_batch(
    clips: Sequence[DecodedClip], frames: Sequence[Frame], tracker: Tracker, settings: BuildSettings
) -> tuple[list[TrackedClip], list[Failure]]:
    """Track clips of one shape; if the tracker raises an error, track them one at a time."""
    try:
        return _track(clips, frames, tracker, settings), []
    except _TRACKER_ERRORS:
        pass  # one of the clips may be the cause, and the others should not fail with it
    tracked: list[TrackedClip] = []
    failures: list[Failure] = []
    for clip, clip_frames in zip(clips, frames, strict=True):
        try:
            tracked += _track([clip], [clip_frames], tracker, settings)
        except _TRACKER_ERRORS as error:
            failures.append(
                Failure(
                    source=clip.info.source,
                    video_id=clip.info.video_id,
                    clip=clip.info.key,
                    stage="track",
                    reason=Reason.TRACKER_FAILED,
                    detail=f"the tracker {settings.tracks.tracker} failed: {error}",
                )
            )
    return tracked, failures


def _track(
    clips: Sequence[DecodedClip], frames: Sequence[Frame], tracker: Tracker, settings: BuildSettings
) -> list[TrackedClip]:
    """Track clips of one shape and encode the tracks."""
    infos = [clip.info for clip in clips]
    width, height = infos[0].width, infos[0].height
    # A short clip has no anchors beyond its end.
    anchors = tuple(anchor for anchor in settings.tracks.anchors if anchor < infos[0].frames)
    queries = grid_points(settings.tracks.grid, width, height)
    tracks_of_clips = tracker.track(frames, infos, anchors, queries)
    return [
        TrackedClip(
            info.key,
            encode_tracks(tracks),
            summarise_tracks(tracks, width, height, settings.tracks.directions),
        )
        for info, tracks in zip(infos, tracks_of_clips, strict=True)
    ]
