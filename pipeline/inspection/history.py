"""What the snapshots of an output folder hold, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from manifests.changes import changed_settings
from manifests.snapshot import COMMIT_FILE, Snapshot, current_snapshot, list_snapshots
from manifests.tables import read_table
from shards.errors import PretrackError
from shards.files import Location, written_at


@dataclass(frozen=True)
class SnapshotSummary:
    """One snapshot. `settings` says what it was made with: of the first the tracker, of the others what changed."""

    name: str
    current: bool
    published: datetime
    clips: int
    shards: int
    bytes: int
    settings: tuple[str, ...]


def summaries(out: Location) -> list[SnapshotSummary]:
    """All snapshots, oldest first. Raises PretrackError if there is none."""
    names = list_snapshots(out)
    if not names:
        raise PretrackError(
            f"{out} holds no finished build: run 'pretrack build' with 'out: {out}' first"
        )
    current = current_snapshot(out)
    found = [Snapshot(out, name) for name in names]
    befores = [None, *found]
    return [
        _summary(snapshot, before, current)
        for snapshot, before in zip(found, befores, strict=False)
    ]


def _summary(snapshot: Snapshot, before: Snapshot | None, current: str | None) -> SnapshotSummary:
    sizes = read_table(snapshot.folder / "shards.parquet", ["bytes", "clips"])
    if before is None:
        tracks = snapshot.settings.get("tracks", {})
        words = [
            f"tracks.{name} {tracks[name]}"
            for name in ("tracker", "grid", "anchors")
            if name in tracks
        ]
    else:
        words = [
            str(change) for change in changed_settings(before.settings, snapshot.settings)
        ] or ["the same settings"]
    return SnapshotSummary(
        snapshot.name,
        snapshot.name == current,
        written_at(snapshot.folder / COMMIT_FILE),
        sum(sizes["clips"].to_pylist()),
        len(sizes),
        sum(sizes["bytes"].to_pylist()),
        tuple(words),
    )
