"""Decode a batch's JPEGs on the device that has the rest of the batch (`data.decode: device`).

On CUDA nvJPEG decodes, through torchvision; elsewhere the workers' own decoder does, as the
reference. Both decode whole pictures at full scale, and then boxes are cut out. nvImageCodec could
decode boxes only, but would be one more package, and saves little: to reach a box of a JPEG, what
comes before it has to be read too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards import jpeg
from shards.errors import PretrackError, ShardError, first_line
from trainer.cuda_device import OUT_OF_MEMORY
from trainer.data.batch import Batch

CHUNK_BYTES = 1 << 28
"""Bytes of decoded pictures that are on the device at once, but at least one clip's."""
_ELSE = "or set 'data.decode=worker'"


def decode_crops(batch: Batch) -> Batch:
    """Decode a batch's JPEGs; return it with crops instead. One without JPEGs is returned as it is.

    On CUDA it runs on the current stream, and the host waits for that stream and for the decoder,
    not for other streams.

    Raises ShardError, with the clip's key, for a damaged picture, as far as the decoder finds
    damage: nvJPEG may return wrong pixels instead. Raises PretrackError if the device cannot
    decode.
    """
    if "jpegs" not in batch:
        return batch
    device, boxes = batch["positions"].device, batch["boxes"]
    pixels = int(boxes[..., :2].prod(-1).max())
    crops = torch.empty((*boxes.shape[:2], pixels, 3), dtype=torch.uint8, device=device)
    count = _clips_at_once(batch)
    for start in range(0, len(boxes), count):
        part = slice(start, start + count)
        images = [image for clip in range(len(boxes))[part] for image in _split(batch, clip)]
        keys = [key for key in batch["key"][part] for _ in range(boxes.shape[1])]
        # Without a name, so that they are freed before the next ones are decoded.
        _crop(_decode(images, keys, device), batch["corners"][part], boxes[part], crops[part])
    used = ("jpegs", "jpeg_sizes", "corners")
    rest = {name: value for name, value in batch.items() if name not in used}
    return cast(Batch, {"crops": crops} | rest)


def check_decoder(device: torch.device) -> None:
    """Raise PretrackError, saying what to do, if JPEGs cannot be decoded on a device."""
    if device.type == "cuda":
        data = jpeg.encode(np.zeros((16, 16, 3), np.uint8), 90)
        _decode([np.frombuffer(bytearray(data), np.uint8)], ["made"], device)


def _clips_at_once(batch: Batch) -> int:
    """Return how many clips are decoded at once, by the largest of their pictures."""
    clips, frames = batch["jpeg_sizes"].shape
    # All pictures of a clip have the same size; workers have checked that.
    sizes = [jpeg.size(_split(batch, clip)[0]) for clip in range(clips)]
    return max(1, CHUNK_BYTES // (3 * frames * max(width * height for width, height in sizes)))


def _split(batch: Batch, clip: int) -> list[NDArray[np.uint8]]:
    """Return the JPEGs of one of a batch's clips, as views of its memory [T]."""
    ends = batch["jpeg_sizes"][clip].cumsum()
    return np.split(batch["jpegs"][clip, : ends[-1]], ends[:-1])


def _decode(
    images: Sequence[NDArray[np.uint8]], keys: Sequence[str], device: torch.device
) -> list[Tensor]:
    """Decode JPEGs: uint8 [3, H, W] RGB each, on a device.

    keys: the key of the clip that each is of

    Raises as `decode_crops` does.
    """
    if device.type != "cuda":
        return list(_decode_on_host(images, keys))
    try:
        return decode_on_cuda([torch.from_numpy(image) for image in images], device)
    except (ImportError, RuntimeError) as error:
        # The host waits for the device here, so errors of earlier work on it arrive here too.
        if OUT_OF_MEMORY.search(str(error)) or "CUDA error" in str(error):
            raise
        # nvJPEG does not say which picture it is; if the CPU's decoder finds one, it says it.
        for _ in _decode_on_host(images, keys):
            pass
        raise PretrackError(
            f"torchvision cannot decode JPEG on {device} ({first_line(error)}): install a build of "
            f"torchvision with nvJPEG, for the same CUDA as torch's, {_ELSE}"
        ) from error


def _decode_on_host(images: Sequence[NDArray[np.uint8]], keys: Sequence[str]) -> Iterator[Tensor]:
    """Decode JPEGs one after the other, by the workers' decoder. Raises ShardError for damage."""
    for image, key in zip(images, keys, strict=True):
        try:
            picture = jpeg.decode(image)
        except ShardError as error:
            raise ShardError(
                f"clip {key}: {error}: run 'pretrack verify', or leave damaged clips out with "
                "'data.on_error=skip data.decode=worker'"
            ) from error
        yield torch.from_numpy(picture).permute(2, 0, 1)


def decode_on_cuda(images: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEGs by nvJPEG: uint8 [3, H, W] RGB each, on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    # torchvision decodes on a stream of its own, which it waits for at the end, but not at the
    # start: work of this stream may still read the memory that the pictures will be written to.
    torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        # torchvision 0.29 deprecates it for torchcodec's decoder, which versions for torch 2.11
        # lack.
        warnings.simplefilter("ignore")
        return decode_jpeg(images, ImageReadMode.RGB, device)  # type: ignore[no-any-return]


def _crop(
    pictures: Sequence[Tensor],
    corners: NDArray[np.int32],
    boxes: NDArray[np.int32],
    into: Tensor,
) -> None:
    """Copy boxes of pictures into crops [B, T, P, 3], row by row."""
    places = np.concatenate([corners, boxes], axis=-1).reshape(-1, 5).tolist()
    for picture, (left, top, height, width, _), crop in zip(
        pictures, places, into.flatten(0, 1), strict=True
    ):
        box = picture[:, top : top + height, left : left + width].permute(1, 2, 0)
        crop[: height * width].view(height, width, 3).copy_(box)
