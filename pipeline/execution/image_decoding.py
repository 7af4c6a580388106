"""Decode a clip of image files, which may be rendered first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from manifests.rows import Failure, VideoRow
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.decoded_clip import (
    DecodedClip,
    clip_size,
    decode_failure,
    encode_clip,
    frame_indices,
    stored_form,
)
from pipeline.execution.map_decoding import add_maps
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError, Reason
from pipeline.planning.plan import PlannedClip
from pipeline.sources.picture_kinds import main_channels
from shards.geometry import stored_size

_LEFT_OUT = {
    Reason.TRANSPARENT_IMAGES: "an alpha channel: they are composed over mid grey",
    Reason.SCALED_TO_EIGHT_BITS: "16 bits per pixel: 0 to 65535 is scaled to 0 to 255",
    Reason.FURTHER_PAGES: "several pages: only the first is used",
}
"""What images of a clip "have" that its frames do not hold."""


def render_images(
    planned: PlannedClip, video: VideoRow, task: ShardTask, decoder: SubprocessDecoder
) -> None:
    """Render the files of a clip that are not there yet. Raises DecodeError, MachineError."""
    files = [video.image_files]
    if video.depth:
        files.append(video.depth.files)
    if video.mask_files:
        files.append(video.mask_files)
    indices = frame_indices(planned, task)
    names = [of_video[index] for of_video in files for index in indices]
    decoder.render(video.dataset, video.root, names)


def decode_from_images(
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
    names = {index: video.image_files[index] for index in frame_indices(planned, task)}
    images = _of_one_kind(_read_images(names, video, stored_form(task), decoder))
    frames: dict[int, StoredFrame] = {}
    for index, image in images.items():
        if isinstance(image, DecodeError):
            failures.append(decode_failure(planned, video, image, f"{names[index]}: {image}"))
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
    clip = encode_clip(
        planned,
        video,
        task,
        indices=list(frames),
        numbers=[video.frame_numbers[index] for index in frames],
        frames=list(frames.values()),
    )
    sizes = {index: frame.source_size for index, frame in frames.items()}
    return add_maps(planned, clip, sizes, video, decoder, failures=failures)


def _read_images(
    names: Mapping[int, str], video: VideoRow, form: StoredForm, decoder: SubprocessDecoder
) -> dict[int, StoredFrame | DecodeError]:
    """Read images of a video. Results and file names are by the images' index in the video."""
    images = decoder.read_images(video.root, tuple(names.values()), form) if names else []
    return dict(zip(names, images, strict=True))


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
    source_size = clip_size([frame.source_size for frame in frames.values()])
    size = settings.size or stored_size(*source_size, settings.short_side)
    others = {
        index: names[index]
        for index, frame in frames.items()
        if frame.pixels.shape[:2] != (size[1], size[0])
    }
    same_size = dict(frames)
    form = replace(stored_form(task), size=size)
    for index, image in _read_images(others, video, form, decoder).items():
        if isinstance(image, DecodeError):
            raise image
        same_size[index] = image
    return same_size


def _conversions(
    planned: PlannedClip, video: VideoRow, frames: Sequence[StoredFrame]
) -> Iterator[Failure]:
    """Yield what of a clip's images its frames do not hold, unless the source said so before."""
    counts = Counter(reason for frame in frames for reason in frame.left_out)
    for reason, words in _LEFT_OUT.items():
        said_before = video.dataset == "video_folder" and reason is not Reason.FURTHER_PAGES
        if counts[reason] and not said_before:
            detail = f"{counts[reason]} of its {len(frames)} images have {words}"
            yield decode_failure(planned, video, DecodeError(detail, reason), detail)
