"""A clip as it will be stored, made from decoded frames: description, cameras and JPEGs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manifests.fingerprint import fingerprint_lines
from manifests.rows import Failure, VideoRow
from pipeline.decode.messages import StoredForm, StoredFrame
from pipeline.execution.shard_task import ShardTask
from pipeline.failures import DecodeError, Reason
from pipeline.planning.plan import PlannedClip
from shards import jpeg
from shards.clip import Camera, ClipInfo
from shards.frame_maps import NO_MAPS, FrameMaps
from shards.geometry import FrameTransform

Size = tuple[int, int]
"""(width, height) in pixels."""

_LARGEST_ASPECT_CHANGE = 1.05
"""Frames of one clip are resized to one size if their aspect ratios differ by less than this: the
first release of CO3D crops each frame for itself, within 1 %."""


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


def encode_clip(
    planned: PlannedClip,
    video: VideoRow,
    task: ShardTask,
    *,
    indices: list[int],
    numbers: list[int],
    frames: Sequence[StoredFrame],
) -> DecodedClip:
    """Encode resized frames as JPEG and describe the clip. Raises DecodeError if sizes differ much.

    indices, numbers: as in `clip_info`
    """
    height, width = frames[0].pixels.shape[:2]
    info = clip_info(
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


def clip_info(
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
    width, height = clip_size(source_sizes)
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


def clip_size(sizes: Sequence[Size]) -> Size:
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


def frame_indices(planned: PlannedClip, task: ShardTask) -> list[int]:
    """Return the indices of a clip's frames within its video."""
    stride = task.settings.frames.stride
    return [planned.start + number * stride for number in range(planned.frames)]


def stored_form(task: ShardTask) -> StoredForm:
    settings = task.settings.frames
    return StoredForm(
        short_side=settings.short_side,
        size=settings.size,
        square_pixels=settings.square_pixels,
        deinterlace=settings.deinterlace,
        max_megapixels=settings.max_megapixels,
    )


def decode_failure(
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
