"""JPEG on the device by nvJPEG (through torchvision) against the encoder of a build."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.line import Line, attempt, milliseconds
from benchmarks.gpu.moving_pictures import moving_pictures
from shards import jpeg

QUALITY = 90


def lines(device: str, small: bool) -> Iterator[Line]:
    """Encode and decode the frames of a clip in both ways."""
    yield from attempt("JPEG", partial(_pictures, device, small))


def differences(name: str, pictures: Tensor, others: Tensor) -> Iterator[Line]:
    """Compare pictures from 4:2:0 JPEGs by nvJPEG with those by the CPU: [..., 3, H, W].

    nvJPEG, as torchvision starts it, repeats chroma instead of interpolating it. These pictures
    have far more colour than a video, so colours are 6 grey levels apart; brightness is not.
    """
    difference = pictures.float() - others.float()
    brightness = torch.einsum("...chw,c->...hw", difference, torch.tensor([0.299, 0.587, 0.114]))
    for what, values, at_most in (("colours", difference, 8), ("brightness", brightness, 1)):
        mean = values.abs().mean().item()
        yield Line(f"{name}: mean difference of {what}", mean, "grey levels", at_most=at_most)


def _pictures(device: str, small: bool) -> Iterator[Line]:
    from torchvision.io import decode_jpeg, encode_jpeg

    frames = moving_pictures(1, 4 if small else 48)[0]
    arrays = [np.ascontiguousarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    ours = [jpeg.encode(array, QUALITY) for array in arrays]
    on_device = list(frames.to(device))
    theirs = [data.cpu() for data in encode_jpeg(on_device, quality=QUALITY)]
    read = np.stack([jpeg.decode(data.numpy().tobytes()) for data in theirs])
    stored = np.stack([jpeg.decode(data) for data in ours])
    original = np.stack(arrays)
    for name, pictures, size in (
        ("build's encoder", stored, sum(map(len, ours))),
        (f"torchvision's on {device}", read, sum(map(len, theirs))),
    ):
        error = np.abs(pictures.astype(int) - original).mean()
        yield Line(f"{name}: mean error", float(error), "grey levels", at_most=4)
        yield Line(f"{name}: size of a frame", size / len(frames) / 1e3, "kB")
    stored_data = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in ours]
    decoded = torch.stack([d.cpu() for d in decode_jpeg(stored_data, device=device)])
    in_place = torch.from_numpy(stored).permute(0, 3, 1, 2)
    yield from differences(f"decoded on {device}", decoded, in_place)
    count = len(frames)
    ours_ms = milliseconds(lambda: [jpeg.encode(a, QUALITY) for a in arrays], "cpu", rounds=3)
    theirs_ms = milliseconds(lambda: encode_jpeg(on_device, quality=QUALITY), device)
    yield Line("build's encoder, one core", ours_ms / count, "ms a frame")
    yield Line(f"torchvision's encoder on {device}", theirs_ms / count, "ms a frame")
    decoding = milliseconds(lambda: decode_jpeg(stored_data, device=device), device)
    yield Line(f"torchvision's decoder on {device}", decoding / count, "ms a frame")
