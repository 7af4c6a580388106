"""Decode the clips of one shard from their sources: one pass over each video file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from manifests.fingerprint import fingerprint_lines
from manifests.receipt import shard_path
from manifests.rows import Failure, VideoRow
from pipeline.decode.messages import EncodedClip, StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.map_decoding import read_maps
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError, Reason
from pipeline.planning.ledger_store import digest_of, ledger_digest, read_ledger, write_ledger
from pipeline.planning.plan import PlannedClip
from pipeline.sources.picture_kinds import main_channels
from pipeline.sources.rendering import is_rendered
from shards import jpeg
from shards.clip import Camera, ClipInfo
from shards.errors import ShardError
from shards.frame_maps import NO_MAPS, FrameMaps
from shards.geometry import FrameTransform, stored_size
from shards.reader import read_clip_members, read_frame_maps

Size = tuple[int, int]
"""(width, height) in pixels."""

_LARGEST_ASPECT_CHANGE = 1.05
"""Frames of one clip are resized to one size if their aspect ratios differ by less than this: the
first release of CO3D crops each frame for itself, within 1 %."""

_LEFT_OUT = {
    Reason.TRANSPARENT_IMAGES: "an alpha channel: they are composed over mid grey",
    Reason.SCALED_TO_EIGHT_BITS: "16 bits per pixel: 0 to 65535 is scaled to 0 to 255",
    Reason.FURTHER_PAGES: "several pages: only the first is used",
}
"""What images of a clip "have" that its frames do not hold."""


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """A clip as it will be stored, without tracks.

    maps:        its encoded depth maps and masks
    gpu_refused: why the CPU decoded it although `frames.device` is cuda; "" if it did not
    """

    info: ClipInfo
    jpegs: tuple[bytes, ...]
    maps: FrameMaps = NO_MAPS
    gpu_refused: str = ""


@dataclass(frozen=True, eq=False)
class ClipResult:
    """The outcome of one planned clip: its frames, if any, and what was left out."""

    clip: DecodedClip | None
    failures: tuple[Failure, ...] = ()


def decode_clips(task: ShardTask, decoder: SubprocessDecoder) -> Iterator[ClipResult]:
    """Decode the clips of a shard, and copy intact clips from the shard being replaced.

    Clips and images that cannot be read become failures. A stored clip with failures is decoded
    again, and kept as it was if decoding gives fewer frames.
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
    """Prefer the decoded clip, unless decoding failed or gave fewer frames than are stored."""
    if decoded is None:
        return stored
    if stored.clip and (decoded.clip is None or decoded.clip.info.frames < stored.clip.info.frames):
        return stored
    return decoded


def _intact_clip(key: str, task: ShardTask) -> DecodedClip | None:
    """Copy a clip's frames, byte for byte, from the shard being replaced; None if it is damaged."""
    if (members := task.stored.get(key)) is None:
        return None
    shard = shard_path(task.settings.out, task.shard.reuse)
    try:
        data, _, *jpegs = read_clip_members(shard, members)
        info = ClipInfo.from_json(data)
        maps = read_frame_maps(shard, members, info)
        digest = fingerprint_lines([task.shard.tracks_settings])
        return DecodedClip(replace(info, tracks_settings=digest), tuple(jpegs), maps)
    except ShardError:
        return None


