"""Videos whose frames say their own number, so that a stored frame can be told from any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 192, 128
_BITS = 12
_CELL = 12
"""Pixels of a bit of the barcode, across and down: more than any codec's blur."""


def numbered_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Draw frame `number`: [H, W, 3] RGB.

    A moving texture, four coloured corners (red, green, blue, yellow: top left, top right, bottom
    left, bottom right), and the number as a barcode in the middle, least significant bit left.
    """
    y, x = np.mgrid[:height, :width]
    texture = 110 + 40 * np.sin((x + 3 * number) / 9) + 40 * np.cos((y - 2 * number) / 7)
    frame = np.repeat(texture[..., None], 3, axis=2)
    corners = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 0): (0, 0, 255), (1, 1): (255, 255, 0)}
    for (bottom, right), colour in corners.items():
        rows = slice(height - 24, height) if bottom else slice(0, 24)
        columns = slice(width - 24, width) if right else slice(0, 24)
        frame[rows, columns] = colour
    top, left = (height - _CELL) // 2, (width - _BITS * _CELL) // 2
    for bit in range(_BITS):
        cell = slice(left + bit * _CELL, left + (bit + 1) * _CELL)
        frame[top : top + _CELL, cell] = 255 * (number >> bit & 1)
    return frame.clip(0, 255).astype(np.uint8)


def read_number(picture: NDArray[np.uint8]) -> int:
    """Read the number of an upright picture [h, w, 3] of any size."""
    height, width = picture.shape[:2]
    grey = picture.astype(float).mean(axis=2)
    left = (WIDTH - _BITS * _CELL) / 2
    columns = (left + (np.arange(_BITS) + 0.5) * _CELL) * width / WIDTH
    values = grey[height // 2, np.rint(columns).astype(int)]
    return int(sum(1 << bit for bit, value in enumerate(values) if value > 127))


def corner_colours(picture: NDArray[np.uint8]) -> list[str]:
    """Name the colours of the corners: top left, top right, bottom left, bottom right."""
    height, width = picture.shape[:2]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    places = [(y, x) for y in (0.06, 0.94) for x in (0.05, 0.95)]
    return [
        names.get(tuple((picture[int(y * height), int(x * width)] > 127).astype(int)), "none")
        for y, x in places
    ]


@dataclass(frozen=True)
class Recipe:
    """How a video file is written.

    times:    presentation times in units of 1/25 s, or None for 0, 1, 2 …
    parts:    numbers of frames of recordings that are joined byte by byte (MPEG-TS only)
    clock:    units per second of the container's times (Matroska always has 1000)
    damage:   where in the file 900 bytes are zeroed, as a part of its length
    rotation: degrees by which players turn the picture, counter-clockwise (MP4 only)
    mirror:   players are asked to mirror it, left to right (MP4 only)
    """

    container: str = "mp4"
    codec: str = "libx264"
    frames: int = 60
    b_frames: int = 0
    gop: int = 12
    open_gop: bool = False
    times: tuple[int, ...] | None = None
    clock: int = 25
    parts: tuple[int, ...] = ()
    rotation: int = 0
    mirror: bool = False
    damage: float | None = None

    @property
    def count(self) -> int:
        """Frames that are written."""
        return sum(self.parts) or self.frames

    def shown(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture as players show it: turned, then mirrored."""
        turned = np.rot90(picture, self.rotation // 90)
        return turned[:, ::-1] if self.mirror else turned

    def unshown(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture that players show as this one."""
        turned = picture[:, ::-1] if self.mirror else picture
        return np.rot90(turned, -self.rotation // 90)


def write_numbered(path: Path, recipe: Recipe) -> None:
    """Write a video file after a recipe. Joined parts count their frames on."""
    first, data = 0, bytearray()
    for count in recipe.parts or (recipe.frames,):
        _write_part(path, recipe, range(first, first + count))
        data += path.read_bytes()
        first += count
    if recipe.damage is not None:
        start = int(len(data) * recipe.damage)
        data[start : start + 900] = bytes(len(data[start : start + 900]))
    path.write_bytes(data)


def _write_part(path: Path, recipe: Recipe, numbers: Sequence[int]) -> None:
    options = {
        "libx264": {
            "preset": "ultrafast",
            "crf": "20",
            "bf": str(recipe.b_frames),
            "g": str(recipe.gop),
            "x264-params": f"open-gop={int(recipe.open_gop)}:scenecut=0",
        },
        "libx265": {
            "preset": "ultrafast",
            "x265-params": f"log-level=none:bframes={recipe.b_frames}:keyint={recipe.gop}:"
            f"open-gop={int(recipe.open_gop)}",
        },
        "mpeg4": {"bf": str(recipe.b_frames), "g": str(recipe.gop), "q": "3"},
        "libvpx-vp9": {"g": str(recipe.gop), "cpu-used": "8", "deadline": "realtime"},
    }[recipe.codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(recipe.codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, recipe.clock)
        if recipe.rotation or recipe.mirror:
            stream.set_display_rotation(recipe.rotation, hflip=recipe.mirror)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts = recipe.times[place] if recipe.times else place
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
