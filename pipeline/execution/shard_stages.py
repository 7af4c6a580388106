"""The stages of one shard: decode (or load), track, write; plain functions that run on workers.

`shard_chain` runs them on Ray. Tracking reads the frames as they are stored, so that the first
build and later re-tracks see the same pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import Receipt, shard_checksum, shard_name, shard_path, write_receipt
from manifests.rows import Failure, ShardRow, TrackSummary, VideoRow, clip_row
from pipeline.config import BuildSettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.shard_task import ShardTask
from pipeline.execution.track_summary import summarise_tracks
from pipeline.failures import DecodeError, Reason
from pipeline.planning.plan import PlannedClip
from pipeline.trackers.protocol import Tracker
from shards import jpeg
from shards.clip import Camera, ClipInfo
from shards.codec import encode_tracks
from shards.errors import PretrackError, ShardError
from shards.geometry import FrameTransform, grid_points, stored_transform
from shards.reader import iterate_shard, read_clip_members
from shards.writer import ClipMembers, open_shard_as

Frame = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height) in pixels."""

_CLIPS_PER_BATCH = 16
"""Clips passed to a tracker at once: enough to fill a GPU, few enough to hold their frames."""
_TRACKER_ERRORS = (ValueError, RuntimeError, PretrackError)


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A clip as it will be stored, without tracks."""

    info: ClipInfo
    jpegs: tuple[bytes, ...]


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

    What cannot be read becomes failures; the rest is decoded. A stored clip that lacks frames is
    decoded again, and kept as it was if that does not give more frames.
    """
    started = time.monotonic()
    clips: list[DecodedClip] = []
    failures: list[Failure] = []
    for planned in task.clips:
        clip, left_out = _decode_clip(planned, task, decoder)
        clips += [clip] if clip else []
        failures += left_out
    return DecodedShard(tuple(clips), tuple(failures), time.monotonic() - started)


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
    # Together, its clips and its failures must be the planned clips.
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
    """Write the tar, then its receipt. Raises OSError (a full disk, say), leaving neither."""
    started = time.monotonic()
    shard, out = task.shard, task.settings.out
    # The tar: its name follows from its checksum, so it is known once all clips are written.
    tracks = {clip.key: clip for clip in tracked.clips}
    written: list[tuple[ClipInfo, ClipMembers]] = []
    with open_shard_as(
        out / "shards", lambda checksum: shard_path(out, shard_name(shard.group, checksum)).name
    ) as writer:
        for clip in decoded.clips:
            if clip.info.key in tracks:  # clips that could not be tracked are among the failures
                members = writer.add(clip.info, tracks[clip.info.key].tracks, clip.jpegs)
                written.append((clip.info, members))
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
    )
    clip_rows = tuple(
        clip_row(name, info, members, tracks[info.key].summary) for info, members in written
    )
    failures = tuple(
        replace(failure, shard=name) for failure in (*decoded.failures, *tracked.failures)
    )
    # The receipt, last: it makes the shard exist.
    receipt = Receipt(shard_row, clip_rows, failures, tuple(clip.key for clip in task.clips))
    write_receipt(out, receipt)
    return receipt


def _decode_clip(
    planned: PlannedClip, task: ShardTask, decoder: SubprocessDecoder
) -> tuple[DecodedClip | None, list[Failure]]:
    """Copy a clip from the shard being replaced or decode it; also return what was left out."""
    stored = _intact_clip(planned.key, task)
    stored_failures = [failure for failure in task.failures if failure.clip == planned.key]
    if stored and not stored_failures:
        return stored, []
    clip, left_out = _decode_from_source(planned, task, decoder)
    if stored and (clip is None or clip.info.frames < stored.info.frames):
        return stored, stored_failures
    return clip, left_out


def _intact_clip(key: str, task: ShardTask) -> DecodedClip | None:
    """Copy a clip's frames, byte for byte, from the shard being replaced; None if it is damaged."""
    if (members := task.stored.get(key)) is None:
        return None
    try:
        info, _, *jpegs = read_clip_members(
            shard_path(task.settings.out, task.shard.reuse), members
        )
        digest = fingerprint_lines([task.shard.tracks_settings])
        return DecodedClip(replace(ClipInfo.from_json(info), tracks_settings=digest), tuple(jpegs))
    except ShardError:
        return None


def _decode_from_source(
    planned: PlannedClip, task: ShardTask, decoder: SubprocessDecoder
) -> tuple[DecodedClip | None, list[Failure]]:
    """Decode a clip from its video file or images; also return what was left out."""
    video = task.videos[planned.video]
    failures: list[Failure] = []  # a clip may be made without some of its images
    try:
        if video.file:
            clip = _decode_from_file(planned, video, task, decoder)
        else:
            clip = _decode_from_images(planned, video, task, decoder, failures=failures)
    except DecodeError as error:
        return None, [*failures, _decode_failure(planned, video, error, str(error))]
    return clip, failures


