"""Read depth maps and masks of frames, and resize them as the frames are."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.rows import DepthEncoding
from pipeline.decode.images import read_bytes
from pipeline.failures import DecodeError, Reason
from shards.geometry import FrameTransform

Size = tuple[int, int]
"""(width, height) in pixels."""


def read_depth(
    root: str,
    name: str,
    *,
    encoding: DepthEncoding,
    scale: float,
    mask: str,
    source_size: Size,
    stored_size: Size,
) -> NDArray[np.float32]:
    """Read a depth map of a frame: [H, W] as large as the stored frame, 0 where it is unknown.

    For the arguments see `DepthFiles`; `mask` is "" for none. Raises DecodeError if a file is
    missing, cannot be read, has another size than the frame, or no depth is known in it.
    """
    values = _read_grey(root, name, source_size, kinds=("I;16", "I;16B", "I"))
    # The format of 16-bit images: Pillow may read them as 32-bit integers.
    bits = values.astype(np.uint16)
    depth = bits.view(np.float16).astype(np.float32) if encoding == "float16" else bits
    with np.errstate(over="ignore", invalid="ignore"):
        depth = (depth * np.float64(scale)).astype(np.float32)
    known = np.isfinite(depth) & (depth > 0)
    if mask:
        known &= _read_grey(root, mask, source_size, kinds=("1", "L", "P", "I;16", "I")) > 0
    if not known.any():
        raise DecodeError("no pixel has a depth", Reason.DEPTH_UNKNOWN)
    return FrameTransform.whole(*source_size, *stored_size).depth(np.where(known, depth, 0))


def read_mask(root: str, name: str, *, source_size: Size, stored_size: Size) -> NDArray[np.uint8]:
    """Read a mask of a frame: [H, W] as large as the stored frame, its values as they are.

    Raises DecodeError if it is missing, cannot be read, or has another size than the frame.
    """
    values = _read_grey(root, name, source_size, kinds=("1", "L", "P"))
    return FrameTransform.whole(*source_size, *stored_size).nearest(values.astype(np.uint8))


def _read_grey(root: str, name: str, size: Size, kinds: tuple[str, ...]) -> NDArray[np.integer]:
    """Read an image of one channel, [H, W]. Images of one bit are 0 and 255. Raises DecodeError."""
    if not name:
        raise DecodeError("the source names no file", Reason.DEPTH_UNKNOWN)
    try:
        # Pixels of these images have at most 4 bytes, and zlib may enlarge what it cannot shrink.
        data = read_bytes(root, name, 8 * size[0] * size[1] + (1 << 20))
        with Image.open(BytesIO(data)) as image:
            if image.size != size:
                raise DecodeError(
                    f"it has {image.size[0]}x{image.size[1]} pixels, and its frame "
                    f"{size[0]}x{size[1]}",
                    Reason.DEPTH_UNKNOWN,
                )
            if image.mode not in kinds:
                raise DecodeError(
                    f"its pixels are of the mode {image.mode}, and should be one of "
                    f"{', '.join(kinds)}",
                    Reason.DEPTH_UNKNOWN,
                )
            return np.asarray(image.convert("L") if image.mode == "1" else image)
    except FileNotFoundError as error:
        raise DecodeError("the file is missing", Reason.DEPTH_UNKNOWN) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DecodeError(f"it cannot be read ({error})", Reason.DEPTH_UNKNOWN) from error
