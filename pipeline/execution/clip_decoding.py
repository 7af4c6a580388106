"""Decode the clips of one shard from their sources: one pass over each video file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import shard_path
from manifests.rows import Failure, VideoRow
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError, Reason
from pipeline.planning.ledger_store import digest_of, read_ledger, write_ledger
from pipeline.planning.plan import PlannedClip
from shards import jpeg
from shards.clip import Camera, ClipInfo
from shards.errors import ShardError
from shards.geometry import FrameTransform
from shards.reader import read_clip_members

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A clip as it will be stored, without tracks."""

    info: ClipInfo
    jpegs: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class ClipResult:
    """What became of one planned clip: its frames, if there are any, and what was left out."""

    clip: DecodedClip | None
    failures: tuple[Failure, ...] = ()


def decode_clips(task: ShardTask, decoder: SubprocessDecoder) -> Iterator[ClipResult]:
    """Decode the clips of a shard, and copy intact clips from the shard being replaced.

    What cannot be read becomes failures; the rest is decoded. A stored clip that lacks frames is
    decoded again, and kept as it was if that does not give more frames.
    """
    for row, clips in groupby(task.clips, key=lambda clip: clip.video):
        planned = list(clips)
        stored = {clip.key: _intact_clip(clip.key, task) for clip in planned}
        earlier = {
            clip.key: tuple(failure for failure in task.failures if failure.clip == clip.key)
            for clip in planned
        }
        wanted = [clip for clip in planned if not stored[clip.key] or earlier[clip.key]]
        from_source = {
            clip.key: result
            for clip, result in zip(
                wanted, _decode_video(wanted, task.videos[row], task, decoder), strict=True
            )
        }
        for clip in planned:
            kept = ClipResult(stored[clip.key], earlier[clip.key])
            yield _better(kept, from_source.get(clip.key))


def _better(stored: ClipResult, decoded: ClipResult | None) -> ClipResult:
    """Choose between a stored clip and what decoding gave; decoding must give as many frames."""
    if decoded is None:
        return stored
    if stored.clip and (decoded.clip is None or decoded.clip.info.frames < stored.clip.info.frames):
        return stored
    return decoded


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


def _decode_video(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of one video."""
    if video.file:
        yield from _decode_from_file(planned, video, task, decoder)
        return
    for clip in planned:
        failures: list[Failure] = []
        try:
            decoded = _decode_from_images(clip, video, task, decoder, failures=failures)
        except DecodeError as error:
            failures.append(_decode_failure(clip, video, error, str(error)))
            decoded = None
        yield ClipResult(decoded, tuple(failures))


def _decode_from_file(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of a video file, by start, in one pass over the file.

    After a frame that cannot be read, the pass begins again at the next clip.
    """
    remaining = list(planned)
    while remaining:
        done = 0
        try:
            for clip in _one_pass(remaining, video, task, decoder):
                yield ClipResult(clip)
                done += 1
            return
        except DecodeError as error:
            failed = remaining[done:]
            if error.reason not in (Reason.VIDEO_CHANGED, Reason.MISSING_VIDEO):
                failed = failed[:1]  # a file that is gone or another one fails all its clips
            for clip_plan in failed:
                failure = _decode_failure(clip_plan, video, error, str(error))
                yield ClipResult(None, (failure,))
            remaining = remaining[done + len(failed) :]


def _one_pass(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[DecodedClip]:
    """Decode clips of a video file in one pass. Raises DecodeError."""
    settings = task.settings.frames
    path = str(Path(video.root) / video.file)
    indices = [_frame_indices(clip, task) for clip in planned]
    frames = decoder.read_video(
        path,
        decoder=settings.decoder,
        ledger=_ledger(path, video, task, decoder),
        indices=[index for of_clip in indices for index in of_clip],
        form=_stored_form(task),
    )
    for clip, of_clip in zip(planned, indices, strict=True):
        stored = [next(frames) for _ in of_clip]
        yield _encode(clip, video, task, indices=of_clip, numbers=of_clip, frames=stored)
    for _ in frames:  # the request ends here, or says what is wrong
        pass


def _ledger(path: str, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder) -> bytes:
    """Return the packed ledger of a video file.

    If it was deleted with the folder `catalog`, the file is scanned again. Raises DecodeError.
    """
    out = task.settings.out
    if packed := read_ledger(out, digest_of(video)):
        return packed
    scan = decoder.scan(path, task.settings.frames.shot_cuts)
    if len(scan.timestamps) != video.frames:
        raise DecodeError(
            f"the file has {len(scan.timestamps)} frames, and had {video.frames} when it was "
            "scanned: run the build again",
            Reason.VIDEO_CHANGED,
        )
    write_ledger(out, scan.ledger)
    return scan.ledger


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
    images = decoder.read_images(video.root, names, _stored_form(task))
    # By index in the video.
    usable: dict[int, StoredFrame] = {}
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
    used = sorted(usable)
    return _encode(
        planned,
        video,
        task,
        indices=used,
        numbers=[video.frame_numbers[index] for index in used],
        frames=[usable[index] for index in used],
    )


def _stored_form(task: ShardTask) -> StoredForm:
    settings = task.settings.frames
    return StoredForm(
        short_side=settings.short_side,
        size=settings.size,
        square_pixels=settings.square_pixels,
        deinterlace=settings.deinterlace,
    )


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


def _frame_indices(planned: PlannedClip, task: ShardTask) -> list[int]:
    """The indices of a clip's frames within its video."""
    stride = task.settings.frames.stride
    return [planned.start + number * stride for number in range(planned.frames)]


def _common_size(sizes: Iterable[Size]) -> Size:
    """Return the one size of a clip's frames. Raises DecodeError if there are several."""
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
    frames: Sequence[StoredFrame],
) -> DecodedClip:
    """Encode resized frames as JPEG and describe the clip. Raises DecodeError if sizes differ.

    indices: of the frames within the video
    numbers: the source's own frame numbers
    """
    width, height = _common_size(frame.source_size for frame in frames)
    out_height, out_width = frames[0].pixels.shape[:2]
    transform = FrameTransform.whole(width, height, out_width, out_height)
    info = ClipInfo(
        key=planned.key,
        source=video.source,
        dataset=video.dataset,
        video_id=video.video_id,
        sequence=video.sequence,
        split=video.split,
        width=out_width,
        height=out_height,
        source_width=width,
        source_height=height,
        frame_numbers=tuple(numbers),
        timestamps=tuple(video.timestamps[i] for i in indices) if video.timestamps else None,
        cameras=_stored_cameras(video, indices, transform),
        terms=video.terms,
        frames_settings=fingerprint_lines([task.shard.frames_settings]),
        tracks_settings=fingerprint_lines([task.shard.tracks_settings]),
    )
    quality = task.settings.frames.jpeg_quality
    return DecodedClip(info, tuple(jpeg.encode(frame.pixels, quality) for frame in frames))


def _stored_cameras(
    video: VideoRow, indices: Sequence[int], transform: FrameTransform
) -> tuple[Camera | None, ...] | None:
    """The cameras of a clip's frames, in pixels of the stored frames."""
    if not video.cameras:
        return None
    cameras = [video.cameras[index] for index in indices]
    return tuple(camera and transform.camera(camera) for camera in cameras)
