"""Find a second file that was joined to a first one byte by byte (`cat a.mp4 b.mp4`).

Most containers allow it, and FFmpeg reads all parts. Of MP4, FLV and ASF it reads the first alone,
without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap

_HEADERS = {
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
}
"""How a file begins, by FFmpeg's name of the container."""


def second_file(path: str, container: str, after: int) -> int | None:
    """Return the byte at which another file begins in a file, or None.

    container: FFmpeg's name for the container
    after:     byte up to which the file was read
    """
    if "mp4" not in container.split(",") and container not in _HEADERS:
        return None
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if container in _HEADERS:
            found = _HEADERS[container].search(data, after + 1)
            return found.start() if found else None
        seen: set[bytes] = set()
        for start, kind in _boxes(data):
            if kind in seen and start > after:
                return start
            seen |= {kind} & {b"ftyp", b"moov"}
    return None


def _boxes(data: mmap) -> Iterator[tuple[int, bytes]]:
    """Yield (first byte, type) of the boxes at the top level of an MP4 (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start + 8 <= len(data):
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        yield start, kind
        if size == 1:  # the size follows, in 64 bits
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        if size < 8:  # 0: up to the end of the file; others are damaged
            return
        start += size
