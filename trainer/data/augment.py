"""Augmentation: choose the frames of a sample, their crop and flip.

Tracked points go through the same crop, resize and flip as the frames. All randomness is drawn from
the generator that is passed, in a fixed order, because exact resuming depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, exp, log, sqrt

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from shards import jpeg
from shards.clip import Directions
from shards.errors import ShardError
from shards.geometry import FrameTransform
from shards.sample_starts import SampleRule, sample_starts
from trainer.data.settings import DataSettings


def sample_rule(settings: DataSettings) -> SampleRule:
    """Return the settings that decide which frames a sample takes."""
    return SampleRule(
        frames=settings.frames,
        step=settings.step,
        first_anchor=settings.anchor == "first",
        backward=settings.direction == "both",
    )


def choose_frames(
    frames: int,
    anchors: Sequence[int],
    settings: DataSettings,
    random: np.random.Generator,
    *,
    tracked: Directions = "both",
) -> tuple[int, list[int]]:
    """Draw an anchor and T frames that step away from it, forward or backward in time.

    frames:  number of frames in the clip
    anchors: its anchor frames, by frame number
    tracked: the directions in which its points were tracked

    Returns the anchor's index in `anchors`, and T frame numbers, the anchor's own first; all are
    its own with `control: same`. Raises ShardError if no sample can be taken from the clip.

    The step is the setting if the clip has at least T * step frames, else frames // T, at least 1
    (3DPoV's rule). One of the anchors and directions with enough frames for it is drawn; if none
    has enough, the one with the most frames is taken, with the largest step that fits.
    """
    starts = sample_starts(frames, anchors, sample_rule(settings), tracked)
    if not starts:
        raise ShardError(
            f"none of its anchors {list(anchors)} has {settings.frames - 1} tracked frames before "
            f"or after it, in {frames} frames"
        )
    start = starts[int(random.integers(len(starts)))]
    step = 0 if settings.control == "same" else start.direction * start.step
    return start.anchor, [anchors[start.anchor] + step * k for k in range(settings.frames)]


def choose_transforms(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> list[FrameTransform]:
    """Draw the transform of each of T frames: one for all, or one each with `crop_per_frame`."""
    if not settings.crop_per_frame:
        return [choose_transform(width, height, settings, random)] * settings.frames
    return [choose_transform(width, height, settings, random) for _ in range(settings.frames)]


def choose_transform(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> FrameTransform:
    """Draw the box of a frame that is shown (`data.crop`), and whether it is flipped."""
    size = settings.size
    if settings.crop == "squash":
        transform = FrameTransform.whole(width, height, size, size)
    elif settings.crop == "random":
        transform = _random_box(width, height, settings, random)
    else:
        side = size if settings.crop == "native" else min(width, height)
        transform = FrameTransform(
            left=(width - side) // 2,
            top=(height - side) // 2,
            width=side,
            height=side,
            out_width=size,
            out_height=size,
        )
    if settings.reduced_decoding and settings.crop != "squash":
        transform = _aligned_to_reduction(transform)
    return transform.flipped() if random.random() < settings.flip else transform


def _random_box(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> FrameTransform:
    """Draw a box with between `crop_scale` and all of the frame's area, 3:4 to 4:3 in shape."""
    area = width * height * random.uniform(settings.crop_scale, 1)
    # Uniform in the logarithm of width / height, as in torchvision's RandomResizedCrop.
    root_of_aspect = sqrt(exp(random.uniform(log(3 / 4), log(4 / 3))))
    box_width = min(width, max(1, round(sqrt(area) * root_of_aspect)))
    box_height = min(height, max(1, round(sqrt(area) / root_of_aspect)))
    left = int(random.integers(width - box_width + 1))
    top = int(random.integers(height - box_height + 1))
    return FrameTransform(
        left=left,
        top=top,
        width=box_width,
        height=box_height,
        out_width=settings.size,
        out_height=settings.size,
    )


def _aligned_to_reduction(transform: FrameTransform) -> FrameTransform:
    """Shrink a box to multiples of 8, 4 or 2 pixels, so that JPEGs can be decoded at that scale.

    Takes the largest factor at which the decoded box still has at least the output's pixels;
    returns the transform unchanged if there is none.
    """
    t = transform
    for factor in (8, 4, 2):
        # Round the left and top edges up, and right and bottom down: the box never grows.
        left, top = -(-t.left // factor) * factor, -(-t.top // factor) * factor
        width = (t.left + t.width - left) // factor * factor
        height = (t.top + t.height - top) // factor * factor
        if width >= factor * t.out_width and height >= factor * t.out_height:
            return replace(t, left=left, top=top, width=width, height=height)
    return t


def decode_and_transform(
    images: Sequence[bytes],
    transforms: Sequence[FrameTransform],
    *,
    size: tuple[int, int],
    reduce: bool,
    into: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Decode JPEGs [T] and apply a transform to each.

    size:   (width, height) that all images must have
    reduce: decode at 1/2, 1/4 or 1/8 scale where the transform allows it
    into:   uint8 [T, 3, S, S] RGB; the result is written there and returned

    Raises ShardError for an image that is damaged or of another size.
    """
    _check_sizes(images, size)
    # One buffer, reused for all images.
    buffer = np.empty(3 * size[0] * size[1], np.uint8)
    for image, transform, output in zip(images, transforms, into, strict=True):
        factor = transform.reduction if reduce else 1
        _apply_transform(
            transform.reduced(factor) if factor > 1 else transform,
            jpeg.decode(image, factor, buffer),
            output,
        )
    return into


def decode_and_crop(
    images: Sequence[bytes],
    transforms: Sequence[FrameTransform],
    *,
    size: tuple[int, int],
    reduce: bool,
    into: NDArray[np.uint8],
) -> NDArray[np.int32]:
    """Decode JPEGs [T] and crop them to the box of each transform, without resizing.

    size, reduce: as in `decode_and_transform`
    into:         uint8 [T, P, 3] RGB; each box is written to the first of its frame's P pixels, row
                  by row, and the rest is left as it is

    Returns what is still to be done, int32 [T, 3]: height and width of each box, and 1 for a flip.
    Raises ShardError for an image that is damaged or of another size.
    """
    _check_sizes(images, size)
    buffer = np.empty(3 * size[0] * size[1], np.uint8)
    boxes = np.empty((len(transforms), 3), np.int32)
    for image, transform, output, box in zip(images, transforms, into, boxes, strict=True):
        factor = transform.reduction if reduce else 1
        scaled = transform.reduced(factor) if factor > 1 else transform
        pixels = output[: scaled.width * scaled.height].reshape(scaled.height, scaled.width, 3)
        # Here reductions divide all sides, so the box is whole if it has as many pixels.
        if factor**2 * len(pixels) * scaled.width == size[0] * size[1]:
            jpeg.decode(image, factor, pixels.reshape(-1))
        else:
            pixels[:] = _cropped(scaled, jpeg.decode(image, factor, buffer))
        box[:] = scaled.height, scaled.width, scaled.flip
    return boxes


def _check_sizes(images: Sequence[bytes], size: tuple[int, int]) -> None:
    """Raise ShardError unless all images have this (width, height)."""
    # Before any memory of this size is allocated: sizes in tables and images come from others.
    for image in images:
        if jpeg.size(image) != size:
            raise ShardError(
                "an image has {}x{} pixels and should have {}x{}".format(*jpeg.size(image), *size)
            )


def check_jpegs(images: Sequence[bytes], size: tuple[int, int]) -> None:
    """Raise ShardError unless all images have this (width, height) and end as JPEGs do.

    Damage between their headers and their ends is found only when they are decoded.
    """
    _check_sizes(images, size)
    if not all(image.endswith(jpeg.END) for image in images):
        raise ShardError("not a whole JPEG (the marker at its end is missing)")


def largest_box(width: int, height: int, settings: DataSettings) -> tuple[int, int]:
    """Return the largest (width, height) of a box that `decode_and_crop` makes from a frame.

    Each is an upper bound over all that `choose_transform` may draw for a frame of this size.
    """
    size = settings.size
    if settings.crop == "native":
        return min(width, size), min(height, size)
    if settings.crop == "centre":
        width = height = min(width, height)
    if settings.crop == "random":
        # A box of the frame's whole area and the most extreme aspect ratio, and rounding.
        longest = ceil(sqrt(width * height * 4 / 3)) + 1
        width, height = min(width, longest), min(height, longest)
    if not settings.reduced_decoding or settings.crop == "squash":
        factor = FrameTransform.whole(width, height, size, size).reduction
        factor = factor if settings.reduced_decoding else 1
        return width // factor, height // factor
    bounds = [_largest_at_scale(width, height, factor, settings) for factor in (1, 2, 4, 8)]
    return max(bound[0] for bound in bounds), max(bound[1] for bound in bounds)


def _largest_at_scale(
    width: int, height: int, factor: int, settings: DataSettings
) -> tuple[int, int]:
    """Bound (width, height) of boxes decoded at 1/factor, within boxes of `width` x `height`."""
    if factor == 8:
        return width // 8, height // 8
    # A box with both sides this long would be decoded at half this scale: aligning it to 2 * factor
    # takes less than 4 * factor off a side. So one of its sides is shorter, and the other one is at
    # most 4/3 of it, unless the frame's border cuts the shorter side.
    short = 2 * factor * (settings.size + 2)
    long = ceil((short + 1) * 4 / 3) + 1
    widest = width if height <= short else min(width, long)
    tallest = height if width <= short else min(height, long)
    return widest // factor, tallest // factor


def _cropped(transform: FrameTransform, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frame[
        transform.top : transform.top + transform.height,
        transform.left : transform.left + transform.width,
    ]


def _apply_transform(
    transform: FrameTransform, frame: NDArray[np.uint8], into: NDArray[np.uint8]
) -> None:
    """Crop, resize and flip a frame [H, W, 3] into [3, S, S].

    Like `FrameTransform.frame`, except for the filter: torch's antialiased bilinear one is
    that of the published transforms (Pillow's), and far faster than averaging areas.
    """
    box = _cropped(transform, frame)
    size = transform.out_height, transform.out_width
    if box.shape[:2] != size:
        # A permuted view, which torch takes for channels-last memory: its fast path.
        pixels = torch.from_numpy(box)[None].permute(0, 3, 1, 2)
        box = interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    if box.shape[:2] != into.shape[1:]:
        # OpenCV would allocate new memory and leave `into` as it is.
        raise ValueError(
            f"a transform to {transform.out_width}x{transform.out_height} pixels does not fit "
            f"{into.shape}"
        )
    cv2.split(cv2.flip(box, 1) if transform.flip else box, list(into))


def transform_points(
    transforms: Sequence[FrameTransform], points: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Map points of T frames from stored pixels to pixels of the transformed frames: [T, N, 2]."""
    if all(transform is transforms[0] for transform in transforms):
        return transforms[0].points(points)
    return np.stack(
        [transform.points(frame) for transform, frame in zip(transforms, points, strict=True)]
    )
