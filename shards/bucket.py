"""Files that lie on an object store or a web server (`s3://`, `gs://`, `az://`, `http(s)://`), by obstore.

obstore was chosen over pyarrow.fs and fsspec because an object appears only when it is whole, whatever happens to the writer; it
can put an object only if none is there (build locks need that); ranged reads that lie close become one request; and it retries.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …) or the machine's role.
The store's threads do not survive a fork: a process that forks after it has used a bucket must not use one in the child.
"""

from __future__ import annotations

import errno
import io
import mimetypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import obstore
import obstore.exceptions as errors
from obstore.store import from_url

from shards.errors import PretrackError

T = TypeVar("T")

BUCKETS = ("s3", "gs", "az")
SCHEMES = (*BUCKETS, "http", "https")
COALESCE = 8 * 1024
"""Bytes between two wanted ranges below which both are fetched by one request: more than a tar header, less than a frame."""


@dataclass(frozen=True)
class Url:
    """Where a file or folder lies: `Url("s3://bucket/folder") / "file"`, much as `pathlib.Path` does it."""

    url: str

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.url.rstrip('/')}/{name}") if name else self

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Url:
        """The folder that it lies in."""
        return Url(self.url.rstrip("/").rsplit("/", 1)[0])


@dataclass(frozen=True)
class ObjectTag:
    """What tells whether an object is still the same: S3 and Azure compare `e_tag`, Google's store compares `version`."""

    e_tag: str | None
    version: str | None


@dataclass(frozen=True)
class VersionedObject:
    """An object's content with its tag, and when it was written, by the store's clock."""

    data: bytes
    tag: ObjectTag
    written_at: datetime


def read(url: Url) -> bytes:
    """The whole object. Raises OSError."""
    store, path = _at(url)
    return _asked(url, lambda: bytes(obstore.get(store, path).bytes()))


def read_versioned(url: Url) -> VersionedObject:
    """The whole object, and its tag. Raises OSError."""
    store, path = _at(url)

    def get() -> VersionedObject:
        found = obstore.get(store, path)
        return VersionedObject(bytes(found.bytes()), _tag(found.meta), found.meta["last_modified"])

    return _asked(url, get)


def read_ranges(url: Url, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Parts of an object, in the order asked; those close to each other by one request. A part beyond the end is cut short.

    Raises OSError, and PretrackError where a web server sends no parts of files.
    """
    store, path = _at(url)
    wanted = [(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True) if size]
    if not wanted:
        return [b"" for _ in sizes]
    starts, ends = ([part[side] for part in wanted] for side in (0, 1))
    parts = iter(
        _asked(
            url,
            lambda: obstore.get_ranges(store, path, starts=starts, ends=ends, coalesce=COALESCE),
        )
    )
    return [bytes(next(parts)) if size else b"" for size in sizes]


def open_stream(url: Url) -> io.BufferedReader:
    """The object, read from front to back. Raises OSError, now or while it is read."""
    store, path = _at(url)
    return io.BufferedReader(
        _Stream(url, _asked(url, lambda: obstore.open_reader(store, path, buffer_size=8 << 20))),
        1 << 20,
    )


class _Stream(io.RawIOBase):
    """An obstore reader whose errors are OSErrors."""

    def __init__(self, url: Url, reader: Any) -> None:
        self._url, self._reader = url, reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = _asked(self._url, lambda: bytes(self._reader.read(len(buffer))))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def download(url: Url) -> Iterator[BinaryIO]:
    """The object in a temporary file, got by one plain request: for servers that send no parts of files. Raises OSError."""
    store, path = _at(url)
    with TemporaryFile(prefix="pretrack-") as file:
        _asked(url, lambda: file.writelines(obstore.get(store, path).stream()))
        file.seek(0)
        yield file  # type: ignore[misc]


def size_of(url: Url) -> int:
    """Bytes. Raises FileNotFoundError, OSError."""
    store, path = _at(url)
    return int(_asked(url, lambda: obstore.head(store, path))["size"])


def written_at(url: Url) -> datetime:
    """When the object was put, by the store's clock. Raises FileNotFoundError, OSError."""
    store, path = _at(url)
    written: datetime = _asked(url, lambda: obstore.head(store, path))["last_modified"]
    return written


def sizes_in(url: Url) -> dict[str, int]:
    """The objects directly in a folder with their sizes in bytes; none if there is no such folder. Raises OSError."""
    store, path = _at(url)
    found = _asked(url, lambda: obstore.list_with_delimiter(store, path))
    return {item["path"].rsplit("/", 1)[-1]: item["size"] for item in found["objects"]}


def folders_in(url: Url) -> list[str]:
    """The folders directly in a folder. Raises OSError."""
    store, path = _at(url)
    found = _asked(url, lambda: obstore.list_with_delimiter(store, path))
    return sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in found["common_prefixes"])


