"""The shards there are: those that a snapshot names, and those that only a receipt names, made by a build that did not end.

What is known of them comes from the snapshots' tables. A receipt is only read where no snapshot names its shard, or where its shard
may have been tried again since.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.receipt import Receipt, list_receipts, read_receipt
from manifests.rows import Failure, ShardRow, members_of
from manifests.snapshot import Snapshot, current_snapshot, list_snapshots, open_snapshot
from manifests.tables import (
    CLIPS,
    FAILURES,
    SHARDS,
    columns_of,
    read_table,
    rows_by_shard,
    table_of,
)
from pipeline.failures import TRANSIENT_REASONS
from shards.errors import PretrackError
from shards.files import Location, sizes_in
from shards.writer import ClipMembers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExistingShard:
    """A shard that was made.

    snapshot: the one whose tables have its rows, or "" if its receipt has
    current:  the current snapshot names it
    whole:    its tar is there, of the right size
    failures: how much was left out of it
    passing:  how much of that may go well another time
    holds_all_frames: False if a clip was decoded but could not be tracked: its frames are not in the shard
    """

    row: ShardRow
    snapshot: str
    current: bool
    whole: bool
    failures: int
    passing: int
    holds_all_frames: bool


@dataclass(frozen=True)
class ExistingShards:
    """All known shards of an output folder, those of the current snapshot first, the newest of the others next.

    current:  the current snapshot, or None
    failures: what was left out of them (table FAILURES, sorted by shard)
    planned:  the keys of the clips that those known by a receipt alone were to hold
    """

    out: Location
    current: Snapshot | None
    shards: tuple[ExistingShard, ...]
    failures: pa.Table
    planned: dict[str, tuple[str, ...]]

    def clips_of(
        self, shards: Sequence[ExistingShard]
    ) -> tuple[pa.ChunkedArray, NDArray[np.int32]]:
        """The keys of all clips that some shards were to hold, and the place in `shards` of each one's. Those of the current
        snapshot come first."""
        keys, places = [pa.array([], pa.string())], [np.zeros(0, np.int32)]
        for snapshot in dict.fromkeys(shard.snapshot for shard in shards if shard.snapshot):
            numbers = {
                shard.row.shard: number
                for number, shard in enumerate(shards)
                if shard.snapshot == snapshot
            }
            names, inside = (
                pa.array(list(numbers), pa.string()),
                np.fromiter(numbers.values(), np.int32),
            )
            try:
                stored = read_table(
                    Snapshot(self.out, snapshot).folder / "clips.parquet", ["key", "shard"]
                )
            except PretrackError as error:
                if self.current and snapshot == self.current.name:
                    raise
                log.warning("%s: left out", error)
                continue
            failed = self.failures.select(["clip", "shard"]).rename_columns(["key", "shard"])
            for table in (stored, failed.filter(pc.not_equal(failed["key"], ""))):
                found = pc.index_in(table["shard"], value_set=names)
                keys += table["key"].filter(pc.is_valid(found)).chunks
                places.append(inside[found.drop_null().to_numpy()])
        for number, shard in enumerate(shards):
            if not shard.snapshot:
                planned = self.planned[shard.row.shard]
                keys.append(pa.array(planned, pa.string()))
                places.append(np.full(len(planned), number, np.int32))
        return pa.chunked_array(keys), np.concatenate(places)

    def failures_of(self, shard: str) -> tuple[Failure, ...]:
        """What was left out of a shard."""
        first, count = self._failure_ranges.get(shard, (0, 0))
        return tuple(Failure(**row) for row in self.failures.slice(first, count).to_pylist())

    @cached_property
    def _failure_ranges(self) -> dict[str, tuple[int, int]]:
        numbers = rows_by_shard(self.failures)
        firsts = np.cumsum([0, *numbers.values()]).tolist()
        return {
            shard: (first, number)
            for (shard, number), first in zip(numbers.items(), firsts, strict=False)
        }

    def members_of(self, shard: str) -> dict[str, ClipMembers]:
        """Where the members of a shard's clips lie, or lay, by key. Raises PretrackError if no table or receipt can say it."""
        known = next(known for known in self.shards if known.row.shard == shard)
        if not known.snapshot:
            return {row.key: members_of(asdict(row)) for row in read_receipt(self.out, shard).clips}
        snapshot = (
            self.current if self.current and known.current else Snapshot(self.out, known.snapshot)
        )
        rows = snapshot.clips.filter(pc.equal(snapshot.clips["shard"], shard)).to_pylist()
        return {row["key"]: members_of(row) for row in rows}

    def rows(self, kept: Sequence[ExistingShard], made: Sequence[str]) -> dict[str, pa.Table]:
        """The rows of the tables "clips", "shards" and "failures" that kept shards have in their snapshots, and that shards just
        made (by name) have in their receipts. Raises PretrackError if a receipt cannot be read."""
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
    """Reads what is known; `damaged` shards count as not whole.

    A snapshot or a receipt that cannot be used is named in the log, and counts as not there.

    Raises PretrackError if the current snapshot is damaged.
    """
    snapshots = _snapshots(out)
    rows = _shard_rows(snapshots)
    failures = [FAILURES.empty_table()]
    for snapshot in snapshots:
        names = rows["shard"].filter(pc.equal(rows["snapshot"], snapshot.name)).combine_chunks()
        failures.append(
            snapshot.failures.filter(pc.is_in(snapshot.failures["shard"], value_set=names))
        )
    receipts = _receipts(out, rows, pa.concat_tables(failures))
    fresh = pa.array(list(receipts), pa.string())
    rows = rows.filter(pc.invert(pc.is_in(rows["shard"], value_set=fresh)))
    failures = [
        table.filter(pc.invert(pc.is_in(table["shard"], value_set=fresh))) for table in failures
    ]
    failures.append(
        table_of((row for receipt in receipts.values() for row in receipt.failures), FAILURES)
    )
    left_out = pa.concat_tables(failures)
    left_out = left_out.take(pc.sort_indices(left_out["shard"]))
    named = [
        (ShardRow(**row), snapshot)
        for row, snapshot in zip(
            rows.select(SHARDS.names).to_pylist(), rows["snapshot"].to_pylist(), strict=True
        )
    ]
    named += [(receipt.shard, "") for receipt in receipts.values()]
    current = snapshots[0] if snapshots and snapshots[0].name == current_snapshot(out) else None
    planned = {shard: receipt.planned for shard, receipt in receipts.items()}
    return ExistingShards(
        out, current, _described(out, current, named, left_out, damaged), left_out, planned
    )


