"""The tables keep their columns, so that earlier snapshots stay readable, and count right."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from manifests.tables import (
    CLIPS,
    FAILURES,
    SHARDS,
    VIDEOS,
    columns_of,
    failure_counts,
    open_table,
    read_table,
    rows_by_shard,
    table_of,
    video_identifiers,
    write_table,
)
from shards.errors import FormatVersionError, PretrackError

CAMERA = pa.struct(
    [
        ("fx", pa.float32()),
        ("fy", pa.float32()),
        ("cx", pa.float32()),
        ("cy", pa.float32()),
        ("world_to_camera", pa.list_(pa.float32(), 12)),
    ]
)
DEPTH = pa.struct(
    [
        ("encoding", pa.string()),
        ("files", pa.list_(pa.string())),
        ("scales", pa.list_(pa.float64())),
        ("masks", pa.list_(pa.string())),
    ]
)
COLUMNS = {
    "videos": [
        ("source", pa.string()),
        ("dataset", pa.string()),
        ("video_id", pa.string()),
        ("sequence", pa.string()),
        ("split", pa.string()),
        ("root", pa.string()),
        ("file", pa.string()),
        ("image_files", pa.list_(pa.string())),
        ("frame_numbers", pa.list_(pa.int64())),
        ("timestamps", pa.list_(pa.float64())),
        ("cameras", pa.list_(CAMERA)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("cuts", pa.list_(pa.int32())),
        ("frames", pa.int32()),
        ("identity", pa.string()),
        ("scan", pa.string()),
        ("terms", pa.string()),
        ("viewpoint_quality", pa.float32()),
        ("parts", pa.list_(pa.string())),
        ("depth", DEPTH),
        ("mask_files", pa.list_(pa.string())),
    ],
    "clips": [
        ("key", pa.string()),
        ("source", pa.string()),
        ("dataset", pa.string()),
        ("video_id", pa.string()),
        ("sequence", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("anchors", pa.list_(pa.int32())),
        ("points", pa.int32()),
        ("visible_fraction", pa.float32()),
        ("motion", pa.float32()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("tracks_offset", pa.int64()),
        ("tracks_size", pa.int64()),
        ("anchor_sizes", pa.list_(pa.int64())),
        ("frame_offsets", pa.list_(pa.int64())),
        ("frame_sizes", pa.list_(pa.int64())),
        ("checksum", pa.string()),
        ("scores_offset", pa.int64()),
        ("scores_size", pa.int64()),
        ("posed", pa.bool_()),
        ("turn", pa.float32()),
        ("baseline", pa.float32()),
        ("epipolar_px", pa.float32()),
        ("epipolar_inliers", pa.float32()),
        ("reprojection_px", pa.float32()),
        ("cycle_px", pa.float32()),
        ("viewpoint_quality", pa.float32()),
        ("parts", pa.list_(pa.string())),
        ("depth_offsets", pa.list_(pa.int64())),
        ("depth_sizes", pa.list_(pa.int64())),
        ("mask_offsets", pa.list_(pa.int64())),
        ("mask_sizes", pa.list_(pa.int64())),
        ("maps_checksum", pa.string()),
    ],
    "shards": [
        ("shard", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("clips", pa.int32()),
        ("bytes", pa.int64()),
        ("checksum", pa.string()),
        ("frames_fingerprint", pa.string()),
        ("tracks_fingerprint", pa.string()),
        ("frames_settings", pa.string()),
        ("tracks_settings", pa.string()),
        ("decode_seconds", pa.float64()),
        ("track_seconds", pa.float64()),
        ("write_seconds", pa.float64()),
        ("tries", pa.int32()),
        ("scores", pa.int32()),
    ],
    "failures": [
        ("source", pa.string()),
        ("video_id", pa.string()),
        ("clip", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("shard", pa.string()),
    ],
}
SCHEMAS = {"videos": VIDEOS, "clips": CLIPS, "shards": SHARDS, "failures": FAILURES}


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_columns_on_disk_stay(table: str) -> None:
    """Check names, order, types, nullability and metadata against a list written out by hand.

    The schemas themselves are derived from the row dataclasses.
    """
    schema, expected = SCHEMAS[table], pa.schema(COLUMNS[table])
    assert schema.equals(expected, check_metadata=True)
    assert all(column.nullable for column in schema)


def test_rows_are_counted_per_shard_and_failures_per_stage_and_reason() -> None:
    rows = [
        {"shard": "b", "stage": "scan", "reason": "x"},
        {"shard": "a", "stage": "scan", "reason": "y"},
        {"shard": "b", "stage": "scan", "reason": "z"},
        {"shard": "b", "stage": "track", "reason": "y"},
        {"shard": "b", "stage": "scan", "reason": "y"},
    ]
    failures = table_of(rows, FAILURES)
    assert rows_by_shard(failures) == {"b": 4, "a": 1}
    counts = failure_counts(failures)
    assert counts[0] == ("scan", "y", 2), "the most frequent first"
    assert sorted(counts[1:]) == [("scan", "x", 1), ("scan", "z", 1), ("track", "y", 1)]
    assert [count for *_, count in failure_counts(FAILURES.empty_table())] == []


def test_videos_of_two_sources_with_the_same_name_are_told_apart() -> None:
    rows = [{"source": "a", "video_id": "1"}, {"source": "b", "video_id": "1"}]
    assert len(set(video_identifiers(table_of(rows, VIDEOS)).to_pylist())) == 2


def test_the_columns_of_a_file_are_read_from_its_footer(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", SHARDS.empty_table())
    assert columns_of(tmp_path / "t.parquet") == SHARDS.names
    (tmp_path / "short.parquet").write_bytes(b"PAR1")
    for file in ("short.parquet", "none.parquet"):
        with pytest.raises(PretrackError, match=rf"the table .*{file} cannot be read"):
            columns_of(tmp_path / file)


def test_a_missing_column_is_another_versions(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", pa.table({"a": [1], "b": [2]}))
    assert read_table(tmp_path / "t.parquet", ["b"]).to_pylist() == [{"b": 2}]
    with pytest.raises(
        FormatVersionError, match="lacks c, d: another version of pretrack wrote it"
    ):
        read_table(tmp_path / "t.parquet", ["c", "a", "d"])


def test_columns_added_since_a_table_was_written_are_null(tmp_path: Path) -> None:
    """A table of an earlier version, without the columns of scores, is read; others are refused."""
    earlier = [name for name, _ in COLUMNS["clips"][:22]]
    row = dict.fromkeys(earlier) | {"key": "made-a", "frames": 8}
    table = table_of([row], CLIPS)
    write_table(tmp_path / "clips.parquet", table.select(earlier))

    read = read_table(tmp_path / "clips.parquet", ["key", "epipolar_px", "posed", "frames"])
    assert read.to_pylist() == [{"key": "made-a", "epipolar_px": None, "posed": None, "frames": 8}]
    assert read_table(tmp_path / "clips.parquet", CLIPS.names).schema == CLIPS
    opened = open_table(tmp_path / "clips.parquet", CLIPS.names)
    assert opened.to_table(["turn", "frames"]).to_pylist() == [{"turn": None, "frames": 8}]

    write_table(tmp_path / "other.parquet", table.drop_columns(["motion"]))
    with pytest.raises(FormatVersionError, match="lacks motion: another version"):
        read_table(tmp_path / "other.parquet", ["key", "motion", "turn"])
