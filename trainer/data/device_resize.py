"""Resize crops on the device that holds them.

The workers' filter is torch's antialiased one for uint8 on a CPU: it resizes rows, rounds to
uint8, and resizes columns, with weights rounded to 16-bit integers. Here each pass is a product
with one matrix per frame that holds the same weights. float32 holds these sums exactly up to a
reduction by 4, and practically beyond, so the results are the same; with TF32, which torch uses
only if asked to, they are within one grey level.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.device_batches import copy_to_device

CHUNK_BYTES = 1 << 28
"""Bytes of crops, as float32, that are resized at once; the peak of memory is about twice that."""
STEP = 32
"""The sides of a chunk are multiples of this many pixels: with few different shapes the device's
allocator can reuse its memory."""
INTEGER_BITS = 15
"""Bits of the largest weight, as an integer."""


def resize_boxes(crops: Tensor, boxes: NDArray[np.int32], size: int) -> Tensor:
    """Resize and flip crops to squares.

    crops: uint8 [F, P, 3], pixels of each box, row by row
    boxes: height and width of each box, and 1 for a flip [F, 3]

    Returns uint8 [F, 3, S, S].
    """
    frames = torch.empty((len(crops), 3, size, size), dtype=torch.uint8, device=crops.device)
    height, width = (-(-int(side) // STEP) * STEP for side in boxes[:, :2].max(axis=0))
    on_device = copy_to_device(torch.from_numpy(boxes.astype(np.float64)), crops.device)
    count = max(1, CHUNK_BYTES // (4 * 3 * height * width))
    for start in range(0, len(crops), count):
        part = slice(start, start + count)
        pixels = _padded(crops[part], on_device[part, 1].long(), height, width)
        _resize_chunk(pixels, on_device[part], frames[part])
    return frames


def _padded(crops: Tensor, widths: Tensor, height: int, width: int) -> Tensor:
    """Return crops [F, P, 3] as pictures [F, H, W, 3]; what lies outside the boxes is arbitrary."""
    row = torch.arange(height, device=crops.device)[:, None]
    column = torch.arange(width, device=crops.device)
    index = (row * widths[:, None, None] + column).clamp_(max=crops.shape[1] - 1)
    index = index.view(len(crops), -1, 1).expand(-1, -1, 3)
    return crops.gather(1, index).view(len(crops), height, width, 3)


def _resize_chunk(pictures: Tensor, boxes: Tensor, into: Tensor) -> None:
    """Resize the top left boxes of pictures [F, H, W, 3] into frames [F, 3, S, S]."""
    count, height, width, _ = pictures.shape
    size = into.shape[-1]
    # Pixels outside the boxes get weight 0.
    across = resampling_matrices(boxes[:, 1], size, width, mirrored=boxes[:, 2] > 0)
    down = resampling_matrices(boxes[:, 0], size, height)
    # Channels come between rows and columns, so that both passes are plain products of matrices.
    pixels = pictures.permute(0, 1, 3, 2).to(torch.float32).reshape(count, height * 3, width)
    rows = pixels @ across.transpose(1, 2)
    rows.add_(0.5).floor_()  # no weight is negative, and they sum to 1: nothing to clamp
    columns = down @ rows.view(count, height, 3 * size)
    # Converting to integers rounds down.
    into.copy_(columns.add_(0.5).view(count, size, 3, size).permute(0, 2, 1, 3))


def resampling_matrices(
    lengths: Tensor, size: int, longest: int, mirrored: Tensor | None = None
) -> Tensor:
    """Return the weights that resize lines of pixels, as torch's antialiased bilinear filter does.

    lengths:  pixels of each line, float64 [F], at most `longest`
    mirrored: which lines are also mirrored, bool [F]

    Returns float32 [F, size, longest], with weights that are whole multiples of a power of two.
    """
    output = torch.arange(size, dtype=torch.float64, device=lengths.device).expand(len(lengths), -1)
    if mirrored is not None:
        output = torch.where(mirrored[:, None], size - 1 - output, output)
    lengths = lengths[:, None]
    scale = lengths / size
    support = scale.clamp(min=1)  # a triangle of this half-width, in input pixels
    centre = scale * (output + 0.5)
    first = (centre - support + 0.5).clamp(min=0).floor()
    end = torch.minimum((centre + support + 0.5).floor(), lengths)

    taps = torch.arange(2 * ceil(max(1, longest / size)) + 1, device=lengths.device)
    index = first[..., None] + taps  # [F, size, taps]
    distance = (index - centre[..., None] + 0.5) * (1 / support)[..., None]
    weights = (1 - distance.abs()).clamp(min=0) * (index < end[..., None])
    weights /= weights.sum(-1, keepdim=True)

    # As integers, multiplied by the largest power of two that leaves them within INTEGER_BITS.
    largest = weights.amax((1, 2), keepdim=True)
    bits = (((1 << INTEGER_BITS) - 0.5) / largest).log2().ceil() - 1
    unit = torch.exp2(bits.clamp(0, 22)).round()
    weights = (weights * unit + 0.5).floor() / unit
    matrices = torch.zeros(
        (len(lengths), size, longest + len(taps)), dtype=torch.float32, device=lengths.device
    )
    matrices.scatter_(2, index.long(), weights.to(torch.float32))
    return matrices[..., :longest]
