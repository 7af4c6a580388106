"""What happens to one shard: decode (or load) → track → write, each a plain function that `pipeline.execution.shard_runner` runs on Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import Receipt, shard_checksum, shard_name, shard_path, write_receipt
from manifests.rows import Failure, ShardRow, TrackSummary, clip_row
from pipeline.config import BuildSettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError, Reason
from pipeline.planning.plan import PlannedClip, PlannedShard
from pipeline.trackers.protocol import Tracker
from shards import jpeg
from shards.clip import VISIBLE_THRESHOLD, Camera, ClipInfo, Tracks
from shards.codec import encode_tracks
from shards.errors import PretrackError, ShardError
from shards.geometry import FrameTransform, grid_points, stored_transform
from shards.reader import iterate_shard, read_clip_members
from shards.writer import ClipMembers, open_shard_as

Frame = NDArray[np.uint8]

_CLIPS_TOGETHER = 16
"""Clips that a tracker is given at once: enough to fill a GPU, few enough to hold their frames."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to make, with its clips, and the rows of the videos it needs (by their index in the plan). `failures` are those of
    the shard whose frames or clips it takes; `stored` says where the clips of the shard `reuse` lie."""

    shard: PlannedShard
    clips: tuple[PlannedClip, ...]
    videos: dict[int, dict[str, Any]]
    failures: tuple[Failure, ...]
    stored: dict[str, ClipMembers]
    settings: BuildSettings


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A clip as it will be stored, without tracks."""

    info: ClipInfo
    jpegs: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class DecodedShard:
    """What decoding gave; `seconds` is how long it took."""

    clips: tuple[DecodedClip, ...]
    failures: tuple[Failure, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class TrackedClip:
    """The tracks of a clip, encoded, and what its row of the clips table says of them."""

    key: str
    tracks: tuple[bytes, ...]
    summary: TrackSummary


@dataclass(frozen=True, eq=False)
class TrackedShard:
    """What tracking gave."""

    clips: tuple[TrackedClip, ...]
    failures: tuple[Failure, ...]
    seconds: float


def decode_shard(task: ShardTask, decoder: SubprocessDecoder) -> DecodedShard:
    """Reads the clips of a shard from their source, or from the shard in whose place it comes where they are whole there.

    What cannot be read becomes failures; the rest goes on. A clip that lacked images before is tried again, and stays as it was
    where that gives nothing.
    """
    started = time.monotonic()
    clips: list[DecodedClip] = []
    failures: list[Failure] = []
    for planned in task.clips:
        clip, left_out = _decode_clip(planned, task, decoder)
        clips += [clip] if clip else []
        failures += left_out
    return DecodedShard(tuple(clips), tuple(failures), time.monotonic() - started)


def _decode_clip(
    planned: PlannedClip, task: ShardTask, decoder: SubprocessDecoder
) -> tuple[DecodedClip | None, list[Failure]]:
    """A clip, if it can be had, and what was left out of it."""
    stored, known = (
        _still_good(planned.key, task),
        [failure for failure in task.failures if failure.clip == planned.key],
    )
    if stored and not known:
        return stored, []
    clip, left_out = _decode_from_source(planned, task, decoder)
    if stored and (clip is None or clip.info.frames < stored.info.frames):
        return stored, known
    return clip, left_out


def _decode_from_source(
    planned: PlannedClip, task: ShardTask, decoder: SubprocessDecoder
) -> tuple[DecodedClip | None, list[Failure]]:
    video = task.videos[planned.video]
    left_out: list[Failure] = []
    try:
        decode = _decode_from_file if video["file"] else _decode_from_images
        return decode(planned, video, task, decoder, left_out), left_out
    except DecodeError as error:
        failure = Failure(
            source=video["source"],
            video_id=video["video_id"],
            clip=planned.key,
            stage="decode",
            reason=error.reason,
            detail=str(error),
        )
        return None, [*left_out, failure]


def _still_good(key: str, task: ShardTask) -> DecodedClip | None:
    """A clip of the shard `reuse`, its frames byte for byte, or None where it is not as it was written."""
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


def load_shard(task: ShardTask) -> DecodedShard:
    """Reads the frames of a shard from the shard of the same frames made before, byte for byte; no source is needed.

    Raises ShardError if that shard is damaged.
    """
    started = time.monotonic()
    out, previous = task.settings.out, task.shard.previous
    digest = fingerprint_lines([task.shard.tracks_settings])
    clips = tuple(
        DecodedClip(replace(clip.info, tracks_settings=digest), clip.jpegs)
        for clip in iterate_shard(shard_path(out, previous), shard_checksum(previous))
    )
    stored, planned = {clip.info.key for clip in clips}, {clip.key for clip in task.clips}
    if stored - planned or planned - stored - {failure.clip for failure in task.failures}:
        raise ShardError(
            f"the shard {previous} does not hold the clips that its tables name: run 'pretrack verify {out}'"
        )
    return DecodedShard(clips, task.failures, time.monotonic() - started)


def track_shard(decoded: DecodedShard, tracker: Tracker, settings: BuildSettings) -> TrackedShard:
    """Tracks the clips of a shard on the frames as they are stored; those of one shape together, some at a time.

    While some are tracked, the frames of the next are unpacked, so that a GPU does not wait for them.
    """
    started = time.monotonic()
    clips: list[TrackedClip] = []
    failures: list[Failure] = []
    batches = _batches(decoded.clips)
    with ThreadPoolExecutor(1) as unpacker:
        ahead = unpacker.submit(_unpack, batches[0]) if batches else None
        for number, batch in enumerate(batches):
            assert ahead is not None
            unpacked = ahead.result()
            ahead = (
                unpacker.submit(_unpack, batches[number + 1]) if number + 1 < len(batches) else None
            )
            try:
                clips += _track(batch, unpacked, tracker, settings)
            except (ValueError, RuntimeError, PretrackError):
                for clip, frames in zip(
                    batch, unpacked, strict=True
                ):  # one of them is to blame, and the others need not suffer
                    try:
                        clips += _track([clip], [frames], tracker, settings)
                    except (ValueError, RuntimeError, PretrackError) as error:
                        detail = f"the tracker {settings.tracks.tracker} failed: {error}"
                        info = clip.info
                        failures.append(
                            Failure(
                                source=info.source,
                                video_id=info.video_id,
                                clip=info.key,
                                stage="track",
                                reason=Reason.TRACKER_FAILED,
                                detail=detail,
                            )
                        )
    return TrackedShard(tuple(clips), tuple(failures), time.monotonic() - started)


def write_shard(task: ShardTask, decoded: DecodedShard, tracked: TrackedShard) -> Receipt:
    """Writes the tar, then its receipt. Raises OSError (a full disk, say), leaving neither."""
    started = time.monotonic()
    shard, out = task.shard, task.settings.out
    tracks = {clip.key: clip for clip in tracked.clips}
    added: list[tuple[ClipInfo, ClipMembers]] = []
    with open_shard_as(
        out / "shards", lambda checksum: shard_path(out, shard_name(shard.group, checksum)).name
    ) as writer:
        for clip in decoded.clips:
            if clip.info.key in tracks:
                added.append(
                    (clip.info, writer.add(clip.info, tracks[clip.info.key].tracks, clip.jpegs))
                )
    name = shard_name(shard.group, writer.checksum)
    shard_row = ShardRow(
        shard=name,
        group=shard.group,
        source=shard.source,
        split=shard.split,
        clips=len(added),
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
    rows = tuple(clip_row(name, info, members, tracks[info.key].summary) for info, members in added)
    failures = tuple(
        replace(failure, shard=name) for failure in (*decoded.failures, *tracked.failures)
    )
    receipt = Receipt(shard_row, rows, failures, tuple(clip.key for clip in task.clips))
    write_receipt(out, receipt)
    return receipt


def _decode_from_file(
    planned: PlannedClip,
    video: dict[str, Any],
    task: ShardTask,
    decoder: SubprocessDecoder,
    failures: list[Failure],
) -> DecodedClip:
    """A clip of a video file."""
    frames = task.settings.frames
    indices = [planned.start + i * frames.stride for i in range(planned.frames)]
    path = str(Path(video["root"]) / video["file"])
    view = stored_transform(video["width"], video["height"], frames.short_side, frames.size)
    pictures = decoder.read_video(
        path,
        decoder=frames.decoder,
        timestamps=video["timestamps"],
        indices=indices,
        transform=view,
    )
    return _encode(planned, video, task, indices, indices, pictures, view)


def _decode_from_images(
    planned: PlannedClip,
    video: dict[str, Any],
    task: ShardTask,
    decoder: SubprocessDecoder,
    failures: list[Failure],
) -> DecodedClip:
    """A clip of image files. Those that cannot be used are named in `failures`; the clip goes on without them if enough remain."""
    frames = task.settings.frames
    indices = [planned.start + i * frames.stride for i in range(planned.frames)]
    names = [video["image_files"][i] for i in indices]
    found: dict[int, tuple[Frame, tuple[int, int]]] = {}
    images = decoder.read_images(
        video["root"], names, short_side=frames.short_side, size=frames.size
    )
    for index, name, image in zip(indices, names, images, strict=True):
        if isinstance(image, DecodeError):
            failures.append(
                Failure(
                    source=video["source"],
                    video_id=video["video_id"],
                    clip=planned.key,
                    stage="decode",
                    reason=image.reason,
                    detail=f"{name}: {image}",
                )
            )
        else:
            found[index] = image
    if len(found) < frames.min_frames:
        raise DecodeError(
            f"{len(found)} of {len(names)} images are usable, and a clip needs {frames.min_frames} (frames.min_frames)",
            Reason.TOO_FEW_IMAGES,
        )
    sizes = sorted({size for _, size in found.values()})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sizes[:4])
        raise DecodeError(
            f"its images have {len(sizes)} different sizes ({shown}{' …' if len(sizes) > 4 else ''})",
            Reason.MIXED_IMAGE_SIZES,
        )
    used = sorted(found)
    numbers = [video["frame_numbers"][i] for i in used]
    pictures = [found[i][0] for i in used]
    return _encode(
        planned,
        video,
        task,
        used,
        numbers,
        pictures,
        stored_transform(*sizes[0], frames.short_side, frames.size),
    )


def _encode(
    planned: PlannedClip,
    video: dict[str, Any],
    task: ShardTask,
    indices: list[int],
    numbers: list[int],
    pictures: Iterable[Frame],
    view: FrameTransform,
) -> DecodedClip:
    """Stored pictures, and everything known of them, as a clip. `indices`: places in the video, `numbers`: the source's own."""
    timestamps, cameras = video["timestamps"], video["cameras"]
    info = ClipInfo(
        key=planned.key,
        source=video["source"],
        dataset=video["dataset"],
        video_id=video["video_id"],
        sequence=video["sequence"],
        split=video["split"],
        width=view.out_width,
        height=view.out_height,
        source_width=view.width,
        source_height=view.height,
        frame_numbers=tuple(numbers),
        timestamps=tuple(timestamps[i] for i in indices) if timestamps else None,
        cameras=tuple(_camera(cameras[i], view) for i in indices) if cameras else None,
        terms=video["terms"],
        frames_settings=fingerprint_lines([task.shard.frames_settings]),
        tracks_settings=fingerprint_lines([task.shard.tracks_settings]),
    )
    return DecodedClip(
        info, tuple(jpeg.encode(picture, task.settings.frames.jpeg_quality) for picture in pictures)
    )


def _camera(camera: dict[str, Any] | None, view: FrameTransform) -> Camera | None:
    return None if camera is None else view.camera(Camera.read(camera))


def _batches(clips: Iterable[DecodedClip]) -> list[list[DecodedClip]]:
    """Clips of one shape together, at most `_CLIPS_TOGETHER`."""
    alike: dict[tuple[int, int, int], list[DecodedClip]] = {}
    for clip in clips:
        alike.setdefault((clip.info.frames, clip.info.height, clip.info.width), []).append(clip)
    return [
        same[first : first + _CLIPS_TOGETHER]
        for same in alike.values()
        for first in range(0, len(same), _CLIPS_TOGETHER)
    ]


def _unpack(clips: Sequence[DecodedClip]) -> list[Frame]:
    """The frames of clips: [T, H, W, 3] each."""
    return [np.stack([jpeg.decode(data) for data in clip.jpegs]) for clip in clips]


def _track(
    clips: Sequence[DecodedClip], frames: Sequence[Frame], tracker: Tracker, settings: BuildSettings
) -> list[TrackedClip]:
    """Tracks clips of one shape."""
    info = clips[0].info
    anchors = tuple(anchor for anchor in settings.tracks.anchors if anchor < info.frames)
    queries = grid_points(settings.tracks.grid, info.width, info.height)
    found = tracker.track(frames, [clip.info for clip in clips], anchors, queries)
    return [
        TrackedClip(
            clip.info.key,
            encode_tracks(tracks),
            TrackSummary(
                anchors,
                tracks.positions.shape[2],
                float(tracks.visibility.mean()) / 255,
                _motion(tracks, clip.info),
            ),
        )
        for clip, tracks in zip(clips, found, strict=True)
    ]


def _motion(tracks: Tracks, info: ClipInfo) -> float:
    """Median over tracks of the farthest a point gets from its anchor while visible, as a part of the frame's diagonal."""
    rows = np.arange(len(tracks.anchors))
    start = tracks.positions[rows, tracks.anchors][:, None]
    distance = np.linalg.norm(tracks.positions - start, axis=-1)
    farthest = np.where(tracks.visibility >= VISIBLE_THRESHOLD, distance, 0.0).max(axis=1)
    return float(np.median(farthest) / np.hypot(info.width, info.height))
