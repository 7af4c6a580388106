"""Resizing of training crops on the device (`data.resize: device`) against the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu.line import Line, milliseconds
from benchmarks.gpu.moving_pictures import moving_pictures
from trainer.data.device_resize import resize_boxes


def lines(device: str, small: bool) -> Iterator[Line]:
    """Resize crops of several sizes, some of them flipped; then time batches of one size."""
    height, width, size = (96, 128, 64) if small else (384, 512, 224)
    pictures = moving_pictures(2, 4, height, width).flatten(0, 1).permute(0, 2, 3, 1)
    boxes = np.array(
        [[height - 13 * k, width - 17 * k, k % 2] for k in range(len(pictures))], np.int32
    )
    crops = torch.zeros(len(pictures), height * width, 3, dtype=torch.uint8)
    for crop, picture, (rows, columns, _) in zip(crops, pictures, boxes, strict=True):
        crop[: rows * columns] = picture[:rows, :columns].reshape(-1, 3)
    expected = resize_boxes(crops, boxes, size).int()
    got = resize_boxes(crops.to(device), boxes, size).cpu().int()
    off = 100 * ((got - expected).abs() > 1).float().mean().item()
    yield Line("resized pixels more than one grey level off", off, "%", at_most=0.1)
    frames = 2 if small else 128
    batch = crops[:1].expand(frames, -1, -1).contiguous().to(device)
    whole = np.tile(np.array([[height, width, 0]], np.int32), (frames, 1))
    taken = milliseconds(lambda: resize_boxes(batch, whole, size), device)
    name = f"{frames} frames of {width}x{height} to {size}"
    yield Line(name, taken, "ms")
    yield Line(f"{name}, clips of 4 frames", 250 * frames / taken, "clips/s")
