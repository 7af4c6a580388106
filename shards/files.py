"""Read, list and atomically write files, on a local disk or an object store."""

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
from shards.errors import PretrackError, access_error
from shards.hub import parse_hub_url

Location = Path | Url
"""A file or a folder. Both types have `/`, `.name`, `.parent` and `str()`."""

TEMPORARY = ".tmp-"
"""Prefix of temporary files and folders. No function that lists a folder returns such names."""


def parse_location(where: str | Location) -> Location:
    """Parse a URL ("s3://bucket/folder") or a path on this machine.

    Raises PretrackError for an unknown scheme, for a name on a bucket that contains '#' or '?', and
    for an `hf://` URL that names no dataset repository.
    """
    if isinstance(where, Path | Url):
        return where
    scheme, mark, _ = where.partition("://")
    if not mark:
        return Path(where)
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{allowed}://" for allowed in SCHEMES)
        raise PretrackError(f"{where}: '{scheme}://' is not known; use a path, or one of {schemes}")
    # A URL's path ends at these characters, so all files of the folder would be one object.
    if scheme in BUCKETS and ("#" in where or "?" in where):
        raise PretrackError(f"{where}: a folder on a bucket cannot have '#' or '?' in its name")
    if scheme == "hf":
        parse_hub_url(where.rstrip("/"))
    return Url(where.rstrip("/"))


@contextmanager
def reading(file: Location) -> Iterator[None]:
    """Raise AccessError instead of an OSError that says nothing about what the file holds.

    These are passed on, since they do: FileNotFoundError, IsADirectoryError, NotADirectoryError.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except OSError as error:
        raise access_error(file, error) from error


def read_file(file: Location) -> bytes:
    """Read a whole file. Raises FileNotFoundError, AccessError."""
    with reading(file):
        return bucket.read(file) if isinstance(file, Url) else file.read_bytes()


def read_ranges(file: Location, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Read byte ranges of a file, in the given order, and nothing else of it.

    A range beyond the file's end is cut short. Raises FileNotFoundError, AccessError.
    """
    with reading(file):
        if isinstance(file, Url):
            return bucket.read_ranges(file, offsets, sizes)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            # pread allocates the size it is asked for, even where a damaged table asks for
            # terabytes.
            file_size = os.fstat(descriptor).st_size
            return [
                os.pread(descriptor, min(size, file_size), offset)
                for offset, size in zip(offsets, sizes, strict=True)
            ]
        finally:
            os.close(descriptor)


@contextmanager
def open_stream(file: Location) -> Iterator[BinaryIO]:
    """Open a file for reading from front to back.

    Raises FileNotFoundError, AccessError; AccessError also where the block's reading fails.
    """
    with (
        reading(file),
        bucket.open_stream(file) if isinstance(file, Url) else open(file, "rb") as stream,
    ):
        yield stream


def size_of(file: Location) -> int:
    """Give a file's size in bytes. Raises FileNotFoundError, AccessError."""
    with reading(file):
        return bucket.size_of(file) if isinstance(file, Url) else file.stat().st_size


def written_at(file: Location) -> datetime:
    """Tell when a file was last written (UTC). Raises FileNotFoundError, AccessError."""
    with reading(file):
        return (
            bucket.written_at(file)
            if isinstance(file, Url)
            else datetime.fromtimestamp(file.stat().st_mtime, UTC)
        )


def sizes_in(folder: Location) -> dict[str, int]:
    """List the files directly in a folder with their sizes in bytes, without temporary files.

    An absent folder has no files. Raises AccessError.
    """
    with reading(folder):
        if isinstance(folder, Url):
            return bucket.sizes_in(folder)
        sizes = {}
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # deleted since the folder was read
                    if entry.is_file() and not entry.name.startswith(TEMPORARY):
                        sizes[entry.name] = entry.stat().st_size
        return sizes


def folders_in(folder: Location) -> list[str]:
    """List the names of the folders directly in a folder, sorted. Raises AccessError."""
    with reading(folder):
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
    """Open a temporary file that becomes `file` when the block succeeds and is deleted otherwise.

    After a crash or a power cut there is the old file, the new one, or none, never a part of one.
    Raises OSError, for example for a full disk.
    """
    return open_atomic_as(file.parent, lambda: file.name)


def open_atomic_as(folder: Location, name: Callable[[], str]) -> AbstractContextManager[BinaryIO]:
    """Open a file like `open_atomic`, named by its content: `name` is called after the block."""
    return (
        bucket.open_atomic_as(folder, name)
        if isinstance(folder, Url)
        else _open_atomic_on_disk(folder, name)
    )


@contextmanager
def _open_atomic_on_disk(folder: Path, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """Write in `folder`, sync, rename; then sync the folder, so that the name survives too."""
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
    """Write `data` to `file`, whole or not at all. Raises OSError."""
    if isinstance(file, Url):
        bucket.write(file, data)
        return
    with open_atomic(file) as opened:
        opened.write(data)


def delete(file: Location) -> None:
    """Delete a file if it exists. Raises OSError."""
    if isinstance(file, Url):
        bucket.delete(file)
    else:
        file.unlink(missing_ok=True)


def delete_folder(folder: Location) -> None:
    """Delete a folder and everything in it, if it exists. Raises OSError."""
    if isinstance(folder, Url):
        bucket.delete_folder(folder)
    elif folder.exists():
        shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Make names created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def absolute(where: Location) -> Location:
    """Make a path independent of the current folder and resolve `~`. URLs stay as they are."""
    return where if isinstance(where, Url) else where.expanduser().absolute()


def is_permanent_error(error: OSError) -> bool:
    """Tell whether every later write would fail too: the disk is full, read-only or forbidden."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
