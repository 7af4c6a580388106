"""Describe and correct decoded frames: size, pixel format, orientation and interlacing.

FFmpeg returns frames as they are coded. The display matrix of the container or the stream says how
to rotate and mirror them; pixels may be wider than high; the two fields of an interlaced frame were
taken at different times.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type
from numpy.typing import NDArray

ONE_THREAD = 1
"""Threads that convert a frame. By default PyAV starts one per core for every single frame."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight orientations of a picture: transposed first, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of_frame(cls, frame: Any) -> Orientation:
        """Read a frame's display matrix, rounded to the nearest quarter turn.

        The matrix holds nine int32 (a b u, c d v, x y w); it maps pixel (x, y) to
        (a x + c y, b x + d y) (libavutil/display.h).
        """
        # Not `frame.side_data`: it refers to the frame and the frame to it, so that frames would
        # fill memory until Python collects its garbage.
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]
        if not len(side_data) or (matrix := side_data.get(Type.DISPLAYMATRIX)) is None:
            return _UPRIGHT
        a, b, _, c, d = struct.unpack("<9i", bytes(matrix))[:5]
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, mirror_x=a < 0, mirror_y=d < 0)
        return cls(True, mirror_x=c < 0, mirror_y=b < 0)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture [H, W] or [H, W, 3] upright."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.mirror_x:
            picture = picture[:, ::-1]
        if self.mirror_y:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) at which a picture of this size is shown."""
        return (height, width) if self.transpose else (width, height)


_UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """Everything about a frame that begins another shot when it changes.

    width, height: as coded, before the orientation is applied
    pixel_aspect:  width of a pixel over its height, as coded
    """

    width: int
    height: int
    pixel_format: str
    orientation: Orientation = _UPRIGHT
    pixel_aspect: Fraction = Fraction(1)

    @classmethod
    def of_frame(cls, frame: Any, pixel_aspect: Fraction) -> FrameFormat:
        """Describe an `av.VideoFrame`."""
        orientation = Orientation.of_frame(frame)
        return cls(frame.width, frame.height, frame.format.name, orientation, pixel_aspect)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the picture with its orientation applied, in its own pixels."""
        return self.orientation.size(self.width, self.height)

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) of the picture in square pixels, its orientation applied.

        Like players, this keeps the coded height and scales the coded width.
        """
        width = max(1, round(self.width * self.pixel_aspect))
        return self.orientation.size(width, self.height)


def pixel_aspect(stream: Any) -> Fraction:
    """Return a stream's pixel aspect ratio: the container's if it names one, else the codec's."""
    return stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)


def progressive(frame: Any) -> Any:
    """Deinterlace an `av.VideoFrame` if it is flagged as interlaced.

    FFmpeg's estdif interpolates the lines of one field from the other's. It reads no neighbouring
    frame, so the result does not depend on where decoding began.
    """
    return _filtered(frame, "deint=interlaced") if frame.interlaced_frame else frame


def progressive_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Deinterlace a picture [H, W, 3] RGB whose frame is known to be interlaced."""
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    result: NDArray[np.uint8] = _filtered(frame, "deint=all").to_ndarray(
        format="rgb24", threads=ONE_THREAD
    )
    return result


def _filtered(frame: Any, options: str) -> Any:
    """Pass one frame through FFmpeg's estdif."""
    graph = Graph()
    graph.threads = ONE_THREAD
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    deinterlace = graph.add("estdif", options)
    sink = graph.add("buffersink")
    source.link_to(deinterlace)
    deinterlace.link_to(sink)
    graph.configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()  # the first field's picture; the second field's follows, and is dropped
