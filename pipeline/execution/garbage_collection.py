"""Collect garbage: remove old snapshots, and the shards that only they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.receipt import is_shard_name, list_receipts, receipt_paths, shard_path
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
    """What a collection removed, or would remove in a dry run.

    kept, snapshots: names of the snapshots kept and removed
    shards:          names of the shards removed
    bytes:           the size of their tars
    unpublished:     number of shards of unfinished builds left for the next build to use
    """

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
    """Remove all snapshots but those to keep, and every shard that no kept snapshot names.

    keep:        the newest `keep` snapshots are kept, and the current one always is
    named:       snapshots to keep as well
    unpublished: remove shards, too, that no snapshot names yet: the work of an interrupted build
    dry_run:     remove nothing

    Tars without a receipt were left by a killed build, and are removed. If a collection is killed
    at any moment, everything kept is whole, and running it again removes the rest.

    Raises PretrackError if a named snapshot does not exist, or while a build is at work.
    """
    if keep < 1:
        raise PretrackError("'--keep' should be at least 1: the current snapshot always stays")
    with build_lock(out):
        garbage = _find_garbage(out, keep, named, unpublished)
        if not dry_run:
            _remove(out, garbage)
    return garbage


def _find_garbage(
    out: Location, keep: int, named: Sequence[str], unpublished: bool
) -> GarbageCollectionResult:
    """Decide what `collect_garbage` removes. Raises PretrackError."""
    names = list_snapshots(out)
    if not names:
        raise PretrackError(f"{out} holds no finished build: there is nothing to collect")
    current = current_snapshot(out) or names[-1]
    kept = {open_snapshot(out, name).name for name in named} | {*names[-keep:], current}
    old = [name for name in names if name not in kept]
    _check_no_links(out, old)

    # Shards by who names them: a kept snapshot, only old snapshots, or only a receipt.
    kept_shards = {shard for name in kept for shard in _shards(Snapshot(out, name))}
    outdated = {shard for name in old for shard in _shards(Snapshot(out, name))} - kept_shards
    receipts = set(list_receipts(out))
    unnamed = receipts - kept_shards - outdated
    sizes = _tar_sizes(out)
    orphans = sizes.keys() - receipts - kept_shards - outdated

    removed = outdated | orphans | (unnamed if unpublished else set())
    return GarbageCollectionResult(
        kept=tuple(sorted(kept)),
        snapshots=tuple(old),
        shards=tuple(sorted(removed)),
        bytes=sum(sizes.get(shard, 0) for shard in removed),
        unpublished=0 if unpublished else len(unnamed),
    )


def _check_no_links(out: Location, snapshots: Sequence[str]) -> None:
    """Raise PretrackError if the folder of a snapshot is a symbolic link."""
    for folder in (out / "snapshots" / name for name in snapshots):
        if isinstance(folder, Path) and folder.is_symlink():
            raise PretrackError(
                f"{folder} is a link, and nothing outside {out} is deleted: remove the link "
                "yourself"
            )


def _shards(snapshot: Snapshot) -> list[str]:
    """List the names of a snapshot's shards."""
    table = read_table(snapshot.folder / "shards.parquet", ["shard"])
    names: list[str] = table["shard"].to_pylist()
    return names


def _tar_sizes(out: Location) -> dict[str, int]:
    """List the sizes of the tars that are named like shards; other files are not ours to remove."""
    sizes = sizes_in(out / "shards")
    tars = {
        name.removesuffix(".tar"): size for name, size in sizes.items() if name.endswith(".tar")
    }
    return {shard: size for shard, size in tars.items() if is_shard_name(shard)}


def _remove(out: Location, garbage: GarbageCollectionResult) -> None:
    """Remove receipts, then snapshots, then tars.

    A collection killed in between leaves tars without a receipt, which the next one removes.
    """
    # All paths first: a damaged name must stop the collection before it deletes anything.
    receipts = [path for shard in garbage.shards for path in receipt_paths(out, shard)]
    for receipt in receipts:
        delete(receipt)
    for name in garbage.snapshots:
        delete(out / "snapshots" / name / COMMIT_FILE)
    remove_unfinished_snapshots(out)
    for shard in garbage.shards:
        delete(shard_path(out, shard))
