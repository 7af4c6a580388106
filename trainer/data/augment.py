"""What a sample shows of its clip: which frames, which part of them, and in which colours. Points are carried along.

Everything random is drawn from the generator that is passed, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, exp, log, sqrt

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from shards import jpeg
from shards.errors import ShardError
from shards.geometry import FrameTransform
from trainer.config import ColourSettings, DataSettings


def choose_frames(
    frames: int, anchors: Sequence[int], settings: DataSettings, random: np.random.Generator
) -> tuple[int, list[int]]:
    """Picks an anchor and frames stepping away from it: its place in `anchors`, and T frame numbers, the anchor's own first.

    The step is the settings' where the clip has T * step frames, else frames // T, at least 1 (3DPoV's rule). Among the anchors and
    directions that have room for it one is drawn; where none has, the one with most room is taken, with the largest step fitting.
    """
    count = settings.frames - 1
    step = (
        settings.step
        if frames >= settings.frames * settings.step
        else max(1, frames // settings.frames)
    )
    room = [(frames - 1 - a, i, 1) for i, a in enumerate(anchors)]
    if settings.direction == "both":
        room += [(a, i, -1) for i, a in enumerate(anchors)]
    if settings.anchor == "first":
        room = [option for option in room if option[1] == 0] or room
    fitting = [option for option in room if option[0] >= count * step]
    if fitting:
        _, anchor, sign = fitting[int(random.integers(len(fitting)))]
    else:
        most, anchor, sign = max(room)
        step = most // count
    return anchor, [anchors[anchor] + sign * step * k for k in range(settings.frames)]


def choose_transforms(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> list[FrameTransform]:
    """What is shown of each of the T frames: one view for all, or with `crop_per_frame` one drawn for each."""
    if not settings.crop_per_frame:
        return [choose_transform(width, height, settings, random)] * settings.frames
    return [choose_transform(width, height, settings, random) for _ in range(settings.frames)]


def choose_transform(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> FrameTransform:
    """The part of a frame that is shown, as `data.crop` says, resized to a square; and perhaps mirrored."""
    size = settings.size
    if settings.crop == "squash":
        view = FrameTransform.whole(width, height, size, size)
    elif settings.crop == "random":
        view = _random_box(width, height, settings, random)
    else:
        side = size if settings.crop == "native" else min(width, height)
        view = FrameTransform((width - side) // 2, (height - side) // 2, side, side, size, size)
    if settings.reduced_decoding and settings.crop != "squash":
        view = _on_coarse_pixels(view)
    return view.flipped() if random.random() < settings.flip else view


def _random_box(
    width: int, height: int, settings: DataSettings, random: np.random.Generator
) -> FrameTransform:
    area = width * height * random.uniform(settings.crop_scale, 1)
    shape = sqrt(exp(random.uniform(log(3 / 4), log(4 / 3))))
    box_width = min(width, max(1, round(sqrt(area) * shape)))
    box_height = min(height, max(1, round(sqrt(area) / shape)))
    left = int(random.integers(width - box_width + 1))
    top = int(random.integers(height - box_height + 1))
    return FrameTransform(left, top, box_width, box_height, settings.size, settings.size)


def _on_coarse_pixels(view: FrameTransform) -> FrameTransform:
    """The view with its box cut to multiples of 8, 4 or 2 pixels where it is at least so much larger than what is shown of it."""
    for factor in (8, 4, 2):
        left, top = -(-view.left // factor) * factor, -(-view.top // factor) * factor
        width = (view.left + view.width - left) // factor * factor
        height = (view.top + view.height - top) // factor * factor
        if width >= factor * view.out_width and height >= factor * view.out_height:
            return FrameTransform(left, top, width, height, view.out_width, view.out_height)
    return view


def decode_and_transform(
    images: Sequence[bytes],
    transforms: Sequence[FrameTransform],
    *,
    size: tuple[int, int],
    reduce: bool,
    into: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Decodes JPEGs of frames of `size` (width, height) and takes the view of each `into` [T, 3, S, S] RGB, which it returns.

    `reduce` allows decoding them smaller where their views allow it. Raises ShardError for an image that is damaged or of another
    size than the clip's.
    """
    for image in images:  # before there is memory of this size: tables come from other people
        if jpeg.size(image) != size:
            raise ShardError(
                "an image has {}x{} pixels and should have {}x{}".format(*jpeg.size(image), *size)
            )
    memory = np.empty(3 * size[0] * size[1], np.uint8)  # for one image after the other
    for view, image, shown in zip(transforms, images, into, strict=True):
        factor = view.reduction if reduce else 1
        _apply_transform(
            view.reduced(factor) if factor > 1 else view, jpeg.decode(image, factor, memory), shown
        )
    return into


def _apply_transform(
    view: FrameTransform, frame: NDArray[np.uint8], into: NDArray[np.uint8]
) -> None:
    """Puts the view of a frame, as `FrameTransform.frame` defines it, but by torch's antialiased bilinear filter, `into` [3, S, S].

    That is the published transforms' filter (Pillow's), and far faster than averaging areas.
    """
    box = frame[view.top : view.top + view.height, view.left : view.left + view.width]
    if box.shape[:2] != (view.out_height, view.out_width):
        pixels = torch.from_numpy(box)[None].permute(
            0, 3, 1, 2
        )  # in that order torch sees channels last, which it is faster at
        size = view.out_height, view.out_width
        box = interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    if box.shape[:2] != into.shape[1:]:
        raise ValueError(
            f"a view of {view.out_width}x{view.out_height} does not fit {into.shape}"
        )  # OpenCV would put it elsewhere
    cv2.split(cv2.flip(box, 1) if view.flip else box, list(into))


def transform_points(
    views: Sequence[FrameTransform], points: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Points of the T frames in pixels of what is shown of each: [T, N, 2] both."""
    if all(view is views[0] for view in views):
        return views[0].points(points)
    return np.stack([view.points(part) for view, part in zip(views, points, strict=True)])


def change_colours(frames: Tensor, colour: ColourSettings, random: np.random.Generator) -> Tensor:
    """Jitters, greys and blurs frames [T, 3, S, S] uint8 as drawn, all alike or each on its own; gives new ones."""
    if colour.per_frame:
        return torch.cat([_changed(frame, colour, random) for frame in frames.split(1)])
    return _changed(frames, colour, random)


def _changed(frames: Tensor, colour: ColourSettings, random: np.random.Generator) -> Tensor:
    from torchvision.transforms.v2 import (
        functional,  # costs a worker half a second and 60 MB: only who asks for it pays
    )

    if random.random() < colour.jitter:
        b, c, s = (
            random.uniform(1 - r, 1 + r)
            for r in (colour.brightness, colour.contrast, colour.saturation)
        )
        h = random.uniform(-colour.hue, colour.hue)
        changes: list[Callable[[Tensor], Tensor]] = [
            lambda x: functional.adjust_brightness(x, b),
            lambda x: functional.adjust_contrast(x, c),
            lambda x: functional.adjust_saturation(x, s),
            lambda x: functional.adjust_hue(x, h),
        ]
        for number in random.permutation(len(changes)):
            frames = changes[number](frames)
    if random.random() < colour.grey:
        frames = functional.rgb_to_grayscale(frames, num_output_channels=3)
    if random.random() < colour.blur:
        sigma = random.uniform(*colour.blur_sigma)
        frames = functional.gaussian_blur(frames, [2 * ceil(3 * sigma) + 1] * 2, [sigma] * 2)
    return frames
