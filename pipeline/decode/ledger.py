"""Identify every frame of a video file, so that no other frame is stored in its place.

The scan decodes a file once from its start and enters every frame into its ledger. Every frame that
is read later, by any decoder and after any seek, is compared with its entry before it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from pipeline.decode.frame_format import ONE_THREAD, FrameFormat, Orientation
from pipeline.decode.picture_print import PATTERNS, cell_means, cell_prints, picture_print

_VERSION = 1
_LARGEST = 1 << 30
"""Most bytes of an unpacked ledger: some 50 million frames."""

KEY, DAMAGED, TIMED, INTERLACED = 1, 2, 4, 8
"""Flags of a frame: decoding can begin here; it is damaged; the container itself gave its time; its
odd and even lines were taken at different times."""

_COPIED = 1 << 16
"""Bytes of a plane that are copied at once."""
_BATCH = 256
"""Frames whose prints are computed together."""
_TOLERANCE = 6
"""Steps by which prints of one frame may differ: decoders convert colours differently."""
_NEIGHBOURS = 4
"""Frames before and after; none may match a picture clearly better than the picture's own entry."""
_CLEARLY = 3
"""Steps by which a neighbour must match better to prove that the decoder returned it instead."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Ledger:
    """The frames of one file, in the order in which they are shown.

    times:     int64 [F], in units of `time_base` seconds; 0 for a frame without a time
    checksums: uint32 [F], of the decoded planes: decoders of one codec agree on every bit
    prints:    uint8 [F, 5], a small perceptual hash of the upright picture, for decoders that
               return only RGB
    flags:     uint8 [F], see KEY, DAMAGED, TIMED, INTERLACED
    formats:   (first frame, format) of every stretch of frames of one format
    """

    times: NDArray[np.int64]
    time_base: Fraction
    checksums: NDArray[np.uint32]
    prints: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    formats: tuple[tuple[int, FrameFormat], ...]

    def __len__(self) -> int:
        return len(self.checksums)

    @cached_property
    def seekable(self) -> bool:
        """Whether times are proven: each given by the container, and strictly increasing."""
        return bool((self.flags & TIMED).all() and (np.diff(self.times) > 0).all())

    def key_frames_before(self, index: int) -> int:
        """Return how many key frames, damaged ones included, come before frame `index`."""
        return int((self.flags[:index] & KEY > 0).sum())

    @cached_property
    def key_frames(self) -> NDArray[np.int64]:
        """Indices of the undamaged key frames."""
        return np.flatnonzero((self.flags & (KEY | DAMAGED)) == KEY)

    def key_before(self, index: int) -> int:
        """Return the last key frame at or before frame `index`; 0 if there is none."""
        following = int(np.searchsorted(self.key_frames, index, side="right"))
        return int(self.key_frames[following - 1]) if following else 0

    def format_of(self, index: int) -> FrameFormat:
        """Return the format of frame `index`."""
        starts = [first for first, _ in self.formats]
        return self.formats[int(np.searchsorted(starts, index, side="right")) - 1][1]

    def interlaced(self, index: int) -> bool:
        """Tell whether frame `index` is interlaced."""
        return bool(self.flags[index] & INTERLACED)

    def matches(self, index: int, frame: Any) -> bool:
        """Tell whether an `av.VideoFrame` is frame `index`."""
        return bool(self.checksums[index] == frame_checksum(frame))

    def resembles(self, index: int, picture: NDArray[np.uint8]) -> bool:
        """Tell whether a picture [H, W, 3] RGB, upright, can be frame `index`.

        It must have the frame's size and a similar print, and no neighbour may match clearly
        better. Frames that differ less than two decoders' colours do cannot be told apart.
        """
        width, height = self.format_of(index).upright_size
        return picture.shape[:2] == (height, width) and self.has_print(
            index, picture_print(picture)
        )

    def has_print(self, index: int, candidate: NDArray[np.uint8]) -> bool:
        """Tell whether a picture with the print `candidate` can be frame `index`.

        See `resembles`.
        """
        first = max(0, index - _NEIGHBOURS)
        nearby = self.prints[first : index + _NEIGHBOURS + 1].astype(np.int16)
        distances = np.abs(nearby - candidate.astype(np.int16)).max(axis=1)
        distance = distances[index - first]
        return bool(distance <= _TOLERANCE and distance < distances.min() + _CLEARLY)

    def pack(self) -> bytes:
        """Pack the ledger: a JSON line, then the arrays, compressed together."""
        header = {
            "version": _VERSION,
            "frames": len(self),
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "formats": [[first, *_format_fields(described)] for first, described in self.formats],
        }
        # Differences of times are nearly constant, and compress to almost nothing.
        steps = np.diff(self.times, prepend=0)
        arrays = (steps, self.checksums, self.prints, self.flags)
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        line = json.dumps(header, separators=(",", ":")).encode() + b"\n"
        return zstandard.ZstdCompressor(level=3).compress(line + data)

    @classmethod
    def unpack(cls, data: bytes) -> Ledger:
        """Read a packed ledger. Raises ValueError if it is damaged or of another version."""
        try:
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST)
            line, _, body = raw.partition(b"\n")
            header = json.loads(line)
            if header["version"] != _VERSION:
                raise ValueError(f"version {header['version']}")
            count = int(header["frames"])
            if len(body) != count * (8 + 4 + PATTERNS + 1):
                raise ValueError(f"{len(body)} bytes for {count} frames")
            steps = np.frombuffer(body, np.int64, count)
            checksums = np.frombuffer(body, np.uint32, count, offset=8 * count)
            prints = np.frombuffer(body, np.uint8, count * PATTERNS, offset=12 * count)
            flags = np.frombuffer(body, np.uint8, count, offset=(12 + PATTERNS) * count)
            return cls(
                times=np.cumsum(steps),
                time_base=Fraction(*header["time_base"]),
                checksums=checksums,
                prints=prints.reshape(count, PATTERNS),
                flags=flags,
                formats=tuple((first, _format(*fields)) for first, *fields in header["formats"]),
            )
        except (zstandard.ZstdError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"not a ledger ({error})") from error


class LedgerWriter:
    """Collect the entries of a ledger, frame by frame."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._times: list[int] = []
        self._checksums: list[int] = []
        self._sums: list[NDArray[np.float64]] = []  # of the frames without a print
        self._prints: list[NDArray[np.uint8]] = []  # [N, 5] of N frames each
        self._contrasts: list[NDArray[np.uint8]] = []  # [N] of N frames each
        self._flags: list[int] = []
        self._formats: list[tuple[int, FrameFormat]] = []

    def __len__(self) -> int:
        return len(self._checksums)

    def add(self, frame: Any, described: FrameFormat, sums: NDArray[np.float64]) -> None:
        """Enter the next frame, an `av.VideoFrame`; `sums` are its `corner_sums`, as coded."""
        if not self._formats or self._formats[-1][1] != described:
            self._add_prints()
            self._formats.append((len(self), described))
        self._times.append(frame.pts or 0)
        self._checksums.append(frame_checksum(frame))
        self._sums.append(sums)
        if len(self._sums) == _BATCH:
            self._add_prints()
        self._flags.append(
            KEY * frame.key_frame
            | DAMAGED * frame.is_corrupt
            | TIMED * (frame.pts is not None)
            | INTERLACED * frame.interlaced_frame
        )

    def _add_prints(self) -> None:
        """Compute the prints and contrasts of the last frames, which have one format."""
        if not self._sums:
            return
        cells = cell_means(self._sums)
        # Turning the cells is the same as turning the picture first, and cheaper.
        self._prints.append(cell_prints(self._formats[-1][1].orientation.apply(cells)))
        self._contrasts.append(cells.max(axis=(0, 1)) - cells.min(axis=(0, 1)))
        self._sums = []

    def contrasts(self) -> NDArray[np.uint8]:
        """Return the range of grey levels of each frame's cells [F]."""
        self._add_prints()
        return np.concatenate([*self._contrasts, np.zeros(0, np.uint8)])

    def ledger(self, damaged: Sequence[range], timed: bool) -> Ledger:
        """Return the ledger; `timed`: the container gave a time with every packet."""
        self._add_prints()
        flags = np.array(self._flags, np.uint8)
        for stretch in damaged:
            flags[stretch.start : stretch.stop] |= DAMAGED
        if not timed:
            flags &= 0xFF ^ TIMED
        return Ledger(
            times=np.array(self._times, np.int64),
            time_base=self._time_base,
            checksums=np.array(self._checksums, np.uint32),
            prints=np.concatenate([*self._prints, np.zeros((0, PATTERNS), np.uint8)]),
            flags=flags,
            formats=tuple(self._formats),
        )


