"""Encode depth maps and masks of frames as PNG and decode them.

A depth map has 16 bits per pixel: depth along the optical axis = value * scale, in the world units
of the cameras, and 0 where it is unknown. The scale is one per clip, in its description. A mask has
8 bits per pixel; what its values mean is the source's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError

LARGEST_VALUE = (1 << 16) - 1
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COMPRESSION = 3
"""zlib's level: higher ones take several times as long and save a few per cent."""


@dataclass(frozen=True)
class FrameMaps:
    """The encoded depth maps and masks of a clip: one per frame each, or ()."""

    depths: tuple[bytes, ...] = ()
    masks: tuple[bytes, ...] = ()


NO_MAPS = FrameMaps()


def encode_depth(depth: NDArray[np.float32], scale: float) -> bytes:
    """Encode a depth map [H, W] as values of `scale`, rounded; 0 stays 0, "unknown".

    Known depths become at least 1. Those beyond the largest value become unknown.
    """
    values = np.rint(depth.astype(np.float64) / scale)
    values = np.where((depth > 0) & (values < 1), 1, values)
    return _encode(np.where(values > LARGEST_VALUE, 0, values).astype(np.uint16))


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Encode a mask [H, W]."""
    return _encode(mask)


def decode_depths(
    images: Sequence[bytes], size: tuple[int, int], scale: float
) -> NDArray[np.float32]:
    """Decode depth maps of `size` (width, height): [T, H, W], 0 where the depth is unknown.

    Raises ShardError for damage, and for images of another size or kind.
    """
    depths = np.empty((len(images), size[1], size[0]), np.float32)
    for image, depth in zip(images, depths, strict=True):
        np.multiply(_decode(image, size, np.uint16), np.float32(scale), out=depth)
    return depths


def decode_masks(images: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode masks of `size` (width, height): [T, H, W]. Raises ShardError as `decode_depths`."""
    masks = np.empty((len(images), size[1], size[0]), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        mask[:] = _decode(image, size, np.uint8)
    return masks


def _encode(values: NDArray[np.uint16] | NDArray[np.uint8]) -> bytes:
    _, data = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])
    return data.tobytes()


def _decode(data: bytes, size: tuple[int, int], kind: type) -> NDArray[np.uint16 | np.uint8]:
    # The header says the size, so that no image takes more memory than the clip's frames allow.
    if data[:8] != _SIGNATURE or png_size(data) != size:
        raise ShardError(f"a depth map or mask is no PNG of {size[0]}x{size[1]} pixels")
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != kind or values.shape != (size[1], size[0]):
        raise ShardError(f"a depth map or mask cannot be read as {np.dtype(kind).name} grey")
    return values


def png_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from a PNG's header."""
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
