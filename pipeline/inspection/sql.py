"""Query a snapshot in SQL: DuckDB over its tables, with no access to files or the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from manifests.snapshot import TABLES, Snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, open_table
from shards.errors import PretrackError

FIGURES = {
    "Clips": """
        select source, split, count(*) as clips, count(distinct video_id) as videos,
               sum(frames) as frames,
               sum(tracks_size + json_size + list_sum(frame_sizes)) / 1e9 as gb,
               sum(points * len(anchors)) as tracks
        from clips group by all order by source, split desc""",
    "What moves and what is seen": """
        select source, quantile_cont(motion, 0.1) as motion_10, median(motion) as motion_50,
               quantile_cont(motion, 0.9) as motion_90,
               avg(visible_fraction) as visible,
               count(*) filter (visible_fraction < 0.5) as clips_half_hidden
        from clips group by source order by source""",
    "Geometry": """
        select source, count(*) filter (posed) as posed, count(*) filter (not posed) as unposed,
               median(turn) as turn, median(baseline) as baseline,
               median(epipolar_px) as epipolar_px, avg(epipolar_inliers) as epipolar_inliers,
               median(reprojection_px) as reprojection_px, median(cycle_px) as cycle_px
        from clips group by source order by source""",
    "Shapes": """
        select source, width, height, frames, count(*) as clips
        from clips group by all order by clips desc, source, width, height, frames limit 10""",
    "Shards": """
        select source, split, count(*) as shards,
               avg(bytes) / 1e6 as mean_mb, max(bytes) / 1e6 as largest_mb,
               sum(decode_seconds) as decode_seconds, sum(track_seconds) as track_seconds,
               sum(write_seconds) as write_seconds
        from shards group by all order by source, split desc""",
    "Left out": """
        select source, stage, reason, count(*) as count
        from failures group by all order by count desc, source, stage, reason""",
}
"""The queries of `pretrack stats` without --sql; `motion_10` is the 10th percentile of motion."""


@dataclass(frozen=True)
class QueryResult:
    """The result of a query: the names of its columns and its rows, in plain Python values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class SnapshotQueries:
    """A connection to DuckDB with the views `videos`, `clips`, `shards` and `failures`."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Open the tables. Raises PretrackError if one is unreadable, or DuckDB not installed."""
        try:
            import duckdb
        except ImportError:
            raise PretrackError(
                "statistics need the package duckdb: pip install 'pretrack[pipeline]'"
            ) from None
        self._error: type[Exception] = duckdb.Error
        # a query may come from anyone: it must not read files, nor switch this protection off
        locked = {"enable_external_access": "false", "lock_configuration": "true"}
        self._connection = duckdb.connect(":memory:", config=locked)
        for table, schema in zip(TABLES, (VIDEOS, CLIPS, SHARDS, FAILURES), strict=True):
            path = snapshot.folder / f"{table}.parquet"
            self._connection.register(table, open_table(path, schema.names))

    def ask(self, sql: str) -> QueryResult:
        """Answer a query, or the last of several. Raises PretrackError with DuckDB's reason."""
        try:
            cursor = self._connection.execute(sql)
            if cursor is None or cursor.description is None:
                raise PretrackError(
                    "the query is empty: ask something such as 'select count(*) from clips'"
                )
            columns = tuple(column[0] for column in cursor.description)
            return QueryResult(columns, tuple(tuple(map(_plain, row)) for row in cursor.fetchall()))
        except self._error as error:
            raise PretrackError(f"the query cannot be answered: {_one_line(error)}") from error

    def figures(self) -> Iterator[tuple[str, QueryResult]]:
        """Answer the queries of `FIGURES`, by title."""
        for title, sql in FIGURES.items():
            yield title, self.ask(sql)


def _one_line(error: Exception) -> str:
    """Return DuckDB's message without the excerpt of the query."""
    return " ".join(str(error).split("\nLINE ")[0].split())


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can hold: None for a float that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | bool | None) else str(value)
