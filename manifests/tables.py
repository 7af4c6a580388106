"""Read and write the Parquet tables of videos, clips, shards and failures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from manifests.arrow_schema import schema_of
from manifests.rows import ClipRow, Failure, ShardRow, VideoRow
from shards.errors import FormatVersionError, PretrackError
from shards.files import Location, open_atomic, read_file, read_ranges, reading, size_of

VIDEOS = schema_of(VideoRow)
CLIPS = schema_of(ClipRow)
SHARDS = schema_of(ShardRow)
FAILURES = schema_of(Failure)

_ADDED = {
    column.name: schema.field(column.name)
    for row, schema in ((VideoRow, VIDEOS), (ClipRow, CLIPS), (ShardRow, SHARDS))
    for column in fields(row)
    if column.default is None
}
"""Columns that tables of earlier versions lack. They are read as null there."""


def video_identifiers(rows: pa.Table) -> pa.ChunkedArray:
    """Join source and video id of each row: together they identify a video."""
    return pc.binary_join_element_wise(rows["source"], rows["video_id"], "\n")


def rows_by_shard(rows: pa.Table) -> dict[str, int]:
    """Count the rows per shard."""
    counts = rows["shard"].value_counts()
    return dict(
        zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    )


def failure_counts(failures: pa.Table) -> list[tuple[str, str, int]]:
    """Count failures per stage and reason: (stage, reason, count), the most frequent first."""
    counts = failures.group_by(["stage", "reason"]).aggregate([("reason", "count")])
    rows = counts.sort_by([("reason_count", "descending"), ("reason", "ascending")]).to_pylist()
    return [(row["stage"], row["reason"], row["reason_count"]) for row in rows]


def table_of(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Make a table of dataclass rows or dicts; absent columns are null."""
    return pa.Table.from_pylist(
        [row if isinstance(row, dict) else asdict(row) for row in rows], schema=schema
    )


def write_table(path: Location, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all."""
    with open_atomic(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(path: Location, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Columns that were added since the table was written are null. Raises PretrackError, naming the
    file, if it is missing or damaged; FormatVersionError if it lacks any other of the columns; and
    AccessError if it cannot be read.
    """
    try:
        _check_access(path)
        source = path if isinstance(path, Path) else pa.BufferReader(read_file(path))
        names = pq.read_schema(source).names if columns else []
        absent = [name for name in columns or () if name not in names]
        if lacking := [name for name in absent if name not in _ADDED]:
            raise FormatVersionError(
                f"the table {path} lacks {', '.join(lacking)}: "
                "another version of pretrack wrote it; a build makes its clips again"
            )
        # Memory-mapped: copying the file first takes as long as reading it.
        stored = [name for name in columns if name in names] if columns else None
        table = pq.read_table(source, columns=stored, memory_map=True)
        return _with_added(table, columns) if columns and absent else table
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _with_added(table: pa.Table, columns: list[str]) -> pa.Table:
    """Give a table exactly these columns, null where they were added since it was written."""
    for name in columns:
        if name not in table.column_names:
            nulls = pa.nulls(table.num_rows, _ADDED[name].type)
            table = table.append_column(_ADDED[name], nulls)
    return table.select(columns)


def without_added(columns: list[str]) -> list[str]:
    """Leave out the columns that tables of earlier versions lack."""
    return [name for name in columns if name not in _ADDED]


def columns_of(path: Location) -> list[str]:
    """Read the names of a Parquet file's columns, from its footer alone.

    Raises PretrackError as `read_table` does.
    """
    try:
        size = size_of(path)
        # A Parquet file ends with its footer, the footer's length (4 bytes) and "PAR1".
        length = int.from_bytes(read_ranges(path, [max(0, size - 8)], [4])[0], "little") + 8
        (footer,) = read_ranges(path, [max(0, size - length)], [min(size, length)])
        return list(pq.read_schema(pa.BufferReader(footer)).names)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def open_table(path: Location, columns: list[str]) -> ds.Dataset:
    """Open a Parquet file for reading in parts; a local file is read only where needed.

    Those of the columns that were added since the table was written are null. Raises PretrackError
    as `read_table` does.
    """
    if not isinstance(path, Path):
        table = read_table(path)
        added = [name for name in columns if name in _ADDED and name not in table.column_names]
        return ds.dataset(_with_added(table, [*table.column_names, *added]))
    try:
        _check_access(path)
        opened = ds.dataset(path, format="parquet")
        added = [name for name in columns if name in _ADDED and name not in opened.schema.names]
        return opened.replace_schema(pa.schema([*opened.schema, *(_ADDED[name] for name in added)]))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _check_access(path: Location) -> None:
    """Raise AccessError if a local file cannot be read; pyarrow's errors do not tell why."""
    if isinstance(path, Path):
        with reading(path), open(path, "rb") as file:
            file.read(1)


def _unreadable(path: Location, error: Exception) -> PretrackError:
    return PretrackError(f"the table {path} cannot be read ({error})")
