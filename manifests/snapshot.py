"""Snapshots: what a finished build publishes, never changed afterwards.

    OUT/snapshots/000001/{videos,clips,shards,failures}.parquet, settings.json
    OUT/current.json                     {"snapshot": "000001"}, replaced in one step

A trainer holds the snapshot it started with; the shards it names stay until garbage is collected.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.receipt import shard_path
from manifests.tables import read_table, write_table
from shards.errors import PretrackError
from shards.files import TEMPORARY, sync_folder, write_whole

TABLES = ("videos", "clips", "shards", "failures")


@dataclass(frozen=True)
class Snapshot:
    """A published state of an output folder; tables are read when first asked for."""

    out: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where its tables lie."""
        return self.out / "snapshots" / self.name

    @cached_property
    def videos(self) -> pa.Table:
        """One row a usable video."""
        return read_table(self.folder / "videos.parquet")

    @cached_property
    def clips(self) -> pa.Table:
        """One row a clip, with its members' byte offsets."""
        return read_table(self.folder / "clips.parquet")

    @cached_property
    def shards(self) -> pa.Table:
        """One row a shard file."""
        return read_table(self.folder / "shards.parquet")

    @cached_property
    def failures(self) -> pa.Table:
        """One row for everything left out."""
        return read_table(self.folder / "failures.parquet")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings it was built with."""
        loaded: dict[str, Any] = json.loads((self.folder / "settings.json").read_bytes())
        return loaded

    def shard_path(self, shard: str) -> Path:
        """Where a shard's tar lies."""
        return shard_path(self.out, shard)


def open_snapshot(out: Path, name: str | None = None) -> Snapshot:
    """The current snapshot of an output folder, or the one named. Raises PretrackError where there is none."""
    if name is None:
        name = current_snapshot(out)
        if name is None:
            raise PretrackError(f"{out} holds no finished build: run 'pretrack build' with 'out: {out}' first")
    snapshot = Snapshot(out, name)
    if not snapshot.folder.is_dir():
        known = ", ".join(list_snapshots(out)) or "none"
        raise PretrackError(f"{out} has no snapshot '{name}' (there are: {known})")
    return snapshot


def current_snapshot(out: Path) -> str | None:
    """The name of the current snapshot, or None. Raises PretrackError if the pointer file is damaged."""
    pointer = out / "current.json"
    try:
        return str(json.loads(pointer.read_bytes())["snapshot"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrackError(f"{pointer} is damaged ({error}): delete it and run 'pretrack build' again") from error


def list_snapshots(out: Path) -> list[str]:
    """Names of all snapshots, oldest first."""
    folder = out / "snapshots"
    return sorted(path.name for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def publish_snapshot(out: Path, tables: dict[str, pa.Table], settings: dict[str, Any]) -> Snapshot:
    """Writes a new snapshot beside the others and makes it current; killed at any moment, the one before stays current.

    Beside the tables and settings it holds `shards.txt`: its tars, relative to `out`, for readers that know nothing of tables.
    """
    names = list_snapshots(out)
    name = f"{int(names[-1]) + 1 if names else 1:06d}"
    folder = out / "snapshots"
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        for table in TABLES:
            write_table(temporary / f"{table}.parquet", tables[table])
        write_whole(temporary / "settings.json", json.dumps(settings, sort_keys=True, indent=1).encode())
        tars = [shard_path(Path(), shard).as_posix() for shard in tables["shards"].column("shard").to_pylist()]
        write_whole(temporary / "shards.txt", "".join(f"{tar}\n" for tar in tars).encode())
        os.rename(temporary, folder / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    write_whole(out / "current.json", json.dumps({"snapshot": name}).encode())
    return Snapshot(out, name)
