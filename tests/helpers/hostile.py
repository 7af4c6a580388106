"""Make and read hostile data for several tests."""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path

import zstandard

from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips

DEEP = b"[" * 100_000


def streamed(tar: Path) -> list[str]:
    """Stream a tar as training does; return the key of its first sample, if there is one."""
    settings = DataSettings.model_validate(
        {"out": "not-looked-at", "size": 64, "step": 1, "frames": 2}
    )
    return [str(sample["key"]) for sample in islice(StreamedClips(str(tar), settings, seed=0), 1)]


def track_bomb() -> bytes:
    """Make tracks of 100 kB that unpack to 400 MB."""
    packer = zstandard.ZstdCompressor().compressobj(size=400_000_020)
    bomb = packer.compress(struct.pack("<4sHHiII", b"PTRK", 2, 32, 0, 4000, 10_000))
    bomb += b"".join(packer.compress(bytes(1_000_000)) for _ in range(400)) + packer.flush()
    assert len(bomb) < 100_000
    return bomb
