"""A shard's name becomes part of paths, and never leads out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.receipt import (
    Receipt,
    list_receipts,
    read_receipt,
    receipt_path,
    shard_name,
    shard_path,
    write_receipt,
)
from manifests.rows import ShardRow
from shards.bucket import Url
from shards.errors import PretrackError

LONGEST = "My_source-" + 22 * "x"


@pytest.mark.parametrize(
    "group", ["co3d-train-000000", "youtube_vos-eval-1234567", f"{LONGEST}-train-000001"]
)
def test_a_shards_name_gives_the_paths_of_its_tar_and_receipt(group: str, tmp_path: Path) -> None:
    name = shard_name(group, "0123456789abcdef")
    assert shard_path(tmp_path, name) == tmp_path / "shards" / f"{group}-0123456789abcdef.tar"
    assert receipt_path(Url("s3://b/out"), name) == Url(
        f"s3://b/out/.receipts/{group}-0123456789abcdef.json"
    )


@pytest.mark.parametrize(
    "name", ["../../victim", "a/b", "", ".", "..", "a b", "a.b", "a\n", "a#b", "ä"]
)
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    for path in (shard_path, receipt_path):
        with pytest.raises(
            PretrackError, match=rf"the tables in {tmp_path} are damaged: .* is not a shard name"
        ):
            path(tmp_path, name)


def test_receipts_of_other_names_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".receipts").mkdir()
    for name in ("a-train-000000-00.json", "my copy.json", "a.json.json"):
        (tmp_path / ".receipts" / name).write_text("{}")
    assert list_receipts(tmp_path) == ["a-train-000000-00"]


def receipt(shard: str, tries: int) -> Receipt:
    row = ShardRow(
        shard=shard,
        group="",
        source="",
        split="train",
        clips=0,
        bytes=0,
        checksum="",
        frames_fingerprint="",
        tracks_fingerprint="",
        frames_settings="",
        tracks_settings="",
        decode_seconds=1.0,
        track_seconds=1.0,
        write_seconds=1.0,
        tries=tries,
    )
    return Receipt(row, (), (), ())


def test_receipts_of_0_1_are_read_unless_there_is_a_newer_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_receipt(tmp_path, receipt(name, tries=0))
    (tmp_path / ".receipts").rename(tmp_path / "receipts")
    write_receipt(tmp_path, receipt("b", tries=1))
    write_receipt(tmp_path, receipt("c", tries=2))
    assert list_receipts(tmp_path) == ["a", "b", "c"]
    assert [read_receipt(tmp_path, name).shard.tries for name in "abc"] == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / ".receipts").iterdir()) == ["b.json", "c.json"]
    with pytest.raises(PretrackError, match=r"the receipt .*receipts/d\.json is missing"):
        read_receipt(tmp_path, "d")
    (tmp_path / "receipts" / "a.json").write_text("{")
    with pytest.raises(PretrackError, match=r"the receipt .*/receipts/a\.json is damaged"):
        read_receipt(tmp_path, "a")
