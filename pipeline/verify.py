"""Checks all shards of a snapshot."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from manifests.snapshot import Snapshot
from manifests.tables import members_of
from pipeline.progress import Progress
from shards.files import Location
from shards.verify import verify_shard


def verify_snapshot(snapshot: Snapshot, progress: Progress) -> list[str]:
    """All problems, one sentence each, in the order of the shards; an empty list if everything is as it was written.

    What to do about a damaged shard is always the same: delete its tar and run the build again.
    """
    clips = defaultdict[str, list[dict[str, Any]]](list)
    for row in snapshot.clips.to_pylist():
        clips[row["shard"]].append(row)
    shards = snapshot.shards.to_pylist()
    tasks = [(snapshot.shard_path(row["shard"]), row["bytes"], row["checksum"], clips[row["shard"]]) for row in shards]
    problems: list[str] = []
    workers = max(1, min(len(tasks), os.cpu_count() or 1))
    with (
        progress.stage("verifying", total=len(tasks), unit="shards") as stage,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        for found in pool.map(_verify, tasks):
            problems += found
            stage.advance()
    counted = {row["shard"]: row["clips"] for row in shards}
    problems += [
        f"{name}: the clips table has {len(clips[name])} clips of it and the shards table {n}"
        for name, n in counted.items()
        if len(clips[name]) != n
    ]
    problems += [
        f"{name}: the clips table names it and the shards table does not" for name in sorted(clips.keys() - counted.keys())
    ]
    return problems


def _verify(task: tuple[Location, int, str, list[dict[str, Any]]]) -> list[str]:
    path, size, checksum, rows = task
    return list(verify_shard(path, size, checksum, {row["key"]: members_of(row) for row in rows}))
