"""Paths and URLs are told apart, folders may change while they are listed, ranges stay ranges."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import is_permanent_error, parse_location, read_ranges, sizes_in


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
@pytest.mark.parametrize("path", ["bucket/run#1", "bucket/run?1/shards", "bucket#1"])
def test_a_folder_that_a_url_would_cut_is_refused(scheme: str, path: str) -> None:
    with pytest.raises(
        PretrackError,
        match=rf"^{scheme}://bucket.* a folder on a bucket cannot have '#' or '\?' in its name$",
    ):
        parse_location(f"{scheme}://{path}")


def test_other_paths_and_urls_may_have_such_names() -> None:
    assert parse_location("runs/run#1?") == Path("runs/run#1?")
    assert parse_location("https://host/a?token=1") == Url("https://host/a?token=1")


def test_ranges_of_a_file_are_read_in_the_order_asked(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert read_ranges(tmp_path / "f", [7, 0, 8, 20], [2, 3, 1 << 60, 5]) == [
        b"78",
        b"012",
        b"89",
        b"",
    ]


@pytest.mark.parametrize(
    ("number", "permanent"),
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EROFS, True),
        (errno.EACCES, True),
        (errno.EIO, False),
        (errno.ENOENT, False),
    ],
)
def test_errors_that_every_later_write_would_meet_are_told_apart(
    number: int, permanent: bool
) -> None:
    assert is_permanent_error(OSError(number, "no")) is permanent


def test_files_that_vanish_do_not_hide_the_others(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"stays{number}").write_bytes(b"12")
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            (tmp_path / "goes").write_bytes(b"1")
            (tmp_path / "goes").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            sizes = sizes_in(tmp_path)
            assert {name: sizes[name] for name in sizes if name != "goes"} == {
                f"stays{n}": 2 for n in range(3)
            }
    finally:
        ended.set()
        thread.join()
    assert sizes_in(tmp_path / "nowhere") == {}
