"""JPEG to pixels and back, by libjpeg-turbo (simplejpeg)."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.errors import ShardError


def encode(frame: NDArray[np.uint8], quality: int) -> bytes:
    """A frame [H, W, 3] RGB as JPEG with 4:2:0 chroma; `quality` 1..100."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420")


def decode(data: bytes) -> NDArray[np.uint8]:
    """JPEG bytes as RGB [H, W, 3]. Raises ShardError on damage, also where libjpeg would go on with grey."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise ShardError(f"not a readable JPEG ({error})") from error


def size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone. Raises ShardError."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ShardError(f"not a JPEG ({error})") from error
    return width, height
