"""Garbage collection: removes old snapshots, and the shards that only they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.receipt import is_shard_name, list_receipts, receipt_path, shard_path
from manifests.snapshot import (
    COMMIT_FILE,
    Snapshot,
    current_snapshot,
    list_snapshots,
    open_snapshot,
    remove_unfinished_snapshots,
)
from manifests.tables import read_table
from pipeline.execution.lock import build_lock
from shards.errors import PretrackError
from shards.files import Location, delete, sizes_in


@dataclass(frozen=True)
class GarbageCollectionResult:
    """What is removed, or would be. `unpublished` counts shards of unfinished builds that are left for the next build to use."""

    kept: tuple[str, ...]
    snapshots: tuple[str, ...]
    shards: tuple[str, ...]
    bytes: int
    unpublished: int


def collect_garbage(
    out: Location,
    keep: int = 2,
    named: Sequence[str] = (),
    unpublished: bool = False,
    dry_run: bool = False,
) -> GarbageCollectionResult:
    """Keeps the current snapshot, the newest `keep` and those `named`; removes the others and every shard that none of them names.

    Shards that no snapshot names yet are an interrupted build's work: they go only with `unpublished`. Tars without a receipt are
    what a killed build was writing. Killed at any moment, what is kept is whole, and running it again removes the rest.

    Raises PretrackError if a name is not there, or while a build is at work.
    """
    if keep < 1:
        raise PretrackError("'--keep' should be at least 1: the current snapshot always stays")
    with build_lock(out):
        garbage = _find(out, keep, named, unpublished)
        if not dry_run:
            _remove(out, garbage)
    return garbage


def _find(
    out: Location, keep: int, named: Sequence[str], unpublished: bool
) -> GarbageCollectionResult:
    names = list_snapshots(out)
    if not names:
        raise PretrackError(f"{out} holds no finished build: there is nothing to collect")
    kept = {open_snapshot(out, name).name for name in named} | {
        *names[-keep:],
        current_snapshot(out) or names[-1],
    }
    old = [name for name in names if name not in kept]
    for folder in (out / "snapshots" / name for name in old):
        if isinstance(folder, Path) and folder.is_symlink():
            raise PretrackError(
                f"{folder} is a link, and nothing outside {out} is deleted: remove the link yourself"
            )
    wanted = {shard for name in kept for shard in _shards(Snapshot(out, name))}
    outdated = {shard for name in old for shard in _shards(Snapshot(out, name))} - wanted
    tars = {
        name.removesuffix(".tar"): size
        for name, size in sizes_in(out / "shards").items()
        if name.endswith(".tar")
    }
    sizes = {
        shard: size for shard, size in tars.items() if is_shard_name(shard)
    }  # others are not ours to remove
    receipts = set(list_receipts(out))
    loose = receipts - wanted - outdated
    orphans = sizes.keys() - receipts - wanted - outdated
    gone = outdated | orphans | (loose if unpublished else set())
    return GarbageCollectionResult(
        tuple(sorted(kept)),
        tuple(old),
        tuple(sorted(gone)),
        sum(sizes.get(shard, 0) for shard in gone),
        0 if unpublished else len(loose),
    )


def _shards(snapshot: Snapshot) -> list[str]:
    """The names of a snapshot's shards."""
    names: list[str] = read_table(snapshot.folder / "shards.parquet", ["shard"])[
        "shard"
    ].to_pylist()
    return names


def _remove(out: Location, garbage: GarbageCollectionResult) -> None:
    """Receipts first, so that a tar left over by a crash is an orphan; then the snapshots, and last the tars that they named."""
    receipts = [receipt_path(out, shard) for shard in garbage.shards]
    for receipt in receipts:
        delete(receipt)
    for name in garbage.snapshots:
        delete(out / "snapshots" / name / COMMIT_FILE)
    remove_unfinished_snapshots(out)
    for shard in garbage.shards:
        delete(shard_path(out, shard))
