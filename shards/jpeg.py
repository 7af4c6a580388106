"""Encode frames as JPEG and decode them, by libjpeg-turbo (simplejpeg)."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.errors import ShardError

LARGEST = 1 << 27
"""Most pixels that a reader accepts, four times an 8K frame; more is damage or an attack."""

END = b"\xff\xd9"
"""The marker that ends a JPEG."""


def encode(frame: NDArray[np.uint8], quality: int) -> bytes:
    """Encode a frame [H, W, 3] RGB as JPEG with 4:2:0 chroma; `quality` 1..100."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def decode(
    data: bytes | NDArray[np.uint8], reduction: int = 1, memory: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decode JPEG bytes to RGB [H, W, 3], at full, 1/2, 1/4 or 1/8 scale (`reduction`).

    Reduced decoding is faster and less sharp. It gives ceil(H / reduction) rows; pixel (x, y)
    covers `reduction` x `reduction` full-scale pixels, from (x, y) * reduction on.

    memory: flat buffer for the pixels, large enough; saves allocating new pages for each image

    Raises ShardError on damage, even where libjpeg would fill the rest with grey.
    """
    width, height = size(data)
    try:
        if reduction == 1:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=memory)
        least = {"min_width": -(-width // reduction), "min_height": -(-height // reduction)}
        return simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_factor=reduction, buffer=memory, **least
        )
    except ValueError as error:
        raise ShardError(f"not a readable JPEG ({error})") from error


def size(data: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    """Read (width, height) from the header. Raises ShardError if that fails or claims too much."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ShardError(f"not a JPEG ({error})") from error
    if width * height > LARGEST:
        raise ShardError(
            f"the image claims {width}x{height} pixels, more than the {LARGEST} allowed"
        )
    return width, height
