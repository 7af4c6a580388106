"""Check all shards of a snapshot, and its tables."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.rows import members_of
from manifests.snapshot import TABLES, Snapshot
from manifests.tables import rows_by_shard
from pipeline.monitoring.progress import Progress
from shards.errors import AccessError, FormatVersionError, PretrackError
from shards.files import Location, read_file
from shards.verify import verify_shard

_REPEATED = (
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
    *("frame_offsets", "frame_sizes", "checksum", "scores_offset", "scores_size"),
    *("depth_offsets", "depth_sizes", "mask_offsets", "mask_sizes", "maps_checksum"),
    *_REPEATED,
]
"""The columns of a clip to check: where its members lie, and values that they repeat."""
_Task = tuple[str, Location, int, str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Problem:
    """A problem in one sentence that begins with the shard's name.

    `shard` is "" for what a repair of shards cannot help: tables, and files that cannot be read.
    """

    shard: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verify_snapshot(snapshot: Snapshot, progress: Progress) -> list[Problem]:
    """Return all problems, in the order of the shards; [] if everything is as it was written.

    `pipeline.execution.repair` repairs them. Raises AccessError if tables, or shards on a store,
    cannot be read.
    """
    if table_problems := list(_table_problems(snapshot)):
        return table_problems
    shards = snapshot.shards.select(["shard", "bytes", "checksum", "clips"]).to_pylist()
    problems: list[Problem] = []
    workers = max(1, min(len(shards), os.cpu_count() or 1))
    with (
        progress.task("verifying", total=len(shards), noun="shard") as shown,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        running: deque[Future[list[Problem]]] = deque()
        for task in _tasks(snapshot, shards):
            if len(running) == 4 * workers:  # a task holds the rows of its clips: bound the memory
                problems += running.popleft().result()
                shown.advance()
            running.append(pool.submit(_verify, task))
        for future in running:
            problems += future.result()
            shown.advance()
    counts = rows_by_shard(snapshot.clips)
    expected = {row["shard"]: row["clips"] for row in shards}
    problems += [
        Problem("", f"the tables of {snapshot.folder} disagree about {name}: {_remedy(snapshot)}")
        for name in sorted(counts.keys() | expected.keys())
        if counts.get(name, 0) != expected.get(name)
    ]
    return problems


def _remedy(snapshot: Snapshot) -> str:
    """Name the way to restore the tables: receipts hold all rows, so a build can rewrite them."""
    files = f"{snapshot.folder} and {snapshot.out / 'current.json'}"
    return f"remove {files}, and run 'pretrack build', which restores them from the receipts"


def _table_problems(snapshot: Snapshot) -> Iterator[Problem]:
    """Yield what is wrong with a snapshot's own files."""
    try:
        for part in (*TABLES, "settings"):
            getattr(snapshot, part)
        listed = read_file(snapshot.folder / "shards.txt").decode().split()
        if listed != [f"shards/{shard}.tar" for shard in snapshot.shards["shard"].to_pylist()]:
            file = snapshot.folder / "shards.txt"
            yield Problem("", f"{file} does not name the shards of the tables: {_remedy(snapshot)}")
    except AccessError:
        raise
    except FormatVersionError as error:
        yield Problem("", str(error))
    except (PretrackError, OSError, ValueError) as error:
        yield Problem("", f"{error}: {_remedy(snapshot)}")


def _tasks(snapshot: Snapshot, shards: list[dict[str, Any]]) -> Iterator[_Task]:
    """Yield per shard its name, file, size, checksum and rows of the clips table."""
    # the number of its shard per clip; clips of unknown shards come last
    names = pa.array([row["shard"] for row in shards], pa.string())
    shard_numbers = pc.index_in(snapshot.clips["shard"], value_set=names)
    shard_numbers = shard_numbers.fill_null(len(shards)).to_numpy()
    order = np.argsort(shard_numbers, kind="stable")
    bounds = np.searchsorted(shard_numbers[order], np.arange(len(shards) + 1))
    clips = snapshot.clips.select(_COLUMNS)
    # a build publishes clips in the order of their shards; others are sorted once, since every
    # `take` joins all chunks of a column first
    if (np.diff(shard_numbers) < 0).any():
        clips = clips.take(order)
    for row, first, last in zip(shards, bounds[:-1], bounds[1:], strict=True):
        rows = clips.slice(first, last - first).to_pylist()
        yield row["shard"], snapshot.shard_path(row["shard"]), row["bytes"], row["checksum"], rows


def _verify(task: _Task) -> list[Problem]:
    """Check one shard, in a worker process."""
    shard, path, size, checksum, rows = task
    members = {row["key"]: members_of(row) for row in rows}
    expected = {row["key"]: {name: row[name] for name in _REPEATED} for row in rows}
    try:
        sentences = list(verify_shard(path, size, checksum, members, expected))
    except AccessError as error:
        if not isinstance(path, Path):  # a store that fails for one shard fails for all
            raise
        # A problem of no shard: a repair must not replace what it cannot read.
        return [Problem("", f"{error}; if its disk is failing, delete the file and repair")]
    return [Problem(shard, sentence) for sentence in sentences]
