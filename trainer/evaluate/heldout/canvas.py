"""Tools for drawing pictures: ink, font, sub-pixel coordinates and PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

Picture = NDArray[np.uint8]
"""RGB [H, W, 3]."""

INK, PAPER = (34, 34, 34), (255, 255, 255)
SUBPIXELS = 16  # OpenCV draws at 1/16 px with shift=4


def subpixel(x: float, y: float) -> tuple[int, int]:
    """Convert a position in pixels to the form that OpenCV takes with shift=4."""
    return round(x * SUBPIXELS), round(y * SUBPIXELS)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load the font of titles and labels, `size` pixels high."""
    return ImageFont.load_default(size)


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()
