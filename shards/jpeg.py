"""JPEG to pixels and back, by libjpeg-turbo (simplejpeg)."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.errors import ShardError

LARGEST = 1 << 27
"""Pixels of an image a reader accepts, four times those of an 8K video; one that claims more is damaged or hostile."""


def encode(frame: NDArray[np.uint8], quality: int) -> bytes:
    """A frame [H, W, 3] RGB as JPEG with 4:2:0 chroma; `quality` 1..100."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(frame), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def decode(
    data: bytes, reduction: int = 1, memory: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """JPEG bytes as RGB [H, W, 3]. Raises ShardError on damage, also where libjpeg would go on with grey.

    With a `reduction` of 2, 4 or 8 only every so-many-th pixel's worth is decoded: ceil(H / reduction) rows, whose pixel (x, y)
    covers what `reduction` x `reduction` pixels from (x, y) * reduction on cover otherwise. That is faster, and less of a picture.
    The pixels lie in `memory` (flat, large enough) if that is given, which saves the system from finding new pages for each image.
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


def size(data: bytes) -> tuple[int, int]:
    """(width, height) from the header alone. Raises ShardError, also where they are far too large for a frame."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ShardError(f"not a JPEG ({error})") from error
    if width * height > LARGEST:
        raise ShardError(
            f"the image claims {width}x{height} pixels, more than the {LARGEST} allowed"
        )
    return width, height
