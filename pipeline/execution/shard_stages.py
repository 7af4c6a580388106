"""The stages of one shard: decode (or load), track, write; plain functions that run on workers.

`shard_chain` runs them on Ray; the second is in `shard_tracking`. Tracking reads the frames as they
are stored, so that the first build and later re-tracks see the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import Receipt, shard_checksum, shard_name, shard_path, write_receipt
from manifests.rows import Failure, ShardRow, TrackSummary, clip_row
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.clip_decoding import decode_clips
from pipeline.execution.decoded_clip import DecodedClip
from pipeline.execution.shard_scoring import StoredScores, score_stored
from pipeline.execution.shard_task import ShardTask
from shards.clip import ClipInfo
from shards.errors import ShardError
from shards.reader import iterate_shard
from shards.writer import ClipMembers, open_shard_as


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
        DecodedClip(replace(clip.info, tracks_settings=digest), clip.jpegs, clip.maps)
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
                members = writer.add(clip.info, encoded, clip.jpegs, data, maps=clip.maps)
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
        scores=task.settings.scores_version(shard.source) if task.settings.scores else None,
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
