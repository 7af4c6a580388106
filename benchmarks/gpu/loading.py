"""Loading of clips: what a core reads, and what the device resizes and decodes.

The settings are `data.resize: device` and `data.decode: device`.
"""

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
from benchmarks.gpu.pictures import differences
from manifests.snapshot import open_snapshot
from trainer.data.dataset import ClipDataset
from trainer.data.device_batches import CopyStream, to_device
from trainer.data.device_decoding import decode_crops
from trainer.data.device_frames import make_frames
from trainer.data.device_resize import resize_boxes
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings

_PLACES: dict[str, dict[str, str]] = {
    "resize: worker": {},
    "resize: device": {"resize": "device"},
    "decode: device": {"resize": "device", "decode": "device"},
}
"""Where frames are made, and the settings for it."""


def lines(device: str, small: bool) -> Iterator[Line]:
    """Time what a core loads, then check and time what the device resizes and decodes."""
    yield from attempt("a core", partial(_on_a_core, small))
    yield from attempt("resizing", partial(_resizing, device, small))
    yield from attempt("decoding", partial(_decoding, device, small))


def _on_a_core(small: bool) -> Iterator[Line]:
    """Read clips of 4 frames in this process, as workers do with each setting."""
    clips = 4 if small else 64
    with tempfile.TemporaryDirectory() as folder:
        _write_clips(Path(folder), clips, small)
        for name, changes in _PLACES.items():
            dataset = _opened(folder, small, **changes)
            times = []
            for number in range(2 if small else 8):
                started = time.process_time()
                dataset.load([(number, clip) for clip in range(clips)])
                times.append(1e3 * (time.process_time() - started) / clips)
            # The fastest round is nearest to an idle machine.
            yield Line(f"{name}, of a core", min(times), "ms per clip")
            yield Line(f"{name}, a core feeds", 1e3 / min(times), "clips/s")


def _write_clips(folder: Path, clips: int, small: bool) -> None:
    height = 64 if small else 256
    write_build(folder, clips, frames=12, height=height, width=4 * height // 3, grid=16)


def _opened(folder: str, small: bool, **changes: str) -> ClipDataset:
    settings = DataSettings.model_validate(
        {"out": folder, "size": 32 if small else 224, "step": 3, **changes}
    )
    return ClipDataset([open_snapshot(Path(folder))], settings, seed=0)


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


def _decoding(device: str, small: bool) -> Iterator[Line]:
    """Make the frames of a batch from JPEGs, there and on the CPU; then time the decoding alone."""
    clips = 4 if small else 32
    with tempfile.TemporaryDirectory() as folder:
        _write_clips(Path(folder), clips, small)
        dataset = _opened(folder, small, **_PLACES["decode: device"])
        batch = next(iter(Loader(dataset, dataset.sampler(clips), pin=True)))
    expected = make_frames(batch, dataset.settings)["frames"]
    copied, _ = CopyStream(torch.device(device)).copy(batch, torch.zeros(1))
    name = f"decoded on {device}"
    yield from differences(name, make_frames(copied, dataset.settings)["frames"].cpu(), expected)
    there = to_device(batch, torch.device(device))
    taken = milliseconds(lambda: decode_crops(there), device)
    yield Line(f"{name}, the trainer waits for it", taken, f"ms per batch of {clips}")
    yield Line(name, 1e3 * clips / taken, "clips/s")
