"""Read and write files on object stores and web servers, by obstore.

Schemes: `s3://`, `gs://`, `az://`; `http(s)://` and `hf://` (see `shards.hub`) for reading.

Why obstore and not pyarrow.fs or fsspec: an object appears only when it is whole, whatever happens
to its writer; an object can be put only if none exists (build locks need that); nearby byte ranges
are read by one request; transient errors are retried.

Credentials of S3 are found by `shards.credentials`; those of Google and Azure come from the
environment (GOOGLE_APPLICATION_CREDENTIALS …) or from the machine's role (`shards.cloud_roles`).
The store's threads do not survive a fork: after a process has used a bucket, a forked child must
not use one.
"""

from __future__ import annotations

import io
import mimetypes
import os
from bisect import bisect_right
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

from shards import hub
from shards.cloud_roles import check_role
from shards.credentials import environment_of_store, s3_options, s3_region
from shards.errors import AccessError, PretrackError
from shards.store_errors import has_answer, is_beyond_the_end, store_error

T = TypeVar("T")

BUCKETS = ("s3", "gs", "az")
SCHEMES = (*BUCKETS, "hf", "http", "https")
COALESCE = 8 * 1024
"""Ranges closer than this many bytes share a request: more than a tar header, less than a frame."""

_CLIENT: Any = {"timeout": "120s", "connect_timeout": "10s"}
_RETRIES: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}


@dataclass(frozen=True)
class Url:
    """The URL of a file or folder, used like a `Path`: `Url("s3://bucket/folder") / "file"`."""

    url: str

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.url.rstrip('/')}/{name}") if name else self

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Url:
        """The folder that contains it."""
        return Url(self.url.rstrip("/").rsplit("/", 1)[0])


@dataclass(frozen=True)
class ObjectTag:
    """Identify an object's version: S3 and Azure compare `e_tag`, Google compares `version`."""

    e_tag: str | None
    version: str | None


@dataclass(frozen=True)
class VersionedObject:
    """An object's content with its tag and the time of its last write, by the store's clock."""

    data: bytes
    tag: ObjectTag
    written_at: datetime


def read(url: Url) -> bytes:
    """Read a whole object. Raises OSError."""
    store, path = _resolve(url)
    return _call(url, lambda: bytes(obstore.get(store, path).bytes()))


def read_versioned(url: Url) -> VersionedObject:
    """Read a whole object together with its tag. Raises OSError."""
    store, path = _resolve(url)

    def get() -> VersionedObject:
        result = obstore.get(store, path)
        meta = result.meta
        return VersionedObject(bytes(result.bytes()), _tag(meta), meta["last_modified"])

    return _call(url, get)