def _snapshots(out: Location) -> list[Snapshot]:
    """The current snapshot, then the others, newest first; those of which nothing can be used are left out."""
    current = current_snapshot(out)
    names = [
        *([current] if current else []),
        *(name for name in reversed(list_snapshots(out)) if name != current),
    ]
    usable = []
    for name in names:
        snapshot = open_snapshot(out, name)
        try:
            columns = [
                columns_of(snapshot.folder / f"{table}.parquet")
                for table in ("clips", "shards", "failures")
            ]
            if usual := columns == [CLIPS.names, SHARDS.names, FAILURES.names]:
                snapshot.shards, snapshot.failures  # noqa: B018 - what is damaged in them shows when they are read
        except PretrackError as error:
            if name == current:
                raise
            log.warning("%s: left out", error)
            continue
        if usual:
            usable.append(snapshot)
        else:
            log.warning(
                "the tables of %s are not of this version of pretrack: left out", snapshot.folder
            )
    return usable


def _shard_rows(snapshots: Sequence[Snapshot]) -> pa.Table:
    """The shards table's row of every shard that a snapshot names, from the first that does, with that snapshot's name; and the
    highest of its `tries`: a shard that was tried again and came out the same is in several."""
    tables = [SHARDS.empty_table().append_column("snapshot", pa.array([], pa.string()))]
    for snapshot in snapshots:
        name = pa.repeat(pa.scalar(snapshot.name), snapshot.shards.num_rows)
        tables.append(snapshot.shards.append_column("snapshot", name))
    rows = pa.concat_tables(tables)
    place = pa.array(np.arange(rows.num_rows))
    unique = (
        rows.append_column("place", place)
        .group_by("shard")
        .aggregate([("place", "min"), ("tries", "max")])
        .sort_by("place_min")
    )
    return rows.take(unique["place_min"]).set_column(
        rows.column_names.index("tries"), "tries", unique["tries_max"]
    )


def _receipts(out: Location, rows: pa.Table, failures: pa.Table) -> dict[str, Receipt]:
    """The receipts that tell more than the snapshots do: of shards that none names, or that were tried again since."""
    passing = failures.filter(pc.is_in(failures["reason"], value_set=pa.array(TRANSIENT_REASONS)))
    tries = dict(zip(rows["shard"].to_pylist(), rows["tries"].to_pylist(), strict=True))
    maybe = set(passing["shard"].to_pylist())
    found = {}
    for name in list_receipts(out):
        if name in tries and name not in maybe:
            continue
        try:
            receipt = read_receipt(out, name)
        except PretrackError as error:
            log.warning("%s", error)
            continue
        if receipt.shard.tries > tries.get(name, 0):
            found[name] = receipt
    return found


def _described(
    out: Location,
    current: Snapshot | None,
    rows: list[tuple[ShardRow, str]],
    failures: pa.Table,
    damaged: Collection[str],
) -> tuple[ExistingShard, ...]:
    """Shards with all that is known of them, those of the current snapshot first."""
    sizes = sizes_in(out / "shards")
    published = set(current.shards["shard"].to_pylist()) if current else set()
    passing = pc.is_in(failures["reason"], value_set=pa.array(TRANSIENT_REASONS))
    total = rows_by_shard(failures)
    may_pass = rows_by_shard(failures.filter(passing))
    untracked = rows_by_shard(failures.filter(pc.equal(failures["stage"], "track")))
    return tuple(
        ExistingShard(
            row,
            snapshot,
            current=row.shard in published,
            whole=sizes.get(f"{row.shard}.tar") == row.bytes and row.shard not in damaged,
            failures=total.get(row.shard, 0),
            passing=may_pass.get(row.shard, 0),
            holds_all_frames=row.shard not in untracked,
        )
        for row, snapshot in sorted(rows, key=lambda item: item[0].shard not in published)
    )
