"""Summaries of the snapshots of an output folder, for `pretrack snapshots`."""

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
    """One snapshot, with its clips, shards, bytes, and when it was published.

    `settings` has the tracking settings of the first snapshot, and the changes of the later ones.
    """

    name: str
    current: bool
    published: datetime
    clips: int
    shards: int
    bytes: int
    settings: tuple[str, ...]


def summaries(out: Location) -> list[SnapshotSummary]:
    """Summarise all snapshots, oldest first. Raises PretrackError if there is none."""
    names = list_snapshots(out)
    if not names:
        raise PretrackError(
            f"{out} holds no finished build: run 'pretrack build' with 'out: {out}' first"
        )
    current = current_snapshot(out)
    snapshots = [Snapshot(out, name) for name in names]
    return [
        _summary(snapshot, previous, current)
        for snapshot, previous in zip(snapshots, [None, *snapshots], strict=False)
    ]


def _summary(snapshot: Snapshot, previous: Snapshot | None, current: str | None) -> SnapshotSummary:
    """Summarise a snapshot; `current` is the name of the current one."""
    shards = read_table(snapshot.folder / "shards.parquet", ["bytes", "clips"])
    if previous is None:
        tracks = snapshot.settings.get("tracks", {})
        settings = [
            f"tracks.{name} {tracks[name]}"
            for name in ("tracker", "grid", "anchors")
            if name in tracks
        ]
    else:
        changes = changed_settings(previous.settings, snapshot.settings)
        settings = [str(change) for change in changes] or ["the same settings"]
    return SnapshotSummary(
        name=snapshot.name,
        current=snapshot.name == current,
        published=written_at(snapshot.folder / COMMIT_FILE),
        clips=sum(shards["clips"].to_pylist()),
        shards=len(shards),
        bytes=sum(shards["bytes"].to_pylist()),
        settings=tuple(settings),
    )