def _decode_failure(
    planned: PlannedClip, video: VideoRow, error: DecodeError, detail: str
) -> Failure:
    return Failure(
        source=video.source,
        video_id=video.video_id,
        clip=planned.key,
        stage="decode",
        reason=error.reason,
        detail=detail,
    )


def _decode_from_file(
    planned: PlannedClip, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> DecodedClip:
    """Decode a clip of a video file. Raises DecodeError."""
    settings = task.settings.frames
    indices = _frame_indices(planned, task)
    path = str(Path(video.root) / video.file)
    view = stored_transform(video.width, video.height, settings.short_side, settings.size)
    frames = decoder.read_video(
        path,
        decoder=settings.decoder,
        timestamps=video.timestamps or (),
        indices=indices,
        transform=view,
    )
    return _encode(planned, video, task, indices=indices, numbers=indices, frames=frames, view=view)


def _decode_from_images(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    decoder: SubprocessDecoder,
    *,
    failures: list[Failure],
) -> DecodedClip:
    """Decode a clip of image files, leaving out unusable ones, which are appended to `failures`.

    Raises DecodeError if too few images are usable or if they differ in size.
    """
    settings = task.settings.frames
    indices = _frame_indices(planned, task)
    names = [video.image_files[index] for index in indices]
    images = decoder.read_images(
        video.root, names, short_side=settings.short_side, size=settings.size
    )
    # By index in the video: each image, resized as stored, with the size that it had.
    usable: dict[int, tuple[Frame, Size]] = {}
    for index, name, image in zip(indices, names, images, strict=True):
        if isinstance(image, DecodeError):
            failures.append(_decode_failure(planned, video, image, f"{name}: {image}"))
        else:
            usable[index] = image
    if len(usable) < settings.min_frames:
        raise DecodeError(
            f"{len(usable)} of {len(names)} images are usable, and a clip needs "
            f"{settings.min_frames} (frames.min_frames)",
            Reason.TOO_FEW_IMAGES,
        )
    width, height = _common_size([size for _, size in usable.values()])
    used = sorted(usable)
    return _encode(
        planned,
        video,
        task,
        indices=used,
        numbers=[video.frame_numbers[index] for index in used],
        frames=[usable[index][0] for index in used],
        view=stored_transform(width, height, settings.short_side, settings.size),
    )


def _frame_indices(planned: PlannedClip, task: ShardTask) -> list[int]:
    """The indices of a clip's frames within its video."""
    stride = task.settings.frames.stride
    return [planned.start + number * stride for number in range(planned.frames)]


def _common_size(sizes: Iterable[Size]) -> Size:
    """Return the one size of a clip's images. Raises DecodeError if there are several."""
    different = sorted(set(sizes))
    if len(different) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in different[:4])
        more = " …" if len(different) > 4 else ""
        raise DecodeError(
            f"its images have {len(different)} different sizes ({shown}{more})",
            Reason.MIXED_IMAGE_SIZES,
        )
    return different[0]


def _encode(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    *,
    indices: list[int],
    numbers: list[int],
    frames: Iterable[Frame],
    view: FrameTransform,
) -> DecodedClip:
    """Encode resized frames as JPEG and describe the clip.

    indices: of the frames within the video
    numbers: the source's own frame numbers
    """
    info = ClipInfo(
        key=planned.key,
        source=video.source,
        dataset=video.dataset,
        video_id=video.video_id,
        sequence=video.sequence,
        split=video.split,
        width=view.out_width,
        height=view.out_height,
        source_width=view.width,
        source_height=view.height,
        frame_numbers=tuple(numbers),
        timestamps=tuple(video.timestamps[i] for i in indices) if video.timestamps else None,
        cameras=_stored_cameras(video, indices, view),
        terms=video.terms,
        frames_settings=fingerprint_lines([task.shard.frames_settings]),
        tracks_settings=fingerprint_lines([task.shard.tracks_settings]),
    )
    quality = task.settings.frames.jpeg_quality
    return DecodedClip(info, tuple(jpeg.encode(frame, quality) for frame in frames))


def _stored_cameras(
    video: VideoRow, indices: Sequence[int], view: FrameTransform
) -> tuple[Camera | None, ...] | None:
    """The cameras of a clip's frames, in pixels of the stored frames."""
    if not video.cameras:
        return None
    cameras = [video.cameras[index] for index in indices]
    return tuple(camera and view.camera(camera) for camera in cameras)


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
    # A short clip goes without the anchors beyond its end.
    anchors = tuple(anchor for anchor in settings.tracks.anchors if anchor < infos[0].frames)
    queries = grid_points(settings.tracks.grid, width, height)
    tracks_of_clips = tracker.track(frames, infos, anchors, queries)
    return [
        TrackedClip(info.key, encode_tracks(tracks), summarise_tracks(tracks, width, height))
        for info, tracks in zip(infos, tracks_of_clips, strict=True)
    ]
