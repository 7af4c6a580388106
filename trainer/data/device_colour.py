"""Change the colours of many frames at once, each in its own way.

The changes are those of `trainer.data.augment.change_colours`, which calls torchvision for one
clip at a time; here each call changes all frames whose turn it is. As there, pixels are uint8 after
each change. Results differ from torchvision's by float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.device_batches import copy_to_device

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Indices of `ColourChange.factors`."""
ORDER, GREY, SIGMA = 4, 8, 9
"""Where the order begins in `ColourChange.numbers`, and where the last two numbers are."""
_Change = Callable[[Tensor, Tensor], Tensor]
"""(float32 [n, 3, S, S], 0 to 255; `ColourChange.numbers` [n, 10]) → the same, changed."""


def change_many_colours(frames: Tensor, numbers: NDArray[np.float64]) -> None:
    """Change frames [F, 3, S, S] uint8 in place; `numbers` has a `ColourChange.numbers` for each.

    Nothing waits for the device.
    """
    on_device = copy_to_device(torch.from_numpy(numbers), frames.device)

    def change(chosen: NDArray[np.bool_], how: _Change) -> None:
        if chosen.any():
            rows = copy_to_device(torch.from_numpy(np.flatnonzero(chosen)), frames.device)
            pixels = how(frames[rows].to(torch.float32), on_device[rows])
            frames.index_copy_(0, rows, pixels.to(torch.uint8))

    for turn in range(4):
        kinds = numbers[:, ORDER + turn]
        change(kinds == HUE, _rotate_hue)
        change((kinds >= 0) & (kinds != HUE), partial(_blend, turn=turn))
    change(numbers[:, GREY] > 0, lambda pixels, _: _grey(pixels).expand_as(pixels))
    change(numbers[:, SIGMA] > 0, _blur)


def _grey(pixels: Tensor) -> Tensor:
    """Return the luminance [n, 1, S, S], rounded down."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _blend(pixels: Tensor, numbers: Tensor, turn: int) -> Tensor:
    """Change brightness, contrast or saturation, whichever is each frame's turn.

    Brightness blends with black, contrast with the frame's mean luminance, saturation with the
    luminance.
    """
    kind = numbers[:, ORDER + turn, None].long()
    factor = numbers.gather(1, kind)[..., None, None]
    kind = kind[..., None, None]
    grey = _grey(pixels)
    other = torch.where(kind == CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey)
    other = other * (kind != BRIGHTNESS)
    # torch's `add(alpha=...)` is a fused multiply-add. A pixel that equals `other` would otherwise
    # often be rounded down to the value below.
    rest = (1 - factor).to(torch.float32).double()
    blended = (pixels * factor.to(torch.float32)).double().add_(other.double().mul_(rest))
    return blended.to(torch.float32).clamp_(0, 255)


def _rotate_hue(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Add to the hue in HSV."""
    pixels = pixels * (1 / 255)
    smallest, value = pixels.aminmax(dim=1, keepdim=True)
    spread = value - smallest
    below = (value - pixels) / torch.where(spread > 0, spread, 1)
    below_red, below_green, below_blue = below.split(1, dim=1)
    red, green, _ = pixels.split(1, dim=1)
    # The hue in sixths of the circle, counted from the largest channel.
    sixths = torch.where(
        value == red,
        below_blue - below_green,
        torch.where(value == green, 2 + below_red - below_blue, 4 + below_green - below_red),
    )
    turned = (sixths / 6 + numbers[:, HUE, None, None, None].to(torch.float32)).remainder(1)
    # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    offsets = torch.arange(5, 0, -2, device=pixels.device)[:, None, None]
    position = (offsets + turned * 6).remainder(6)
    away = torch.minimum(position, 4 - position).clamp_(0, 1)
    # Scaled as torchvision does, because the result is rounded down.
    return (value - spread * away) * 255.999


def _blur(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Blur by a Gaussian that reaches three sigma; frames are mirrored at their borders.

    As in resizing, by one matrix per frame.
    """
    sigma = numbers[:, SIGMA, None, None]
    last = pixels.shape[-1] - 1
    source = torch.arange(last + 1, dtype=torch.float64, device=pixels.device)
    target = source[:, None]

    def weight(distance: Tensor) -> Tensor:
        """Return the Gaussian's weight at a distance in pixels, before normalisation."""
        reached = distance.abs() <= torch.ceil(3 * sigma)
        return torch.exp(-(distance**2) / (2 * sigma**2)) * reached

    matrix = weight(source - target)
    # The first and the last pixel are not repeated.
    matrix += weight(source + target) * (source > 0)
    matrix += weight(2 * last - source - target) * (source < last)
    matrix = (matrix / matrix.sum(-1, keepdim=True)).to(torch.float32)[:, None]
    return (matrix @ pixels @ matrix.transpose(2, 3)).round_()
