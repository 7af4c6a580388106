"""Publish and open snapshots: the immutable result of a finished build.

    OUT/snapshots/000001/{videos,clips,shards,failures}.parquet, shards.txt, settings.json
    OUT/current.json                     {"snapshot": "000001"}, replaced atomically

A trainer keeps the snapshot it started with; the shards that a snapshot names stay until garbage
collection.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import pyarrow as pa

from manifests.receipt import shard_path
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, read_table, write_table
from shards.clip import Directions
from shards.errors import AccessError, PretrackError
from shards.files import (
    Location,
    atomic_write,
    delete_folder,
    folders_in,
    parse_location,
    read_file,
    size_of,
    sizes_in,
    sync_folder,
)

TABLES = ("videos", "clips", "shards", "failures")
COMMIT_FILE = "settings.json"
"""Written last into a snapshot's folder; a folder without it is incomplete and ignored."""


@dataclass(frozen=True)
class Snapshot:
    """A published state of an output folder. Each table is read on first use."""

    out: Location
    name: str

    @property
    def folder(self) -> Location:
        """The folder of its tables."""
        return self.out / "snapshots" / self.name

    @cached_property
    def videos(self) -> pa.Table:
        """One row per usable video."""
        return read_table(self.folder / "videos.parquet", VIDEOS.names)

    @cached_property
    def clips(self) -> pa.Table:
        """One row per clip, with its members' byte offsets."""
        return read_table(self.folder / "clips.parquet", CLIPS.names)

    @cached_property
    def shards(self) -> pa.Table:
        """One row per shard file."""
        return read_table(self.folder / "shards.parquet", SHARDS.names)

    @cached_property
    def failures(self) -> pa.Table:
        """One row per failure: whatever was left out."""
        return read_table(self.folder / "failures.parquet", FAILURES.names)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of its build. Raises PretrackError if their file is damaged or missing."""
        file = self.folder / COMMIT_FILE
        try:
            return dict(json.loads(read_file(file)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise PretrackError(f"the settings {file} cannot be read ({error})") from error

    @property
    def tracked(self) -> Directions:
        """The directions in which points were tracked. Raises PretrackError if they are unknown."""
        tracks = self.settings.get("tracks")
        directions = tracks.get("directions", "both") if isinstance(tracks, dict) else "both"
        if directions not in get_args(Directions):
            raise PretrackError(
                f"the settings {self.folder / COMMIT_FILE} say tracks.directions "
                f"{directions!r:.80}, and this version of pretrack knows "
                f"{', '.join(get_args(Directions))}"
            )
        return cast(Directions, directions)

    def shard_path(self, shard: str) -> Location:
        """Give the path of a shard's tar. Raises PretrackError for a name that is not allowed."""
        return shard_path(self.out, shard)


def open_snapshot(where: str | Location, name: str | None = None) -> Snapshot:
    """Open the current snapshot of an output folder (a path or a URL), or the one called `name`.

    Raises PretrackError if there is none.
    """
    out = parse_location(where)
    if name is None:
        name = current_snapshot(out)
        if name is None:
            advice = (
                "check the name; 'pretrack publish' uploads one"
                if str(out).startswith("hf:")
                else f"run 'pretrack build' with 'out: {out}' first"
            )
            raise PretrackError(f"{out} holds no finished build: {advice}")
    snapshot = Snapshot(out, name)
    try:
        if not _is_name(name):  # it becomes part of a path
            raise FileNotFoundError
        size_of(snapshot.folder / COMMIT_FILE)
    except FileNotFoundError:
        raise PretrackError(
            f"{out} has no snapshot '{name}' (there are: {_list_in_words(out)})"
        ) from None
    return snapshot


def _list_in_words(out: Location) -> str:
    """List the snapshots of a folder in words; web servers often cannot list a folder."""
    try:
        return ", ".join(list_snapshots(out)) or "none"
    except AccessError:
        return "it cannot be listed"


def current_snapshot(out: Location) -> str | None:
    """Name the current snapshot, or None.

    Raises PretrackError if the pointer file is damaged, AccessError if it cannot be read.
    """
    pointer = out / "current.json"
    try:
        name = str(json.loads(read_file(pointer))["snapshot"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PretrackError(
            f"{pointer} is damaged ({error}): delete it and run 'pretrack build' again"
        ) from error
    if not _is_name(name):
        raise PretrackError(
            f"{pointer} is damaged ({name!r:.80} is no snapshot): "
            "delete it and run 'pretrack build' again"
        )
    return name


def _is_name(name: str) -> bool:
    return name.isascii() and name.isdigit()


def list_snapshots(out: Location) -> list[str]:
    """List the names of all complete snapshots, oldest first."""
    folder = out / "snapshots"
    return [
        name
        for name in folders_in(folder)
        if _is_name(name) and COMMIT_FILE in sizes_in(folder / name)
    ]


def publish_snapshot(
    out: Location, tables: dict[str, pa.Table], settings: dict[str, Any]
) -> Snapshot:
    """Write a new snapshot beside the others and make it current.

    If the process is killed at any moment, the previous snapshot stays current. The snapshot also
    gets `shards.txt`: its tars, relative to `out`, for readers that do not read tables.
    """
    # Unfinished snapshots count too, so that two never share a folder.
    names = [name for name in folders_in(out / "snapshots") if _is_name(name)]
    name = f"{int(names[-1]) + 1 if names else 1:06d}"
    folder = out / "snapshots" / name
    try:
        for table in TABLES:
            write_table(folder / f"{table}.parquet", tables[table])
        tars = "".join(
            f"shards/{shard}.tar\n" for shard in tables["shards"].column("shard").to_pylist()
        )
        atomic_write(folder / "shards.txt", tars.encode())
        atomic_write(folder / COMMIT_FILE, json.dumps(settings, sort_keys=True, indent=1).encode())
    except BaseException:
        with suppress(OSError):
            delete_folder(folder)
        raise
    if isinstance(folder, Path):
        sync_folder(folder.parent)
    set_current(out, name)
    return Snapshot(out, name)


def remove_unfinished_snapshots(out: Location) -> None:
    """Remove the folders of snapshots that a killed process was writing or removing.

    The caller must hold the build lock of `out`.
    """
    complete = list_snapshots(out)
    for name in folders_in(out / "snapshots"):
        if _is_name(name) and name not in complete:
            delete_folder(out / "snapshots" / name)


def set_current(out: Location, name: str) -> None:
    """Make a snapshot the current one, atomically."""
    atomic_write(out / "current.json", json.dumps({"snapshot": name}).encode())
