"""Checks all shards of a snapshot."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.rows import members_of
from manifests.snapshot import TABLES, Snapshot
from manifests.tables import rows_by_shard
from pipeline.monitoring.progress import Progress
from shards.errors import FormatVersionError, PretrackError
from shards.files import Location, read_file
from shards.verify import verify_shard

_OF_CONTENT = (
    "source",
    "dataset",
    "video_id",
    "sequence",
    "split",
    "frames",
    "width",
    "height",
    "anchors",
    "points",
)
_COLUMNS = [
    *("key", "json_offset", "json_size", "tracks_offset", "tracks_size", "anchor_sizes"),
    *("frame_offsets", "frame_sizes", "checksum"),
    *_OF_CONTENT,
]
"""What there is to check of a clip's row: where its members lie, and what it says that they say too."""
_Task = tuple[str, Location, int, str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a shard, in a sentence that begins with its name; or with the tables, and then `shard` is ""."""

    shard: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verify_snapshot(snapshot: Snapshot, progress: Progress) -> list[Problem]:
    """All problems, in the order of the shards; an empty list if everything is as it was written. `pipeline.execution.repair` mends them."""
    if damaged := list(_table_problems(snapshot)):
        return damaged
    shards = snapshot.shards.select(["shard", "bytes", "checksum", "clips"]).to_pylist()
    problems: list[Problem] = []
    workers = max(1, min(len(shards), os.cpu_count() or 1))
    with (
        progress.task("verifying", total=len(shards), noun="shard") as shown,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        under_way: deque[Future[list[Problem]]] = deque()
        for task in _tasks(snapshot, shards):
            if (
                len(under_way) == 4 * workers
            ):  # tasks hold their clips' rows: not all of them at once
                problems += under_way.popleft().result()
                shown.advance()
            under_way.append(pool.submit(_verify, task))
        for running in under_way:
            problems += running.result()
            shown.advance()
    counts = rows_by_shard(snapshot.clips)
    wanted = {row["shard"]: row["clips"] for row in shards}
    problems += [
        Problem("", f"the tables of {snapshot.folder} disagree about {name}: {_remedy(snapshot)}")
        for name in sorted(counts.keys() | wanted.keys())
        if counts.get(name, 0) != wanted.get(name)
    ]
    return problems


def _remedy(snapshot: Snapshot) -> str:
    """Receipts have all that the tables held, so a build makes them anew."""
    return f"remove {snapshot.folder} and {snapshot.out / 'current.json'}, and run 'pretrack build', which goes by the receipts"


def _table_problems(snapshot: Snapshot) -> Iterator[Problem]:
    """What cannot be read of a snapshot's own files."""
    try:
        for part in (*TABLES, "settings"):
            getattr(snapshot, part)
        listed = read_file(snapshot.folder / "shards.txt").decode().split()
        if listed != [f"shards/{shard}.tar" for shard in snapshot.shards["shard"].to_pylist()]:
            yield Problem(
                "",
                f"{snapshot.folder / 'shards.txt'} does not name the shards of the tables: {_remedy(snapshot)}",
            )
    except FormatVersionError as error:
        yield Problem("", str(error))
    except (PretrackError, OSError, ValueError) as error:
        yield Problem("", f"{error}: {_remedy(snapshot)}")


def _tasks(snapshot: Snapshot, shards: list[dict[str, Any]]) -> Iterator[_Task]:
    """What there is to check of each shard: its name, its file, its size, its checksum and its rows of the clips table."""
    place = pc.index_in(
        snapshot.clips["shard"], value_set=pa.array([row["shard"] for row in shards], pa.string())
    )
    place = place.fill_null(len(shards)).to_numpy()
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(shards) + 1))
    clips = snapshot.clips.select(_COLUMNS)
    if (
        np.diff(place) < 0
    ).any():  # not as a build publishes it; taken once, as each `take` joins all chunks first
        clips = clips.take(order)
    for row, first, last in zip(shards, bounds[:-1], bounds[1:], strict=True):
        rows = clips.slice(first, last - first).to_pylist()
        yield row["shard"], snapshot.shard_path(row["shard"]), row["bytes"], row["checksum"], rows


def _verify(task: _Task) -> list[Problem]:
    shard, path, size, checksum, rows = task
    members = {row["key"]: members_of(row) for row in rows}
    tabled = {row["key"]: {name: row[name] for name in _OF_CONTENT} for row in rows}
    return [
        Problem(shard, sentence) for sentence in verify_shard(path, size, checksum, members, tabled)
    ]
