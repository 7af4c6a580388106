"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
"""What a file's name holds until it is whole. Nothing that lists a folder of ours looks at such names."""


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; when the block ends well it is synced and renamed to `path`, otherwise removed.

    After a power cut there is the old file, the new one, or none: never a part. Raises OSError (a full disk, say) untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with written_whole(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Makes names created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
