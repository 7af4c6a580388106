"""Read image files, loose or in a zip."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.failures import DecodeError, Reason

LARGEST_FILE = 1 << 29
"""Bytes of an image file at most: enough for the most pixels that Pillow accepts, uncompressed."""

_BLACK = 4
"""The brightest value of a black frame: JPEG adds a little noise to 0."""


def read_image(root: str, name: str) -> NDArray[np.uint8]:
    """Read the image ROOT/NAME as [H, W, 3] RGB uint8, rotated as its EXIF orientation asks.

    The name "a.zip!b/c.jpg" means the member b/c.jpg of the archive a.zip. Raises DecodeError if
    the image is missing, empty, truncated, not an image, too large to be one, or black all over
    (CO3D blanks the frames it hides).
    """
    # Pillow only warns of images between its limit and twice that; here both are refused.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(_read_bytes(root, name))) as image:
                pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except FileNotFoundError as error:
            raise DecodeError("the file is missing", Reason.MISSING_IMAGE) from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DecodeError(
                f"the image is too large ({error})", Reason.IMAGE_TOO_LARGE
            ) from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise DecodeError(
                f"the image cannot be read ({_sentence(error)})", Reason.UNREADABLE_IMAGE
            ) from error
    if pixels.max() <= _BLACK:
        raise DecodeError("the image is black all over", Reason.BLACK_IMAGE)
    return pixels


def _read_bytes(root: str, name: str) -> bytes:
    """Read a file, or a member of a zip, as `read_image` names it.

    Raises FileNotFoundError if it is missing, OSError if the archive is damaged, and DecodeError if
    it is too large.
    """
    if ".zip!" not in name:
        path = Path(root) / name
        _check_size(path.stat().st_size)
        return path.read_bytes()
    archive, member = name.split(".zip!", 1)
    archive += ".zip"
    try:
        path = Path(root) / archive
        stat = path.stat()
        opened = _open_archive(str(path), stat.st_size, stat.st_mtime_ns)
        # zipfile never unpacks more than the size in the directory, so the check holds for bombs.
        _check_size(opened.getinfo(member).file_size)
        return opened.read(member)
    except KeyError as error:
        raise FileNotFoundError(name) from error
    # RuntimeError: the member is encrypted, or compressed by a method that zipfile lacks.
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise OSError(f"damaged archive {archive}: {error}") from error


def _check_size(size: int) -> None:
    """Raise DecodeError if a file, or an unpacked archive member, is far larger than an image."""
    if size > LARGEST_FILE:
        raise DecodeError(
            f"the image is too large ({size} bytes, and {LARGEST_FILE} are allowed)",
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