def _decode_video(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of one video."""
    if video.file:
        on_gpu = task.settings.frames.device == "cuda"
        decode = _decode_on_gpu if on_gpu else _decode_from_file
        results = decode(planned, video, task, decoder)
        if video.depth or video.mask_files:
            # The decoder answers one request at a time: maps are read after the pass over the file.
            for clip, result in zip(planned, list(results), strict=True):
                yield _with_maps(clip, result, video, task, decoder)
        else:
            yield from results
        return
    for clip in planned:
        failures: list[Failure] = []
        try:
            if is_rendered(video.dataset):
                _render(clip, video, task, decoder)
            decoded = _decode_from_images(clip, video, task, decoder, failures=failures)
        except DecodeError as error:
            failures.append(_decode_failure(clip, video, error, str(error)))
            decoded = None
        yield ClipResult(decoded, tuple(failures))


def _decode_on_gpu(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> Iterator[ClipResult]:
    """Decode clips of a video file on the GPU, and those that it refuses on the CPU.

    Raises MachineError if this machine cannot decode on a GPU.
    """
    encoded = _encode_on_gpu(planned, video, task, decoder)
    refused = [
        clip
        for clip, result in zip(planned, encoded, strict=True)
        if isinstance(result, DecodeError)
    ]
    from_cpu = _decode_from_file(refused, video, task, decoder)
    for clip, result in zip(planned, encoded, strict=True):
        if isinstance(result, EncodedClip):
            indices = _frame_indices(clip, task)
            info = _clip_info(
                clip,
                video,
                task,
                indices=indices,
                numbers=_indices_in_file(clip, video, task),
                source_sizes=[result.source_size] * len(indices),
                size=result.size,
            )
            yield ClipResult(DecodedClip(info, result.jpegs))
        else:
            on_cpu = next(from_cpu)
            decoded = on_cpu.clip and replace(on_cpu.clip, gpu_refused=str(result))
            yield replace(on_cpu, clip=decoded)


def _encode_on_gpu(
    planned: Sequence[PlannedClip], video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> list[EncodedClip | DecodeError]:
    """Return for each clip of a video file its encoded frames, or why the GPU refuses it."""
    settings = task.settings.frames
    path = str(Path(video.root) / video.file)
    try:
        ledger = _ledger(path, video, task, decoder)
    except DecodeError as error:  # the CPU meets it too, and makes it a failure
        return [error] * len(planned)
    return decoder.encode_clips(
        path,
        device=settings.device,
        ledger=ledger,
        clips=[_indices_in_file(clip, video, task) for clip in planned],
        form=_stored_form(task),
        jpeg_quality=settings.jpeg_quality,
    )


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
                failed = failed[:1]  # only a missing or changed file fails all its clips
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
    numbers = [_indices_in_file(clip, video, task) for clip in planned]
    frames = decoder.read_video(
        path,
        decoder=settings.decoder,
        ledger=_ledger(path, video, task, decoder),
        indices=[number for of_clip in numbers for number in of_clip],
        form=_stored_form(task),
    )
    for clip, of_clip in zip(planned, numbers, strict=True):
        indices, stored = _frame_indices(clip, task), [next(frames) for _ in of_clip]
        yield _encode(clip, video, task, indices=indices, numbers=of_clip, frames=stored)
    for _ in frames:  # receive the end of the request, which may be an error
        pass


def _ledger(path: str, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder) -> bytes:
    """Return the packed ledger of a video file.

    If it was deleted with the folder `catalog`, the file is scanned again. Raises DecodeError.
    """
    out, digest = task.settings.out, digest_of(video)
    if packed := read_ledger(out, digest):
        return packed
    scan = decoder.scan(path, task.settings.frames.shot_cuts)
    if ledger_digest(scan.ledger) != digest:
        raise DecodeError(
            "its ledger is gone, and the file has changed since it was scanned: 'touch' it and run "
            "the build again",
            Reason.VIDEO_CHANGED,
        )
    write_ledger(out, scan.ledger)
    return scan.ledger


def _render(
    planned: PlannedClip, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> None:
    """Render the files of a clip that are not there yet. Raises DecodeError, MachineError."""
    files = [video.image_files]
    if video.depth:
        files.append(video.depth.files)
    if video.mask_files:
        files.append(video.mask_files)
    indices = _frame_indices(planned, task)
    names = [of_video[index] for of_video in files for index in indices]
    decoder.render(video.dataset, video.root, names)


def _decode_from_images(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    decoder: SubprocessDecoder,
    *,
    failures: list[Failure],
) -> DecodedClip:
    """Decode a clip of image files, leaving out unusable ones, which are appended to `failures`.

    Raises DecodeError if too few images are usable or if they differ too much in size.
    """
    settings = task.settings.frames
    names = {index: video.image_files[index] for index in _frame_indices(planned, task)}
    images = _of_one_kind(_read_images(names, video, _stored_form(task), decoder))
    frames: dict[int, StoredFrame] = {}
    for index, image in images.items():
        if isinstance(image, DecodeError):
            failures.append(_decode_failure(planned, video, image, f"{names[index]}: {image}"))
        else:
            frames[index] = image
    if len(frames) < settings.min_frames:
        raise DecodeError(
            f"{len(frames)} of {len(names)} images are usable, and a clip needs "
            f"{settings.min_frames} (frames.min_frames)",
            Reason.TOO_FEW_IMAGES,
        )
    failures += _conversions(planned, video, list(frames.values()))
    frames = _of_one_size(frames, names, video, task, decoder=decoder)
    clip = _encode(
        planned,
        video,
        task,
        indices=list(frames),
        numbers=[video.frame_numbers[index] for index in frames],
        frames=list(frames.values()),
    )
    sizes = {index: frame.source_size for index, frame in frames.items()}
    return _add_maps(planned, clip, sizes, video, decoder, failures=failures)


def _with_maps(
    planned: PlannedClip,
    result: ClipResult,
    video: VideoRow,
    task: ShardTask,
    decoder: SubprocessDecoder,
) -> ClipResult:
    """Read the depth maps and masks of a clip that was decoded from a video file."""
    if result.clip is None:
        return result
    info, failures = result.clip.info, list(result.failures)
    # All frames of a shot have one size.
    size = (info.source_width, info.source_height)
    sizes = dict.fromkeys(_frame_indices(planned, task), size)
    try:
        clip = _add_maps(planned, result.clip, sizes, video, decoder, failures=failures)
    except DecodeError as error:
        return ClipResult(None, (_decode_failure(planned, video, error, str(error)),))
    return ClipResult(clip, tuple(failures))


def _add_maps(
    planned: PlannedClip,
    clip: DecodedClip,
    source_sizes: Mapping[int, Size],
    video: VideoRow,
    decoder: SubprocessDecoder,
    *,
    failures: list[Failure],
) -> DecodedClip:
    """Read a clip's depth maps and masks; unknown ones are appended to `failures`.

    source_sizes: as in `read_maps`

    Raises DecodeError if the decoder's process was killed or died.
    """
    scale, maps, unknown = read_maps(clip.info, source_sizes, video, decoder)
    failures += [_decode_failure(planned, video, error, str(error)) for error in unknown]
    return replace(clip, info=replace(clip.info, depth_scale=scale), maps=maps)


def _read_images(
    names: Mapping[int, str], video: VideoRow, form: StoredForm, decoder: SubprocessDecoder
) -> dict[int, StoredFrame | DecodeError]:
    """Read images of a video. Results and file names are by the images' index in the video."""
    images = decoder.read_images(video.root, tuple(names.values()), form) if names else []
    return dict(zip(names, images, strict=True))


def _of_one_size(
    frames: Mapping[int, StoredFrame],
    names: Mapping[int, str],
    video: VideoRow,
    task: ShardTask,
    *,
    decoder: SubprocessDecoder,
) -> dict[int, StoredFrame]:
    """Return the frames of a clip at the size that the clip is stored at.

    Those that would be stored at another size are read again, so that each is resampled once.
    Raises DecodeError if they differ too much in size, or one cannot be read any more.
    """
    settings = task.settings.frames
    source_size = _clip_size([frame.source_size for frame in frames.values()])
    size = settings.size or stored_size(*source_size, settings.short_side)
    others = {
        index: names[index]
        for index, frame in frames.items()
        if frame.pixels.shape[:2] != (size[1], size[0])
    }
    same_size = dict(frames)
    form = replace(_stored_form(task), size=size)
    for index, image in _read_images(others, video, form, decoder).items():
        if isinstance(image, DecodeError):
            raise image
        same_size[index] = image
    return same_size


def _of_one_kind(
    images: Mapping[int, StoredFrame | DecodeError],
) -> dict[int, StoredFrame | DecodeError]:
    """Put an error in the place of images of another kind, such as depth beside colour."""
    frames = [image for image in images.values() if isinstance(image, StoredFrame)]
    main = main_channels(Counter(frame.channels for frame in frames))
    return {
        index: DecodeError(
            f"the image is {image.channels}, and the others of the clip are {main}",
            Reason.OTHER_PICTURES,
        )
        if isinstance(image, StoredFrame) and image.channels != main
        else image
        for index, image in images.items()
    }


def _conversions(
    planned: PlannedClip, video: VideoRow, frames: Sequence[StoredFrame]
) -> Iterator[Failure]:
    """Yield what of a clip's images its frames do not hold, unless the source said so before."""
    counts = Counter(reason for frame in frames for reason in frame.left_out)
    for reason, words in _LEFT_OUT.items():
        said_before = video.dataset == "video_folder" and reason is not Reason.FURTHER_PAGES
        if counts[reason] and not said_before:
            detail = f"{counts[reason]} of its {len(frames)} images have {words}"
            yield _decode_failure(planned, video, DecodeError(detail, reason), detail)


def _stored_form(task: ShardTask) -> StoredForm:
    settings = task.settings.frames
    return StoredForm(
        short_side=settings.short_side,
        size=settings.size,
        square_pixels=settings.square_pixels,
        deinterlace=settings.deinterlace,
        max_megapixels=settings.max_megapixels,
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
    """Return the indices of a clip's frames within its video."""
    stride = task.settings.frames.stride
    return [planned.start + number * stride for number in range(planned.frames)]


def _indices_in_file(planned: PlannedClip, video: VideoRow, task: ShardTask) -> list[int]:
    """Return the indices of a clip's frames within its video file, which may skip frames."""
    indices = _frame_indices(planned, task)
    return [video.frame_numbers[index] for index in indices] if video.frame_numbers else indices


def _clip_size(sizes: Sequence[Size]) -> Size:
    """Choose the source size that a clip's stored size follows from: the median of its frames'.

    Raises DecodeError if the frames differ in orientation, or their aspect ratios by 5 % or more.
    """
    aspects = [width / height for width, height in sizes]
    turned = min(aspects) < 1 < max(aspects)
    if turned or max(aspects) >= _LARGEST_ASPECT_CHANGE * min(aspects):
        different = sorted(set(sizes))
        shown = ", ".join(f"{width}x{height}" for width, height in different[:4])
        more = " …" if len(different) > 4 else ""
        raise DecodeError(
            f"its images have {len(different)} different sizes ({shown}{more}), whose orientation "
            "or aspect ratio differs too much to be stored at one size",
            Reason.MIXED_IMAGE_SIZES,
        )
    return sorted(sizes)[(len(sizes) - 1) // 2]


def _encode(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    *,
    indices: list[int],
    numbers: list[int],
    frames: Sequence[StoredFrame],
) -> DecodedClip:
    """Encode resized frames as JPEG and describe the clip. Raises DecodeError if sizes differ much.

    indices, numbers: as in `_clip_info`
    """
    height, width = frames[0].pixels.shape[:2]
    info = _clip_info(
        planned,
        video,
        task,
        indices=indices,
        numbers=numbers,
        source_sizes=[frame.source_size for frame in frames],
        size=(width, height),
    )
    quality = task.settings.frames.jpeg_quality
    return DecodedClip(info, tuple(jpeg.encode(frame.pixels, quality) for frame in frames))


def _clip_info(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    *,
    indices: Sequence[int],
    numbers: Sequence[int],
    source_sizes: Sequence[Size],
    size: Size,
) -> ClipInfo:
    """Describe a clip whose frames are stored at `size`. Raises DecodeError if sizes differ much.

    indices: of the frames within the video
    numbers: the source's own frame numbers
    """
    width, height = _clip_size(source_sizes)
    return ClipInfo(
        key=planned.key,
        source=video.source,
        dataset=video.dataset,
        video_id=video.video_id,
        sequence=video.sequence,
        split=video.split,
        width=size[0],
        height=size[1],
        source_width=width,
        source_height=height,
        frame_numbers=tuple(numbers),
        timestamps=tuple(video.timestamps[i] for i in indices) if video.timestamps else None,
        cameras=_stored_cameras(video, indices, source_sizes, size),
        terms=video.terms,
        frames_settings=fingerprint_lines([task.shard.frames_settings]),
        tracks_settings=fingerprint_lines([task.shard.tracks_settings]),
    )


def _stored_cameras(
    video: VideoRow, indices: Sequence[int], source_sizes: Sequence[Size], stored: Size
) -> tuple[Camera | None, ...] | None:
    """The cameras of a clip's frames, in pixels of the stored frames.

    Each is mapped by the transform of its own frame, from its own source size.
    """
    if not video.cameras:
        return None
    cameras = [video.cameras[index] for index in indices]
    return tuple(
        camera and FrameTransform.whole(*source, *stored).camera(camera)
        for camera, source in zip(cameras, source_sizes, strict=True)
    )