def read_ranges(url: Url, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """Read byte ranges of an object, in the given order; nearby ranges share a request.

    A range beyond the object's end is cut short. Raises OSError, and PretrackError if a web server
    does not support ranges.
    """
    store, path = _resolve(url)
    # obstore crashes if a request for several ranges is answered only in part. So ranges are joined
    # here, into spans too far apart for obstore to join.
    spans: list[list[int]] = []
    for offset, size in sorted(zip(offsets, sizes, strict=True)):
        if not size:
            continue
        if spans and offset - spans[-1][1] <= COALESCE:
            spans[-1][1] = max(spans[-1][1], offset + size)
        else:
            spans.append([offset, offset + size])
    parts = _read_spans(url, store, path, spans)
    starts = [start for start, _ in spans]
    data = []
    for offset, size in zip(offsets, sizes, strict=True):
        span = bisect_right(starts, offset) - 1
        first = offset - starts[span] if size else 0
        data.append(parts[span][first : first + size] if size else b"")
    return data


def _read_spans(url: Url, store: Any, path: str, spans: list[list[int]]) -> list[bytes]:
    """Read spans of bytes, given as [start, end]; spans are cut at the object's end."""
    if not spans:
        return []
    starts, ends = ([span[side] for span in spans] for side in (0, 1))
    try:
        parts = _call(
            url, lambda: obstore.get_ranges(store, path, starts=starts, ends=ends, coalesce=0)
        )
        return [bytes(part) for part in parts]
    except OSError as error:
        if not is_beyond_the_end(error.__cause__):
            raise
    # A store refuses all ranges if one of them begins after the object's end.
    size = size_of(url)
    inside = [[start, min(end, size)] for start, end in spans if start < size]
    return _read_spans(url, store, path, inside) + [b""] * (len(spans) - len(inside))


def open_stream(url: Url) -> io.BufferedReader:
    """Open an object for reading from front to back. Raises OSError, now or while reading."""
    store, path = _resolve(url)
    reader = _call_head(
        url, store, path, lambda: obstore.open_reader(store, path, buffer_size=8 << 20)
    )
    return io.BufferedReader(_Stream(url, reader), 1 << 20)


class _Stream(io.RawIOBase):
    """An obstore reader whose errors are translated to OSErrors."""

    def __init__(self, url: Url, reader: Any) -> None:
        self._url, self._reader = url, reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = _call(self._url, lambda: bytes(self._reader.read(len(buffer))))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def download(url: Url) -> Iterator[BinaryIO]:
    """Download an object into a temporary file, by one request without ranges.

    This also works with web servers that do not support ranges. Raises OSError.
    """
    store, path = _resolve(url)
    with TemporaryFile(prefix="pretrack-") as file:
        _call(url, lambda: file.writelines(obstore.get(store, path).stream()))
        file.seek(0)
        yield file  # type: ignore[misc]


def size_of(url: Url) -> int:
    """Give an object's size in bytes. Raises FileNotFoundError, OSError."""
    return int(_head(url)["size"])


def written_at(url: Url) -> datetime:
    """Tell when an object was put, by the store's clock. Raises FileNotFoundError, OSError."""
    if _is_on_hub(url):
        return hub.written_at(url.url)
    written: datetime = _head(url)["last_modified"]
    return written


def _head(url: Url) -> Any:
    """Ask for an object's size and time. Raises FileNotFoundError, OSError."""
    store, path = _resolve(url)
    return _call_head(url, store, path, lambda: obstore.head(store, path))


def sizes_in(url: Url) -> dict[str, int]:
    """List the objects directly in a folder with their sizes in bytes.

    An absent folder has no objects. Raises OSError.
    """
    if _is_on_hub(url):
        return {name: size for name, size in hub.entries_in(url.url) if size is not None}
    store, path = _resolve(url)
    listing = _call(url, lambda: obstore.list_with_delimiter(store, path))
    return {item["path"].rsplit("/", 1)[-1]: item["size"] for item in listing["objects"]}


def folders_in(url: Url) -> list[str]:
    """List the names of the folders directly in a folder, sorted. Raises OSError."""
    if _is_on_hub(url):
        return sorted(name for name, size in hub.entries_in(url.url) if size is None)
    store, path = _resolve(url)
    listing = _call(url, lambda: obstore.list_with_delimiter(store, path))
    return sorted(prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in listing["common_prefixes"])


def write(url: Url, data: bytes | BinaryIO) -> None:
    """Put an object, whole or not at all. Raises OSError.

    Its content type follows from its name: browsers show a page only if it is declared as one.
    """
    store, path = _resolve_writable(url)
    content_type, _ = mimetypes.guess_type(url.name)
    attributes: Any = {"Content-Type": content_type} if content_type else None
    _call(url, lambda: obstore.put(store, path, data, attributes=attributes))


def create(url: Url, data: bytes) -> ObjectTag | None:
    """Put an object if none exists; returns its tag, or None if one existed. Raises OSError."""
    store, path = _resolve_writable(url)
    try:
        return _tag(_call(url, lambda: obstore.put(store, path, data, mode="create")))
    except FileExistsError:
        return None


def replace(url: Url, data: bytes, tag: ObjectTag) -> ObjectTag | None:
    """Put an object only if the existing one still has this tag (compare and swap).

    Returns the new tag, or None if the object was changed or deleted meanwhile. Raises OSError.
    """
    store, path = _resolve_writable(url)
    condition: Any = {name: value for name, value in asdict(tag).items() if value is not None}
    try:
        return _tag(_call(url, lambda: obstore.put(store, path, data, mode=condition)))
    except (FileExistsError, FileNotFoundError):
        return None


def _tag(meta: Any) -> ObjectTag:
    return ObjectTag(meta["e_tag"], meta["version"])


@contextmanager
def open_atomic_as(folder: Url, name: Callable[[], str]) -> Iterator[BinaryIO]:
    """Open a local file; it becomes the object `name()` if the block succeeds. Raises OSError."""
    with TemporaryFile(prefix="pretrack-") as file:
        yield file  # type: ignore[misc]
        file.flush()
        file.seek(0)
        write(folder / name(), file)  # type: ignore[arg-type]


def delete(url: Url) -> None:
    """Delete an object if it exists. Raises OSError."""
    store, path = _resolve_writable(url)
    try:
        _call(url, lambda: obstore.delete(store, path))
    except FileNotFoundError:
        return


def delete_folder(url: Url) -> None:
    """Delete all objects below a folder. Raises OSError."""
    store, path = _resolve_writable(url)
    for batch in _call(url, lambda: list(obstore.list(store, f"{path}/"))):
        _call(url, lambda batch=batch: obstore.delete(store, [item["path"] for item in batch]))  # type: ignore[misc]


def _is_on_hub(url: Url) -> bool:
    return url.url.startswith("hf:")


def _resolve_writable(url: Url) -> tuple[Any, str]:
    """Give the store like `_resolve`. Raises PretrackError for a hub, which is only read here."""
    if _is_on_hub(url):
        raise PretrackError(f"{url}: a hub can only be read; 'pretrack publish' writes to one")
    return _resolve(url)


def _resolve(url: Url) -> tuple[Any, str]:
    """Give the store that a URL leads to, and the path in it.

    Raises AccessError if there are no credentials, or if the store needs other settings.
    """
    if _is_on_hub(url):
        place = hub.parse_hub_url(url.url)
        return _hub_store(place.root, hub.token(), os.getpid()), place.path
    parts = urlsplit(url.url)
    try:
        store = _store(f"{parts.scheme}://{parts.netloc}", environment_of_store(), os.getpid())
    except (PretrackError, errors.BaseError) as error:
        reason = str(error).split("\n\nDebug source:")[0]
        raise AccessError(f"{url} cannot be reached: {reason}") from error
    return store, parts.path.strip("/")


@cache
def _store(root: str, environment: tuple[str, ...], process: int) -> Any:
    """Open a store. The cache's key has the process, since a store does not survive a fork."""
    options = s3_options() if root.startswith("s3:") else {}
    check_role(root.split(":")[0])
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    insecure = root.startswith("http:") or endpoint.startswith("http:")
    return from_url(
        root, client_options=_CLIENT | {"allow_http": insecure}, retry_config=_RETRIES, **options
    )


@cache
def _hub_store(root: str, token: str, process: int) -> Any:
    """Open a repository of a hub by HTTP. The token is not sent on to where the hub redirects."""
    client = _CLIENT | {"allow_http": root.startswith("http:")}
    if token:
        client["default_headers"] = {"authorization": f"Bearer {token}"}
    return from_url(root, client_options=client, retry_config=_RETRIES)


def _call(url: Url, request: Callable[[], T]) -> T:
    """Call the store, and translate its errors by `store_error`."""
    try:
        return request()
    except (errors.BaseError, OSError) as error:
        region = s3_region() if url.url.startswith("s3:") else ""
        raise store_error(error, str(url), region) from error


def _call_head(url: Url, store: Any, path: str, request: Callable[[], T]) -> T:
    """Call the store like `_call`, for a HEAD request, whose response cannot give a reason."""

    def request_with_reason() -> T:
        try:
            return request()
        except errors.BaseError as error:
            if has_answer(error):
                obstore.get(store, path)  # fails as well, with the reason in its response
            raise

    return _call(url, request_with_reason)
