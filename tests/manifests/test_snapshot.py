"""Snapshots are complete or absent, never change, and are replaced atomically."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from manifests.snapshot import current_snapshot, list_snapshots, open_snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, write_table
from shards.errors import PretrackError

EMPTY = {
    name: pa.Table.from_pylist([], schema=schema)
    for name, schema in (
        ("videos", VIDEOS),
        ("clips", CLIPS),
        ("shards", SHARDS),
        ("failures", FAILURES),
    )
}


def test_the_newest_snapshot_is_current_and_the_old_one_stays_readable(tmp_path: Path) -> None:
    first = publish_snapshot(tmp_path, EMPTY, {"grid": 16})
    second = publish_snapshot(tmp_path, EMPTY, {"grid": 24})
    assert open_snapshot(tmp_path).name == second.name == "000002"
    assert open_snapshot(tmp_path, first.name).settings == {"grid": 16}
    assert list_snapshots(tmp_path) == ["000001", "000002"]
    assert second.clips.schema == CLIPS


def test_a_publication_that_fails_leaves_the_previous_snapshot(tmp_path: Path) -> None:
    publish_snapshot(tmp_path, EMPTY, {})
    broken = {**EMPTY, "shards": "not a table"}
    with pytest.raises(AttributeError):
        publish_snapshot(tmp_path, broken, {})  # type: ignore[arg-type]
    assert list_snapshots(tmp_path) == ["000001"]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["000001"]


def test_a_publication_killed_before_the_pointer_leaves_the_previous_snapshot_current(
    tmp_path: Path,
) -> None:
    publish_snapshot(tmp_path, EMPTY, {})
    pointer = (tmp_path / "current.json").read_bytes()
    publish_snapshot(tmp_path, EMPTY, {})
    # As if the second publication had been killed before it wrote this file.
    (tmp_path / "current.json").write_bytes(pointer)
    assert current_snapshot(tmp_path) == "000001"
    assert publish_snapshot(tmp_path, EMPTY, {}).name == "000003"
    assert current_snapshot(tmp_path) == "000003"


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"null", b"7"])
def test_damaged_settings_are_reported_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    snapshot = publish_snapshot(tmp_path, EMPTY, {"grid": 16})
    (snapshot.folder / "settings.json").write_bytes(content)  # type: ignore[union-attr]
    with pytest.raises(
        PretrackError,
        match=rf"the settings {tmp_path}/snapshots/000001/settings\.json cannot be read",
    ):
        snapshot.settings  # noqa: B018 - reading is what fails


def test_missing_and_damaged_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(PretrackError, match="holds no finished build: run 'pretrack build'"):
        open_snapshot(tmp_path)
    publish_snapshot(tmp_path, EMPTY, {})
    with pytest.raises(PretrackError, match=r"no snapshot '7' \(there are: 000001\)"):
        open_snapshot(tmp_path, "7")
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(PretrackError, match=r"current\.json is damaged"):
        open_snapshot(tmp_path)
    (tmp_path / "current.json").unlink()
    (tmp_path / "snapshots/000001/clips.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(PretrackError, match=r"clips\.parquet cannot be read"):
        open_snapshot(tmp_path, "000001").clips  # noqa: B018 - reading is what fails
    write_table(
        tmp_path / "snapshots/000001/clips.parquet",
        EMPTY["clips"].drop_columns(["points", "anchor_sizes"]),
    )
    with pytest.raises(
        PretrackError,
        match=r"clips\.parquet lacks points, anchor_sizes: another version of pretrack wrote it",
    ):
        open_snapshot(tmp_path, "000001").clips  # noqa: B018
