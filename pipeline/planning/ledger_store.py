"""Keep the ledgers of video files in `OUT/catalog/ledgers/`, each named by its content.

The catalogue's scan writes them, and workers that decode clips read them.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
import zstandard

from manifests.rows import VideoRow
from shards.files import Location, atomic_write, read_file

_MARK = ", ledger "
_LARGEST = 1 << 30
"""Bytes that an unpacked ledger may have."""


def write_ledger(out: Location, packed: bytes) -> str:
    """Store a packed ledger, and return its digest."""
    digest = ledger_digest(packed)
    atomic_write(_path(out, digest), packed)
    return digest


def read_ledger(out: Location, digest: str) -> bytes | None:
    """Return a packed ledger; None if it is missing or damaged. Raises AccessError."""
    try:
        packed = read_file(_path(out, digest))
    except FileNotFoundError:
        return None
    return packed if ledger_digest(packed) == digest else None


def ledger_digest(packed: bytes) -> str:
    """Return the digest that names a packed ledger: 32 hexadecimal digits; "" if it is damaged.

    Of what is packed, because the compressed bytes depend on the version of zstandard.
    """
    try:
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_LARGEST)
    except zstandard.ZstdError:
        return ""
    return xxhash.xxh3_128_hexdigest(content)


def scan_texts(scan_settings: pa.ChunkedArray, digests: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the videos table's column `scan`: each scan's settings, and its ledger's digest."""
    return pc.binary_join_element_wise(scan_settings, digests, _MARK)


def digest_of(video: VideoRow) -> str:
    """Return the digest of a video's ledger; "" if its scan made none."""
    match = re.search(_MARK + "([0-9a-f]{32})$", video.scan)
    return match[1] if match else ""


def _path(out: Location, digest: str) -> Location:
    """Return a ledger's path, in a folder per first two digits: folders of millions are slow."""
    return out / "catalog" / "ledgers" / digest[:2] / f"{digest}.zst"
