"""Read image files, loose or in a zip."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.failures import DecodeError, Reason
from pipeline.sources.picture_kinds import Channels, ImageHeader, header_of

# Pillow's own limit is the same for everyone; `frames.max_megapixels` takes its place, below.
Image.MAX_IMAGE_PIXELS = None

MAX_MEGAPIXELS = 200.0
"""The default of `frames.max_megapixels`."""

_BYTES_PER_PIXEL = 8
"""Bytes of a pixel of an uncompressed file at most: four channels of 16 bits."""
_BLACK = 4
"""The brightest value of a black frame: JPEG adds a little noise to 0."""
_BEHIND = (128, 128, 128, 255)
"""What transparent images are composed over: mid grey, opaque."""
_UINT16 = 65535
_WITH_PAGES = ("TIFF", "WEBP", "PNG")
"""Formats whose further pages or frames are pictures of their own, not previews as in JPEG."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """An image [H, W, 3] RGB uint8, what its pixels were in the file, and what this leaves out."""

    pixels: NDArray[np.uint8]
    channels: Channels
    left_out: tuple[Reason, ...] = ()


def read_image(root: str, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> DecodedImage:
    """Read the image ROOT/NAME in RGB, rotated as its EXIF orientation asks.

    Transparent images are composed over mid grey. 16-bit grey is scaled by the range of the type,
    0 to 65535, so that all frames of a video are scaled alike.

    The name "a.zip!b/c.jpg" means the member b/c.jpg of the archive a.zip. Raises DecodeError if
    the image is missing, empty, truncated, not an image, larger than `max_megapixels`, or black all
    over (CO3D blanks the frames it hides).
    """
    try:
        data = read_bytes(root, name, round(max_megapixels * 1e6) * _BYTES_PER_PIXEL)
        with Image.open(BytesIO(data)) as image:
            _check_pixels(image.width, image.height, max_megapixels)
            header = header_of(image.mode, image.has_transparency_data)
            pixels = _rgb(ImageOps.exif_transpose(image))
            left_out = tuple(_left_out(image, header))
    except FileNotFoundError as error:
        raise DecodeError("the file is missing", Reason.MISSING_IMAGE) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DecodeError(
            f"the image cannot be read ({_sentence(error)})", Reason.UNREADABLE_IMAGE
        ) from error
    if pixels.max() <= _BLACK:
        scaled = (
            ", after its 16 bits per pixel were scaled to 8" if header.channels[:2] == "16" else ""
        )
        raise DecodeError(f"the image is black all over{scaled}", Reason.BLACK_IMAGE)
    return DecodedImage(pixels, header.channels, left_out)


def _left_out(image: Image.Image, header: ImageHeader) -> Iterator[Reason]:
    """Name what of an image its RGB pixels do not hold."""
    if header.alpha:
        yield Reason.TRANSPARENT_IMAGES
    if header.channels == "16-bit grey":
        yield Reason.SCALED_TO_EIGHT_BITS
    if image.format in _WITH_PAGES:
        # A damaged directory of pages has none that could be used.
        with suppress(EOFError, OSError, ValueError, SyntaxError):
            image.seek(1)
            yield Reason.FURTHER_PAGES


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an image of any mode to RGB. Raises ValueError if its values have no known range."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + _UINT16 // 2) // _UINT16
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels are 32-bit numbers of no known range: save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, _BEHIND), pixels)
    return np.asarray(image.convert("RGB"))


def _check_pixels(width: int, height: int, max_megapixels: float) -> None:
    """Raise DecodeError if an image has too many pixels."""
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise DecodeError(
            f"the image is too large: it has {width}x{height} pixels, {megapixels:,.1f} million, "
            f"and frames.max_megapixels allows {max_megapixels:g}",
            Reason.IMAGE_TOO_LARGE,
        )


def read_bytes(root: str, name: str, largest: int) -> bytes:
    """Read a file, or a member of a zip, as `read_image` names it.

    Raises FileNotFoundError if it is missing, OSError if the archive is damaged, and DecodeError if
    it has more than `largest` bytes.
    """
    if ".zip!" not in name:
        path = Path(root) / name
        _check_size(path.stat().st_size, largest)
        return path.read_bytes()
    archive, member = name.split(".zip!", 1)
    archive += ".zip"
    try:
        path = Path(root) / archive
        stat = path.stat()
        opened = _open_archive(str(path), stat.st_size, stat.st_mtime_ns)
        # zipfile never unpacks more than the size in the directory, so the check holds for bombs.
        _check_size(opened.getinfo(member).file_size, largest)
        return opened.read(member)
    except KeyError as error:
        raise FileNotFoundError(name) from error
    # RuntimeError: the member is encrypted, or compressed by a method that zipfile lacks.
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise OSError(f"damaged archive {archive}: {error}") from error


def _check_size(size: int, largest: int) -> None:
    """Raise DecodeError if a file, or an unpacked archive member, is far larger than an image."""
    if size > largest:
        raise DecodeError(
            f"the image is too large: its file has {size:,} bytes, more than an image of "
            "frames.max_megapixels can have",
            Reason.IMAGE_TOO_LARGE,
        )


@lru_cache(maxsize=8)
def _open_archive(path: str, size: int, modified_ns: int) -> zipfile.ZipFile:
    """Open an archive, or return the one that is open.

    Archives are cached because reading the directory of a large zip takes longer than reading an
    image. Size and modification time are part of the key, so that a changed archive is opened
    again.
    """
    return zipfile.ZipFile(path)


def _sentence(error: Exception) -> str:
    """Return Pillow's message, but without the memory address in "cannot identify image file"."""
    text = str(error)
    return "not an image" if "cannot identify" in text else text
