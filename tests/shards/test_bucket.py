"""Files on an object store behave like files on a disk, even if the store fails or is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from shards import bucket
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import (
    atomic_write,
    delete,
    delete_folder,
    folders_in,
    open_atomic,
    open_stream,
    parse_location,
    read_file,
    read_ranges,
    size_of,
    sizes_in,
)
from tests.helpers.object_store import BUCKET, Behaviour


@pytest.fixture
def folder(request: pytest.FixtureRequest, store: Behaviour) -> Iterator[Url]:
    yield Url(f"s3://{BUCKET}/{request.node.name}")
    store.fail_every, store.delay_s, store.deny_writes = 0, 0.0, False


def test_what_was_written_is_read(folder: Url) -> None:
    atomic_write(folder / "deep" / "a", b"0123456789")
    with open_atomic(folder / "b") as file:
        file.write(b"abc" * 5_000_000)  # more than one part of a multipart upload
    assert read_file(folder / "deep" / "a") == b"0123456789"
    assert read_ranges(folder / "deep" / "a", [7, 0, 2], [3, 2, 0]) == [b"789", b"01", b""]
    with open_stream(folder / "b") as stream:
        assert (stream.read(4), len(stream.read())) == (b"abca", 15_000_000 - 4)
    assert (size_of(folder / "b"), sizes_in(folder), folders_in(folder)) == (
        15_000_000,
        {"b": 15_000_000},
        ["deep"],
    )
    delete(folder / "b")
    delete(folder / "b")
    delete_folder(folder / "deep")
    assert (sizes_in(folder), folders_in(folder)) == ({}, [])
    with pytest.raises(FileNotFoundError):
        read_file(folder / "b")
    with pytest.raises(FileNotFoundError):
        size_of(folder / "b")


def test_an_unfinished_object_never_appears(folder: Url) -> None:
    with suppress(ZeroDivisionError), open_atomic(folder / "half") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert sizes_in(folder) == {}


def test_an_object_is_created_once_and_replaced_only_if_unchanged(folder: Url) -> None:
    first = bucket.create(folder / "lock", b"1")
    assert first is not None
    assert bucket.create(folder / "lock", b"2") is None
    second = bucket.replace(folder / "lock", b"3", first)
    assert second is not None
    assert bucket.replace(folder / "lock", b"4", first) is None
    assert (
        bucket.read_versioned(folder / "lock").data,
        bucket.read_versioned(folder / "lock").tag,
    ) == (b"3", second)


def test_requests_to_a_failing_store_are_retried(folder: Url, store: Behaviour) -> None:
    store.fail_every, store.delay_s = 3, 0.02
    before = store.failed
    for number in range(8):
        atomic_write(folder / str(number), bytes([number]) * 100)
    assert [read_file(folder / str(number)) for number in range(8)] == [
        bytes([number]) * 100 for number in range(8)
    ]
    assert store.failed > before


def test_a_store_that_may_not_be_written_is_a_permission_error(
    folder: Url, store: Behaviour
) -> None:
    store.deny_writes = True
    with pytest.raises(
        PermissionError, match=r"access is denied.*403 Forbidden.*a_store_that_may_not"
    ) as caught:
        atomic_write(folder / "x", b"1")
    assert "\n" not in str(caught.value)
    assert "RetryError" not in str(caught.value)


def test_ranges_that_lie_close_are_fetched_together(folder: Url, store: Behaviour) -> None:
    atomic_write(folder / "x", bytes(1_000_000))
    requests, read = store.requests, store.bytes_read
    parts = read_ranges(folder / "x", [0, 1000, 500_000, 510_000], [900, 900, 4000, 4000])
    assert [len(part) for part in parts] == [900, 900, 4000, 4000]
    assert store.requests - requests == 2
    assert store.bytes_read - read < 20_000


def test_an_unknown_scheme_is_named_with_the_known_ones() -> None:
    with pytest.raises(PretrackError, match="'ftp://' is not known; use a path, or one of s3://"):
        parse_location("ftp://server/x")


def test_ranges_beyond_the_end_are_cut_short_as_on_a_disk(folder: Url) -> None:
    atomic_write(folder / "x", b"0123456789")
    assert read_ranges(folder / "x", [8, 20, 2], [5, 5, 2]) == [b"89", b"", b"23"]
