"""Read which shards exist in an output folder.

Snapshots name them; a shard that only a receipt names was made by a build that did not finish. Rows
come from the snapshots' tables, so that a plan reads a few tables instead of one receipt per shard.
A receipt is only read if no snapshot names its shard, or if its shard may have been made again
since.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.receipt import Receipt, list_receipts, read_receipt
from manifests.rows import ClipRow, Failure, ShardRow, members_of
from manifests.snapshot import Snapshot, current_snapshot, list_snapshots, open_snapshot
from manifests.tables import (
    CLIPS,
    FAILURES,
    SHARDS,
    columns_of,
    read_table,
    rows_by_shard,
    table_of,
    without_added,
)
from pipeline.failures import TRANSIENT_REASONS
from shards.errors import AccessError, PretrackError
from shards.files import Location, sizes_in
from shards.writer import ClipMembers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExistingShard:
    """A shard that was made.

    snapshot:  the snapshot whose tables have its rows, "" if its receipt has them
    current:   the current snapshot names it
    whole:     its tar exists and has the right size
    failures:  number of things left out of it; notes on its poses are not counted
    transient: number of these failures that the next build may not have
    holds_all_frames: False if the shard lacks the frames of a clip that could not be tracked
    """

    row: ShardRow
    snapshot: str
    current: bool
    whole: bool
    failures: int
    transient: int
    holds_all_frames: bool


@dataclass(frozen=True)
class ExistingShards:
    """All existing shards of an output folder.

    current:  the current snapshot, or None
    shards:   those of the current snapshot first, then the others, newest first
    failures: what was left out of them (table FAILURES, sorted by shard)
    planned:  for each shard whose rows are in its receipt, the keys of the clips planned for it
    """

    out: Location
    current: Snapshot | None
    shards: tuple[ExistingShard, ...]
    failures: pa.Table
    planned: dict[str, tuple[str, ...]]

    def clips_of(
        self, shards: Sequence[ExistingShard]
    ) -> tuple[pa.ChunkedArray, NDArray[np.int32]]:
        """Return the keys of all clips planned for `shards`, and the index into `shards` of each.

        Clips of the current snapshot come first.
        """
        keys, indices = [pa.array([], pa.string())], [np.zeros(0, np.int32)]
        for snapshot in dict.fromkeys(shard.snapshot for shard in shards if shard.snapshot):
            if (stored := self._stored_clips(snapshot)) is None:
                continue
            # Look up all shards of one snapshot in one pass over its clips.
            index = {
                shard.row.shard: number
                for number, shard in enumerate(shards)
                if shard.snapshot == snapshot
            }
            names = pa.array(list(index), pa.string())
            numbers = np.fromiter(index.values(), np.int32)
            # A planned clip is either stored or a failure.
            failed = self.failures.select(["clip", "shard"]).rename_columns(["key", "shard"])
            for table in (stored, failed.filter(pc.not_equal(failed["key"], ""))):
                position = pc.index_in(table["shard"], value_set=names)
                keys += table["key"].filter(pc.is_valid(position)).chunks
                indices.append(numbers[position.drop_null().to_numpy()])
        for number, shard in enumerate(shards):
            if not shard.snapshot:
                planned = self.planned[shard.row.shard]
                keys.append(pa.array(planned, pa.string()))
                indices.append(np.full(len(planned), number, np.int32))
        return pa.chunked_array(keys), np.concatenate(indices)

    def _stored_clips(self, snapshot: str) -> pa.Table | None:
        """Read key and shard of a snapshot's clips; None, with a warning, if it is damaged.

        Raises PretrackError for the current snapshot, AccessError for any.
        """
        path = Snapshot(self.out, snapshot).folder / "clips.parquet"
        try:
            return read_table(path, ["key", "shard"])
        except AccessError:
            raise
        except PretrackError as error:
            if self.current and snapshot == self.current.name:
                raise
            log.warning("%s: left out", error)
            return None

    def failures_of(self, shard: str) -> tuple[Failure, ...]:
        """Return what was left out of a shard."""
        first, count = self._failure_ranges.get(shard, (0, 0))
        return tuple(Failure(**row) for row in self.failures.slice(first, count).to_pylist())

    @cached_property
    def _failure_ranges(self) -> dict[str, tuple[int, int]]:
        """First row and number of rows in `failures`, by shard."""
        counts = rows_by_shard(self.failures)
        firsts = np.cumsum([0, *counts.values()])[:-1].tolist()
        return dict(zip(counts, zip(firsts, counts.values(), strict=True), strict=True))

    def members_of(self, shard: str) -> dict[str, ClipMembers]:
        """Return where the members of a shard's clips were written, by the clips' keys.

        Raises PretrackError if the table or receipt that has them cannot be read.
        """
        return {row.key: members_of(vars(row)) for row in self.receipt_of(shard).clips}

    def receipt_of(self, shard: str) -> Receipt:
        """Return the rows of a shard; of the planned clips, only those that are stored.

        Raises PretrackError if the table or receipt that has them cannot be read.
        """
        entry = next(entry for entry in self.shards if entry.row.shard == shard)
        if not entry.snapshot:
            return read_receipt(self.out, shard)
        snapshot = Snapshot(self.out, entry.snapshot)
        if self.current and entry.current:  # it has its table in memory already
            snapshot = self.current
        rows = snapshot.clips.filter(pc.equal(snapshot.clips["shard"], shard)).to_pylist()
        clips = tuple(ClipRow(**row) for row in rows)
        return Receipt(entry.row, clips, self.failures_of(shard), tuple(row.key for row in clips))

    def rows(self, kept: Sequence[ExistingShard], made: Sequence[str]) -> dict[str, pa.Table]:
        """Collect the rows of a new snapshot's tables "clips", "shards" and "failures".

        The rows of kept shards come from their snapshots or receipts, those of shards just made
        (given by name) from their receipts. Raises PretrackError if a receipt cannot be read.
        """
        clips, failures = [CLIPS.empty_table()], [FAILURES.empty_table()]
        shards = [shard.row for shard in kept if shard.snapshot]
        for snapshot in dict.fromkeys(shard.snapshot for shard in kept if shard.snapshot):
            names = pa.array([shard.row.shard for shard in kept if shard.snapshot == snapshot])
            stored = read_table(Snapshot(self.out, snapshot).folder / "clips.parquet", CLIPS.names)
            clips.append(stored.filter(pc.is_in(stored["shard"], value_set=names)))
            failures.append(self.failures.filter(pc.is_in(self.failures["shard"], value_set=names)))
        for name in (*(shard.row.shard for shard in kept if not shard.snapshot), *made):
            receipt = read_receipt(self.out, name)
            shards.append(receipt.shard)
            clips.append(table_of(receipt.clips, CLIPS))
            failures.append(table_of(receipt.failures, FAILURES))
        return {
            "clips": pa.concat_tables(clips),
            "shards": table_of(shards, SHARDS),
            "failures": pa.concat_tables(failures),
        }


def read_existing_shards(out: Location, damaged: Collection[str] = ()) -> ExistingShards:
    """Read which shards exist; those named in `damaged` count as not whole.

    A snapshot or receipt that cannot be used is logged and treated as missing.

    Raises PretrackError if the current snapshot is damaged, and AccessError if any snapshot or
    receipt cannot be read.
    """
    # Rows and failures of the shards that snapshots name.
    snapshots = _usable_snapshots(out)
    rows = _shard_rows(snapshots)
    failures = _snapshot_failures(snapshots, rows)
    # Receipts of other shards, and newer ones, which take the place of these rows.
    receipts = _newer_receipts(out, rows, failures)
    rows, failures = (_without(table, receipts) for table in (rows, failures))
    # Sorted by shard, so that the failures of one shard are a slice.
    from_receipts = [failure for receipt in receipts.values() for failure in receipt.failures]
    failures = pa.concat_tables([failures, table_of(from_receipts, FAILURES)])
    failures = failures.take(pc.sort_indices(failures["shard"]))
    # One row per shard, with its snapshot, "" for a receipt.
    fields = rows.select(SHARDS.names).to_pylist()
    shard_rows = [
        *zip((ShardRow(**row) for row in fields), rows["snapshot"].to_pylist(), strict=True),
        *((receipt.shard, "") for receipt in receipts.values()),
    ]
    current = snapshots[0] if snapshots and snapshots[0].name == current_snapshot(out) else None
    return ExistingShards(
        out=out,
        current=current,
        shards=_existing_shards(
            out, current=current, rows=shard_rows, failures=failures, damaged=damaged
        ),
        failures=failures,
        planned={shard: receipt.planned for shard, receipt in receipts.items()},
    )


def _snapshot_failures(snapshots: Sequence[Snapshot], rows: pa.Table) -> pa.Table:
    """Collect what was left out of each shard, from the snapshot that its row comes from."""
    tables = [FAILURES.empty_table()]
    for snapshot in snapshots:
        names = rows["shard"].filter(pc.equal(rows["snapshot"], snapshot.name)).combine_chunks()
        in_snapshot = pc.is_in(snapshot.failures["shard"], value_set=names)
        tables.append(snapshot.failures.filter(in_snapshot))
    return pa.concat_tables(tables)


def _without(table: pa.Table, shards: Collection[str]) -> pa.Table:
    """Drop the rows of some shards."""
    names = pa.array(list(shards), pa.string())
    return table.filter(pc.invert(pc.is_in(table["shard"], value_set=names)))


def _usable_snapshots(out: Location) -> list[Snapshot]:
    """List the current snapshot, then the others, newest first, without unusable ones.

    Raises PretrackError if the current snapshot is damaged, AccessError if any cannot be read.
    """
    current = current_snapshot(out)
    names = [
        *([current] if current else []),
        *(name for name in reversed(list_snapshots(out)) if name != current),
    ]
    usable = []
    for name in names:
        # Other versions may have had other columns. The footers suffice to compare them.
        snapshot = open_snapshot(out, name)
        try:
            columns = [
                columns_of(snapshot.folder / f"{table}.parquet")
                for table in ("clips", "shards", "failures")
            ]
            same_version = [without_added(names) for names in columns] == [
                without_added(schema.names) for schema in (CLIPS, SHARDS, FAILURES)
            ]
            if same_version:
                snapshot.shards, snapshot.failures  # noqa: B018 - reading them raises if damaged
        except AccessError:
            raise
        except PretrackError as error:
            if name == current:
                raise
            log.warning("%s: left out", error)
            continue
        if same_version:
            usable.append(snapshot)
        else:
            log.warning("%s was written by another version of pretrack: left out", snapshot.folder)
    return usable


def _shard_rows(snapshots: Sequence[Snapshot]) -> pa.Table:
    """Return one row per shard (table SHARDS, and the name of the first snapshot that names it).

    A shard that was made again with the same content is in several snapshots: `tries` is the
    highest of them.
    """
    tables = [SHARDS.empty_table().append_column("snapshot", pa.array([], pa.string()))]
    for snapshot in snapshots:
        # The current snapshot comes first: a shard is described by its rows there, if it is there.
        name = pa.repeat(pa.scalar(snapshot.name), snapshot.shards.num_rows)
        tables.append(snapshot.shards.append_column("snapshot", name))
    rows = pa.concat_tables(tables)
    unique = (
        rows.append_column("row", pa.array(np.arange(rows.num_rows)))
        .group_by("shard")
        .aggregate([("row", "min"), ("tries", "max")])
        .sort_by("row_min")
    )
    return rows.take(unique["row_min"]).set_column(
        rows.column_names.index("tries"), "tries", unique["tries_max"]
    )


def _newer_receipts(out: Location, rows: pa.Table, failures: pa.Table) -> dict[str, Receipt]:
    """Read the receipts of shards that no snapshot names, or that were made again since."""
    tries = dict(zip(rows["shard"].to_pylist(), rows["tries"].to_pylist(), strict=True))
    # Only shards with transient failures are made again with the same name.
    transient = _with_transient_reasons(failures)
    retried = set(transient["shard"].to_pylist())
    newer = {}
    for name in list_receipts(out):
        if name in tries and name not in retried:
            continue
        try:
            receipt = read_receipt(out, name)
        except AccessError:
            raise  # its shard may be whole, and must not be made again
        except PretrackError as error:
            log.warning("%s", error)
            continue
        if receipt.shard.tries > tries.get(name, 0):
            newer[name] = receipt
    return newer


def _with_transient_reasons(failures: pa.Table) -> pa.Table:
    return failures.filter(pc.is_in(failures["reason"], value_set=pa.array(TRANSIENT_REASONS)))


def _existing_shards(
    out: Location,
    *,
    current: Snapshot | None,
    rows: list[tuple[ShardRow, str]],
    failures: pa.Table,
    damaged: Collection[str],
) -> tuple[ExistingShard, ...]:
    """Describe each shard, given as (row, snapshot); those of the current snapshot come first."""
    # One listing gives all sizes. Checksums are not compared: a plan opens no shard.
    sizes = sizes_in(out / "shards")
    published = set(current.shards["shard"].to_pylist()) if current else set()
    total = rows_by_shard(failures.filter(pc.not_equal(failures["stage"], "score")))
    transient = rows_by_shard(_with_transient_reasons(failures))
    # A failure of stage "track" had its frames decoded, and they were not stored.
    untracked = rows_by_shard(failures.filter(pc.equal(failures["stage"], "track")))
    return tuple(
        ExistingShard(
            row,
            snapshot,
            current=row.shard in published,
            whole=sizes.get(f"{row.shard}.tar") == row.bytes and row.shard not in damaged,
            failures=total.get(row.shard, 0),
            transient=transient.get(row.shard, 0),
            holds_all_frames=row.shard not in untracked,
        )
        for row, snapshot in sorted(rows, key=lambda item: item[0].shard not in published)
    )