def frame_checksum(frame: Any) -> int:
    """Return 32 bits of XXH3 over the pixels of an `av.VideoFrame`, without the lines' padding."""
    digest = xxhash.xxh3_64()
    if sample_bytes := _bytes_per_sample(frame.format):
        for plane in frame.planes:
            height, line_size = plane.height, plane.line_size
            lines = np.frombuffer(plane, np.uint8).reshape(height, line_size)
            lines = lines[:, : plane.width * sample_bytes]
            # A copy of a whole large plane would be new memory that the kernel has to clear.
            step = max(1, _COPIED // line_size)
            for first in range(0, height, step):
                digest.update(np.ascontiguousarray(lines[first : first + step]).data)
    else:  # packed, paletted or semi-planar: rare in files, and layouts differ
        digest.update(frame.to_ndarray(format="rgb24", threads=ONE_THREAD))
    return int(digest.intdigest() & 0xFFFFFFFF)


_SAMPLE_BYTES: dict[str, int] = {}


def _bytes_per_sample(pixel_format: Any) -> int:
    """Return 1 or 2 for a format with a plane per component, as video codecs use; 0 for others."""
    name = pixel_format.name
    if name not in _SAMPLE_BYTES:
        components = pixel_format.components
        planar = len({component.plane for component in components}) == len(components)
        usual = planar and not pixel_format.has_palette and not pixel_format.is_bit_stream
        bits = max((component.bits for component in components), default=0)
        _SAMPLE_BYTES[name] = (2 if bits > 8 else 1) if usual and bits <= 16 else 0
    return _SAMPLE_BYTES[name]


def _format_fields(described: FrameFormat) -> list[Any]:
    """Return the fields of a format as plain data for JSON."""
    way, aspect = described.orientation, described.pixel_aspect
    return [
        described.width,
        described.height,
        described.pixel_format,
        [way.transpose, way.mirror_x, way.mirror_y],
        [aspect.numerator, aspect.denominator],
    ]


def _format(
    width: int, height: int, pixel_format: str, way: Sequence[bool], aspect: Sequence[int]
) -> FrameFormat:
    """Make a format from its fields."""
    return FrameFormat(width, height, pixel_format, Orientation(*way), Fraction(*aspect))
