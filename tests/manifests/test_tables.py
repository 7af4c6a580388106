"""The tables on disk keep their columns: snapshots of earlier versions stay readable."""

from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS

CAMERA = pa.struct(
    [
        ("fx", pa.float32()),
        ("fy", pa.float32()),
        ("cx", pa.float32()),
        ("cy", pa.float32()),
        ("world_to_camera", pa.list_(pa.float32(), 12)),
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
