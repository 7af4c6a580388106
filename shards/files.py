"""Files that are either whole or not there, on a local disk or a bucket."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from shards import bucket
from shards.bucket import BUCKETS, SCHEMES, Url
from shards.errors import PretrackError

Location = Path | Url
"""A file or a folder. Both kinds know `/`, `.name`, `.parent` and `str()`."""

TEMPORARY = ".tmp-"
"""What a file's name holds until it is whole. Nothing that lists a folder of ours looks at such names."""


def parse_location(where: str | Location) -> Location:
    """A URL ("s3://bucket/folder") or a path on this machine. Raises PretrackError for a scheme that is not known, and for a folder
    of a bucket that cannot be written as a URL."""
    if isinstance(where, Path | Url):
        return where
    scheme, mark, _ = where.partition("://")
    if not mark:
        return Path(where)
    if scheme not in SCHEMES:
        raise PretrackError(
            f"{where}: '{scheme}://' is not known; use a path, or one of {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    if scheme in BUCKETS and (
        "#" in where or "?" in where
    ):  # a URL's path ends there: everything would be one object
        raise PretrackError(f"{where}: a folder on a bucket cannot have '#' or '?' in its name")
    return Url(where.rstrip("/"))


def read_file(file: Location) -> bytes:
    """The bytes of a file. Raises OSError."""
    return bucket.read(file) if isinstance(file, Url) else file.read_bytes()


def read_ranges(file: Location, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Parts of a file, in the order asked, and nothing else of it; cut short where the file ends. Raises OSError."""
    if isinstance(file, Url):
        return bucket.read_ranges(file, offsets, sizes)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        whole = os.fstat(
            descriptor
        ).st_size  # memory is taken for all that is asked for, whether it is there or not
        return [
            os.pread(descriptor, min(size, whole), offset)
            for offset, size in zip(offsets, sizes, strict=True)
        ]
    finally:
        os.close(descriptor)


def open_stream(file: Location) -> BinaryIO:
    """A file to be read from front to back. Raises OSError."""
    return bucket.open_stream(file) if isinstance(file, Url) else open(file, "rb")


def size_of(file: Location) -> int:
    """Bytes of a file. Raises FileNotFoundError, OSError."""
    return bucket.size_of(file) if isinstance(file, Url) else file.stat().st_size


def written_at(file: Location) -> datetime:
    """When a file was last written (UTC). Raises FileNotFoundError, OSError."""
    return (
        bucket.written_at(file)
        if isinstance(file, Url)
        else datetime.fromtimestamp(file.stat().st_mtime, UTC)
    )


def sizes_in(folder: Location) -> dict[str, int]:
    """The whole files directly in a folder, with their sizes in bytes; none if there is no such folder. Raises OSError."""
    if isinstance(folder, Url):
        return bucket.sizes_in(folder)
    sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # one that was deleted meanwhile
                if entry.is_file() and not entry.name.startswith(TEMPORARY):
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def folders_in(folder: Location) -> list[str]:
    """The names of the folders directly in a folder, sorted. Raises OSError."""
    if isinstance(folder, Url):
        return bucket.folders_in(folder)
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(TEMPORARY)
    )


def open_atomic(file: Location) -> AbstractContextManager[BinaryIO]:
    """Opens something to write to; when the block ends well it becomes `file`, otherwise it is gone.

    After a crash or a power cut there is the old file, the new one, or none: never a part. Raises OSError (a full disk, say).
    """
    return open_atomic_as(file.parent, lambda: file.name)


def open_atomic_as(folder: Location, name: Callable[[], str]) -> AbstractContextManager[BinaryIO]:
    """`open_atomic` for a file whose name is only known when it has been written."""
    return (
        bucket.open_atomic_as(folder, name)
        if isinstance(folder, Url)
        else _open_atomic_on_disk(folder, name)
    )


@contextmanager
def _open_atomic_on_disk(folder: Path, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """Written in `folder`, synced, renamed; then the folder is synced, so that the name survives too."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def atomic_write(file: Location, data: bytes) -> None:
    """Writes `data` to `file`, whole or not at all."""
    if isinstance(file, Url):
        bucket.write(file, data)
        return
    with open_atomic(file) as opened:
        opened.write(data)


def delete(file: Location) -> None:
    """Deletes a file if it is there. Raises OSError."""
    if isinstance(file, Url):
        bucket.delete(file)
    else:
        file.unlink(missing_ok=True)


def delete_folder(folder: Location) -> None:
    """Deletes a folder with all that is in it, if it is there. Raises OSError."""
    if isinstance(folder, Url):
        bucket.delete_folder(folder)
    elif folder.exists():
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Makes names created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def absolute(where: Location) -> Location:
    """The same place, whatever the current folder: `~` and relative paths are resolved."""
    return where if isinstance(where, Url) else where.expanduser().absolute()


def is_permanent_error(error: OSError) -> bool:
    """Whether the place itself is at fault (full, read-only, forbidden), so that the next file would fail just the same."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
