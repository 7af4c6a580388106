"""Loading of clips: what a core decodes, and resizing on the device (`data.resize: device`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.line import Line, attempt, milliseconds
from benchmarks.gpu.made_build import write_build
from benchmarks.gpu.moving_pictures import moving_pictures
from manifests.snapshot import open_snapshot
from trainer.config import DataSettings
from trainer.data.dataset import ClipDataset
from trainer.data.device_resize import resize_boxes


def lines(device: str, small: bool) -> Iterator[Line]:
    """Time what a core loads, then check and time what the device resizes."""
    yield from attempt("a core", partial(_on_a_core, small))
    yield from attempt("resizing", partial(_resizing, device, small))


def _on_a_core(small: bool) -> Iterator[Line]:
    """Read and decode clips of 4 frames in this process, with either value of `data.resize`."""
    clips, height, size = (4, 64, 32) if small else (64, 256, 224)
    with tempfile.TemporaryDirectory() as folder:
        write_build(Path(folder), clips, frames=12, height=height, width=4 * height // 3, grid=16)
        for resize in ("worker", "device"):
            settings = DataSettings.model_validate(
                {"out": folder, "size": size, "step": 3, "resize": resize}
            )
            dataset = ClipDataset([open_snapshot(Path(folder))], settings, seed=0)
            times = []
            for number in range(2 if small else 8):
                started = time.process_time()
                dataset.load([(number, clip) for clip in range(clips)])
                times.append(1e3 * (time.process_time() - started) / clips)
            # The fastest round is nearest to an idle machine.
            yield Line(f"resize: {resize}, of a core", min(times), "ms per clip")
            yield Line(f"resize: {resize}, a core feeds", 1e3 / min(times), "clips/s")


def _resizing(device: str, small: bool) -> Iterator[Line]:
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
