"""Reading image files, loose or in a zip."""

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
"""Bytes of an image file: no less than the pixels that Pillow takes, uncompressed."""

_BLACK = 4
"""No pixel of a black frame is brighter: JPEG leaves a little noise."""


def read_image(root: str, name: str) -> NDArray[np.uint8]:
    """The image ROOT/NAME as [H, W, 3] RGB uint8, turned as its EXIF orientation asks. "a.zip!b/c.jpg" lies in an archive.

    Raises DecodeError, with the reason in words, if it is missing, empty, truncated, not an image, too large to be one, or black
    all over (CO3D blanks the frames it hides).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(_bytes(root, name))) as image:
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


def _bytes(root: str, name: str) -> bytes:
    if ".zip!" not in name:
        path = Path(root) / name
        _check_size(path.stat().st_size)
        return path.read_bytes()
    archive, member = name.split(".zip!", 1)
    archive += ".zip"
    try:
        path = Path(root) / archive
        stat = path.stat()
        opened = _archive(str(path), stat.st_size, stat.st_mtime_ns)
        _check_size(opened.getinfo(member).file_size)  # no more than this is unpacked
        return opened.read(member)
    except KeyError as error:
        raise FileNotFoundError(name) from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
    ) as error:  # RuntimeError: encrypted, or packed in a way zipfile lacks
        raise OSError(f"damaged archive {archive}: {error}") from error


def _check_size(size: int) -> None:
    """Raises DecodeError for a file that is far larger than an image, or a member of an archive that unpacks to one."""
    if size > LARGEST_FILE:
        raise DecodeError(
            f"the image is too large ({size} bytes, and {LARGEST_FILE} are allowed)",
            Reason.IMAGE_TOO_LARGE,
        )


@lru_cache(maxsize=8)
def _archive(path: str, size: int, modified_ns: int) -> zipfile.ZipFile:
    """Kept open, since reading the directory of a large zip takes longer than reading an image; opened anew once it has changed."""
    return zipfile.ZipFile(path)


def _sentence(error: Exception) -> str:
    text = str(error)
    return "not an image" if "cannot identify" in text else text
