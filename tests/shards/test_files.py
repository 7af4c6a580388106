"""Places are understood as they were meant, and folders may change while they are listed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import parse_location, sizes_in


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
@pytest.mark.parametrize("path", ["bucket/run#1", "bucket/run?1/shards", "bucket#1"])
def test_a_folder_that_a_url_would_cut_is_refused(scheme: str, path: str) -> None:
    with pytest.raises(
        PretrackError,
        match=rf"^{scheme}://bucket.* a folder on a bucket cannot have '#' or '\?' in its name$",
    ):
        parse_location(f"{scheme}://{path}")


def test_other_places_may_have_such_names() -> None:
    assert parse_location("runs/run#1?") == Path("runs/run#1?")
    assert parse_location("https://host/a?token=1") == Url("https://host/a?token=1")


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
