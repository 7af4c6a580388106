"""Read depth maps and masks of frames, and resize them as the frames are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.rows import DepthEncoding
from pipeline.decode.hdf5 import read_dataset
from pipeline.decode.images import read_bytes
from pipeline.decode.mask_video import grey_frames
from pipeline.failures import DecodeError, Reason
from pipeline.sources.listing import numbered_part
from shards.geometry import FrameTransform

Size = tuple[int, int]
"""(width, height) in pixels."""
_ASPECT_CHANGE = 0.02
"""How far the aspect ratio of a map of another resolution may differ from that of its frame, which
may be rounded to whole pixels."""


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
    missing, cannot be read, has another size than the frame (a dataset of HDF5: another shape), or
    no depth is known in it; MachineError if this machine lacks what reads it.
    """
    depth: NDArray[Any]
    if encoding == "float":
        file, dataset = numbered_part(name)
        depth = read_dataset(Path(root) / file, dataset)
        _check_shape((depth.shape[1], depth.shape[0]), source_size)
    else:
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
    height, width = depth.shape
    return FrameTransform.whole(width, height, *stored_size).depth(np.where(known, depth, 0))


def read_mask(root: str, name: str, *, source_size: Size, stored_size: Size) -> NDArray[np.uint8]:
    """Read a mask of a frame: [H, W] as large as the stored frame, its values as they are.

    Raises DecodeError if it is missing, cannot be read, or has another size than the frame.
    """
    values = _read_grey(root, name, source_size, kinds=("1", "L", "P"))
    return FrameTransform.whole(*source_size, *stored_size).nearest(values.astype(np.uint8))


def read_video_masks(
    root: str,
    names: Sequence[str],
    *,
    source_sizes: Sequence[Size],
    stored_size: Size,
    on_frame: Callable[[], None],
) -> Iterator[NDArray[np.uint8] | DecodeError]:
    """Read masks that are frames of one video, as `read_mask` does; yield why one cannot be used.

    `on_frame` is called after each decoded frame.
    """
    file = numbered_part(names[0])[0]
    times = [float(numbered_part(name)[1]) for name in names]
    done = 0
    try:
        for grey in grey_frames(str(Path(root) / file), times, on_frame):
            yield (
                grey
                if isinstance(grey, DecodeError)
                else _stored_mask(grey, source_sizes[done], stored_size)
            )
            done += 1
    except DecodeError as error:
        yield from [error] * (len(names) - done)


def _stored_mask(
    grey: NDArray[np.uint8], source_size: Size, stored_size: Size
) -> NDArray[np.uint8] | DecodeError:
    """Resize the frame of a video of masks; return why it is no mask of its frame."""
    size = (grey.shape[1], grey.shape[0])
    try:
        _check_shape(size, source_size)
    except DecodeError as error:
        return error
    return FrameTransform.whole(*size, *stored_size).nearest(grey)


def _check_shape(size: Size, source_size: Size) -> None:
    """Raise DecodeError if a map of this size does not have the shape of its frame."""
    if abs(size[0] * source_size[1] / (size[1] * source_size[0]) - 1) > _ASPECT_CHANGE:
        raise DecodeError(
            f"it has {size[0]}x{size[1]} pixels, another shape than its frame of "
            f"{source_size[0]}x{source_size[1]}",
            Reason.DEPTH_UNKNOWN,
        )


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
