"""A snapshot that cannot be used is named in the log and treated as missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.planning.existing_shards import read_existing_shards
from shards.errors import PretrackError
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips


def test_only_the_current_snapshot_must_not_be_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        publish_clips(tmp_path, [grey_clip("made-a-000000")])
    old, current = (
        tmp_path / "snapshots" / name / "shards.parquet" for name in ("000001", "000002")
    )
    whole = old.read_bytes()
    damaged = whole[:4] + bytes(200) + whole[204:]
    old.write_bytes(damaged)
    existing = read_existing_shards(tmp_path)
    assert existing.current is not None
    assert existing.current.name == "000002"
    assert len(existing.shards) == 1
    assert f"{old} cannot be read" in caplog.text
    assert "left out" in caplog.text
    current.write_bytes(damaged)
    with pytest.raises(PretrackError, match=r"000002/shards\.parquet cannot be read"):
        read_existing_shards(tmp_path)
