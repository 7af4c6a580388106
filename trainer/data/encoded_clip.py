"""A clip between reading and decoding: its JPEGs and tracks, and the transforms drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.clip import Camera
from shards.epipolar import camera_row, usable_cameras
from shards.geometry import FrameTransform, shown_cameras
from trainer.data.augment import (
    check_jpegs,
    decode_and_crop,
    decode_and_transform,
    transform_points,
)
from trainer.data.colour import change_colours, draw_colour_changes
from trainer.data.packed_batch import PackedBatch
from trainer.data.settings import DataSettings

_IDENTITY = Camera(1.0, 1.0, 0.0, 0.0, (1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0))
_NO_CAMERA = Camera(0.0, 0.0, 0.0, 0.0, (0.0,) * 12)


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """T frames of a clip, not yet decoded, so that many of them can be held in memory.

    shard:      the path or URL of the tar that it was read from
    size:       (width, height) of the stored frames
    transforms: crop, resize and flip per frame [T]
    images:     JPEGs [T]
    positions:  float32 [T, N, 2] in stored pixels; visibility and confidence uint8 [T, N]
    random:     the clip's generator, from which its colours are still to be drawn
    cameras:    per frame [T], in stored pixels, None for a frame without; None unless asked for
    track_weights: float32 [N], how much each track counts; None unless asked for, or if all are 1
    """

    key: str
    shard: str
    size: tuple[int, int]
    transforms: list[FrameTransform]
    images: list[bytes]
    positions: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    random: np.random.Generator
    cameras: Sequence[Camera | None] | None = None
    track_weights: NDArray[np.float32] | None = None

    @property
    def points(self) -> int:
        """Number of tracked points, N."""
        return self.positions.shape[1]


def decode_clip(clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings) -> None:
    """Decode a clip into a slot of a batch, as frames or crops, or put its JPEGs there.

    Raises ShardError for a damaged image; of a JPEG that is not decoded, only its ends are checked.
    """
    copy_tracks(clip, batch, slot)
    if batch.shape.cameras:
        _copy_cameras(clip, batch, slot)
    batch.keys[slot] = clip.key
    if batch.shape.crop_pixels:
        _decode_crops(clip, batch, slot, settings)
    elif batch.shape.jpeg_bytes:
        _copy_jpegs(clip, batch, slot, settings)
    else:
        _decode_frames(clip, batch, slot, settings)


def _decode_frames(
    clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings
) -> None:
    """Decode and resize a clip's frames, and change their colours."""
    frames = batch.frames[slot]
    decode_and_transform(
        clip.images,
        clip.transforms,
        size=clip.size,
        reduce=settings.decodes_reduced,
        into=frames.numpy(),
    )
    if settings.colour.student_only:
        batch.teacher_frame[slot] = frames[0]
    if settings.colour.changes:
        frames[:] = change_colours(frames, settings.colour, clip.random)


def _decode_crops(clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings) -> None:
    """Decode the boxes of a clip's frames, and write down what else is to be done to them."""
    batch.boxes[slot] = torch.from_numpy(
        decode_and_crop(
            clip.images,
            clip.transforms,
            size=clip.size,
            reduce=settings.decodes_reduced,
            into=batch.crops[slot].numpy(),
        )
    )
    _draw_colours(clip, batch, slot, settings)


def _copy_jpegs(clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings) -> None:
    """Copy a clip's JPEGs, and write down what is to be done to their pictures."""
    check_jpegs(clip.images, clip.size)
    jpegs = b"".join(clip.images)
    batch.jpegs[slot].numpy()[: len(jpegs)] = np.frombuffer(jpegs, np.uint8)
    batch.jpeg_sizes[slot].numpy()[:] = [len(image) for image in clip.images]
    batch.corners[slot].numpy()[:] = [(t.left, t.top) for t in clip.transforms]
    batch.boxes[slot].numpy()[:] = [(t.height, t.width, t.flip) for t in clip.transforms]
    _draw_colours(clip, batch, slot, settings)


def _draw_colours(clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings) -> None:
    """Draw what is to be done to the colours of a clip's frames, if anything is."""
    if settings.colour.changes:
        changes = draw_colour_changes(len(clip.images), settings.colour, clip.random)
        batch.colours[slot] = torch.tensor(
            [change.numbers for change in changes], dtype=torch.float64
        )


def copy_tracks(clip: EncodedClip, batch: PackedBatch, slot: int) -> None:
    """Copy a clip's tracks into a slot of a batch, in pixels of the transformed frames."""
    batch.positions[slot] = torch.from_numpy(transform_points(clip.transforms, clip.positions))
    batch.visibility[slot] = torch.from_numpy(clip.visibility)
    batch.confidence[slot] = torch.from_numpy(clip.confidence)
    if batch.shape.track_weights:
        weights = clip.track_weights
        batch.track_weights[slot] = torch.from_numpy(weights) if weights is not None else 1.0


def _copy_cameras(clip: EncodedClip, batch: PackedBatch, slot: int) -> None:
    """Copy a clip's cameras into a slot of a batch: those of the transformed frames."""
    stored = clip.cameras or [None] * len(clip.transforms)
    usable = usable_cameras(np.array([_row(camera) for camera in stored]))
    batch.posed[slot] = int(usable.all())
    shown = np.array([_row(camera) for camera in shown_cameras(clip.transforms, stored)])
    # The identity for frames without a usable camera: it can be inverted.
    shown[~usable] = _row(_IDENTITY)
    intrinsics = np.zeros((len(shown), 3, 3))
    intrinsics[:, (0, 1), (0, 1)], intrinsics[:, :2, 2] = shown[:, :2], shown[:, 2:4]
    intrinsics[:, 2, 2] = 1
    batch.intrinsics[slot] = torch.from_numpy(intrinsics)
    batch.world_to_camera[slot] = torch.from_numpy(shown[:, 4:].reshape(-1, 3, 4))


def _row(camera: Camera | None) -> tuple[float, ...]:
    """Return the numbers of a camera; those of one that is not usable if there is none."""
    return camera_row(camera or _NO_CAMERA)
