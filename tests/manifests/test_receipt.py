"""A shard's name becomes part of paths, and never leads out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.receipt import list_receipts, receipt_path, shard_name, shard_path
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
        f"s3://b/out/receipts/{group}-0123456789abcdef.json"
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
    (tmp_path / "receipts").mkdir()
    for name in ("a-train-000000-00.json", "my copy.json", "a.json.json"):
        (tmp_path / "receipts" / name).write_text("{}")
    assert list_receipts(tmp_path) == ["a-train-000000-00"]