def write(url: Url, data: bytes | BinaryIO) -> None:
    """Puts an object, whole or not at all, of the type that its name says: a browser shows a page only if it is said to be one.

    Raises OSError.
    """
    store, path = _at(url)
    kind, _ = mimetypes.guess_type(url.name)
    attributes: Any = {"Content-Type": kind} if kind else None
    _asked(url, lambda: obstore.put(store, path, data, attributes=attributes))


def create(url: Url, data: bytes) -> ObjectTag | None:
    """Puts an object only if there is none: its tag, or None if there was one. Raises OSError."""
    store, path = _at(url)
    try:
        return _tag(_asked(url, lambda: obstore.put(store, path, data, mode="create")))
    except FileExistsError:
        return None


def replace(url: Url, data: bytes, tag: ObjectTag) -> ObjectTag | None:
    """Puts an object only if the one there has this tag: the new tag, or None if it was changed meanwhile. Raises OSError."""
    store, path = _at(url)
    known: Any = {name: value for name, value in asdict(tag).items() if value is not None}
    try:
        return _tag(_asked(url, lambda: obstore.put(store, path, data, mode=known)))
    except (FileExistsError, FileNotFoundError):
        return None


def _tag(meta: Any) -> ObjectTag:
    return ObjectTag(meta["e_tag"], meta["version"])


@contextmanager
def open_atomic_as(folder: Url, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """A local file that becomes the object `name()` of a folder when the block ends well. Raises OSError."""
    with TemporaryFile(prefix="pretrack-") as file:
        yield file  # type: ignore[misc]
        file.flush()
        file.seek(0)
        write(folder / name(), file)  # type: ignore[arg-type]


def delete(url: Url) -> None:
    """Deletes an object if it is there. Raises OSError."""
    store, path = _at(url)
    try:
        _asked(url, lambda: obstore.delete(store, path))
    except FileNotFoundError:
        return


def delete_folder(url: Url) -> None:
    """Deletes all objects below a folder. Raises OSError."""
    store, path = _at(url)
    for batch in _asked(url, lambda: list(obstore.list(store, f"{path}/"))):
        _asked(url, lambda batch=batch: obstore.delete(store, [item["path"] for item in batch]))  # type: ignore[misc]


def _at(url: Url) -> tuple[Any, str]:
    """The store, and the path in it."""
    parts = urlsplit(url.url)
    return _store(
        f"{parts.scheme}://{parts.netloc}", os.environ.get("AWS_ENDPOINT_URL", ""), os.getpid()
    ), parts.path.strip("/")


@cache
def _store(root: str, endpoint: str, process: int) -> Any:
    insecure = root.startswith("http:") or endpoint.startswith("http:")
    return from_url(
        root,
        client_options={"timeout": "120s", "connect_timeout": "10s", "allow_http": insecure},
        retry_config={"max_retries": 8, "retry_timeout": timedelta(minutes=3)},
    )


def _asked(url: Url, question: Callable[[], T]) -> T:
    """What the store answers; its errors as the OSErrors that a local disk would raise, in one sentence.

    A web server that sends no parts of files is a PretrackError: every clip on it would fail, and none is damaged.
    """
    try:
        return question()
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "is not there", str(url)) from error
    except (errors.AlreadyExistsError, errors.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, "was put by somebody else", str(url)) from error
    except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
        raise PermissionError(
            errno.EACCES, f"access is denied: {_sentence(error)}", str(url)
        ) from error
    except errors.NotSupportedError as error:
        if "Range" not in str(error):
            raise OSError(
                errno.ENOTSUP, f"the store cannot do that: {_sentence(error)}", str(url)
            ) from error
        raise PretrackError(
            f"{url}: this web server sends files as a whole and no parts of them (it ignores 'Range'): use one that knows ranges, "
            "as nginx does, or stream whole tars with 'trainer.data.streaming'"
        ) from error
    except (errors.BaseError, OSError) as error:
        raise OSError(errno.EIO, f"the store failed: {_sentence(error)}", str(url)) from error


def _sentence(error: Exception) -> str:
    """An error of obstore without its appendix for programmers."""
    return " ".join(str(error).split("Debug source:")[0].split())[:600]
