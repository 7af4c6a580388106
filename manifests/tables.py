"""The columns of the Parquet tables: what is known of videos, clips, shards and failures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from shards.clip import ClipInfo
from shards.errors import FormatVersionError, PretrackError
from shards.files import Location, open_atomic, read_file, read_ranges, size_of
from shards.writer import ByteRange, ClipMembers

CAMERA = pa.struct(
    [
        ("fx", pa.float32()),
        ("fy", pa.float32()),
        ("cx", pa.float32()),
        ("cy", pa.float32()),
        ("world_to_camera", pa.list_(pa.float32(), 12)),
    ]
)

VIDEOS = pa.schema(
    [
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
    ]
)
"""One row a usable video. `frames` is how many there really are; `scan` says which scan settings counted them ("" for images);
`width` and `height` are 0 where they are only known once an image is opened."""

CLIPS = pa.schema(
    [
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
    ]
)
"""One row a stored clip, with the byte offset and size of each of its members in the shard."""

SHARDS = pa.schema(
    [
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
    ]
)
"""One row a shard file. `group` is the shard's name without its content's digest: it stays while settings change. `tries` counts
how often it was made in the hope that failures pass."""

FAILURES = pa.schema(
    [
        ("source", pa.string()),
        ("video_id", pa.string()),
        ("clip", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("shard", pa.string()),
    ]
)
"""One row for everything left out: `reason` is a fixed phrase to count by, `detail` a sentence; `shard` is the one that goes
without it, "" for what failed before any shard. The clips a shard was to hold are those of its rows in `clips` and its failures."""


@dataclass(frozen=True)
class TrackSummary:
    """What a clip's row says of its tracks.

    visible_fraction: mean visibility of all its points over all anchors and frames, 0..1
    motion:           median over tracks of how far a point gets from its anchor while visible, as a part of the frame's diagonal
    """

    anchors: tuple[int, ...]
    points: int
    visible_fraction: float
    motion: float


@dataclass(frozen=True)
class ClipRow:
    """A row of the clips table."""

    key: str
    source: str
    dataset: str
    video_id: str
    sequence: str
    split: str
    shard: str
    frames: int
    width: int
    height: int
    anchors: list[int]
    points: int
    visible_fraction: float
    motion: float
    json_offset: int
    json_size: int
    tracks_offset: int
    tracks_size: int
    anchor_sizes: list[int]
    frame_offsets: list[int]
    frame_sizes: list[int]
    checksum: str


@dataclass(frozen=True)
class ShardRow:
    """A row of the shards table. The settings are canonical JSON; seconds are those of the worker that did the stage."""

    shard: str
    group: str
    source: str
    split: str
    clips: int
    bytes: int
    checksum: str
    frames_fingerprint: str
    tracks_fingerprint: str
    frames_settings: str
    tracks_settings: str
    decode_seconds: float
    track_seconds: float
    write_seconds: float
    tries: int


def clip_row(shard: str, info: ClipInfo, members: ClipMembers, tracks: TrackSummary) -> ClipRow:
    """The clips table's row of a clip as it was stored in `shard`; `members_of` gives its members back."""
    return ClipRow(
        key=info.key,
        source=info.source,
        dataset=info.dataset,
        video_id=info.video_id,
        sequence=info.sequence,
        split=info.split,
        shard=shard,
        frames=info.frames,
        width=info.width,
        height=info.height,
        anchors=list(tracks.anchors),
        points=tracks.points,
        visible_fraction=tracks.visible_fraction,
        motion=tracks.motion,
        json_offset=members.info.offset,
        json_size=members.info.size,
        tracks_offset=members.tracks.offset,
        tracks_size=members.tracks.size,
        anchor_sizes=list(members.anchors),
        frame_offsets=[span.offset for span in members.frames],
        frame_sizes=[span.size for span in members.frames],
        checksum=members.checksum,
    )


def members_of(row: dict[str, Any]) -> ClipMembers:
    """Where the members of a clip lie, from its row of the clips table. Raises PretrackError for a row that contradicts itself."""
    offsets, sizes, anchors = row["frame_offsets"], row["frame_sizes"], row["anchor_sizes"]
    if any(values is None or None in values for values in (offsets, sizes, anchors)):
        raise PretrackError(
            f"the clips table is damaged: {row['key']} lacks places or sizes of its members"
        )
    if len(offsets) != len(sizes):
        raise PretrackError(
            f"the clips table is damaged: {row['key']} has {len(offsets)} offsets and {len(sizes)} sizes of frames"
        )
    return ClipMembers(
        ByteRange(row["json_offset"], row["json_size"]),
        ByteRange(row["tracks_offset"], row["tracks_size"]),
        tuple(anchors),
        tuple(ByteRange(*span) for span in zip(offsets, sizes, strict=True)),
        row["checksum"],
    )


def videos_named(rows: pa.Table) -> pa.ChunkedArray:
    """What tells the video of each row from all others: its source and its id, in one text."""
    return pc.binary_join_element_wise(rows["source"], rows["video_id"], "\n")


def rows_by_shard(rows: pa.Table) -> dict[str, int]:
    """How many rows name each shard."""
    counts = rows["shard"].value_counts()
    return dict(
        zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    )


def failure_counts(failures: pa.Table) -> list[tuple[str, str, int]]:
    """How often something was left out at a stage for a reason: (stage, reason, count), the most frequent first."""
    counts = failures.group_by(["stage", "reason"]).aggregate([("reason", "count")])
    rows = counts.sort_by([("reason_count", "descending"), ("reason", "ascending")]).to_pylist()
    return [(row["stage"], row["reason"], row["reason_count"]) for row in rows]


def table_of(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Dataclass rows (or dicts) as a table."""
    return pa.Table.from_pylist(
        [row if isinstance(row, dict) else asdict(row) for row in rows], schema=schema
    )


def write_table(path: Location, table: pa.Table) -> None:
    """Writes a Parquet file, whole or not at all."""
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(path: Location, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or some columns of it.

    Raises PretrackError, naming it, where it is missing or damaged, and FormatVersionError where it lacks any of the columns.
    """
    try:
        source = path if isinstance(path, Path) else pa.BufferReader(read_file(path))
        names = pq.read_schema(source).names if columns else []
        if lacking := [name for name in columns or () if name not in names]:
            raise FormatVersionError(
                f"the table {path} lacks {', '.join(lacking)}: another version of pretrack wrote it; a build makes its clips anew"
            )
        # a file is mapped, since copying it first takes as long again
        return pq.read_table(source, columns=columns, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise PretrackError(f"the table {path} cannot be read ({error})") from error


def columns_of(path: Location) -> list[str]:
    """The names of a Parquet file's columns, from its end alone. Raises PretrackError as `read_table` does."""
    try:
        size = size_of(path)
        length = int.from_bytes(read_ranges(path, [max(0, size - 8)], [4])[0], "little") + 8
        (end,) = read_ranges(path, [max(0, size - length)], [min(size, length)])
        return list(pq.read_schema(pa.BufferReader(end)).names)
    except (OSError, pa.ArrowException) as error:
        raise PretrackError(f"the table {path} cannot be read ({error})") from error


def open_table(path: Location) -> ds.Dataset:
    """A Parquet file to be read in parts: on a local disk only the columns that are asked for. Raises PretrackError likewise."""
    if not isinstance(path, Path):
        return ds.dataset(read_table(path))
    try:
        return ds.dataset(path, format="parquet")
    except (OSError, pa.ArrowException) as error:
        raise PretrackError(f"the table {path} cannot be read ({error})") from error
