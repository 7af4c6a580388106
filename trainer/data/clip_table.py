"""Which clips are trained on: those of the snapshots' tables that fit the settings, and the groups they are mixed by."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import Snapshot, open_snapshot
from manifests.tables import CLIPS, read_table
from shards.errors import PretrackError
from shards.files import absolute, parse_location
from trainer.config import DataSettings
from trainer.data.clip_filter import parse_filter
from trainer.data.sampler import ClipGroup

logger = logging.getLogger(__name__)

MOST_POINTS = 1 << 20
"""Of a clip: a grid of 1024 x 1024."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as a reader needs it: its shard (of snapshot number `folder`), and where its members lie in that."""

    key: str
    folder: int
    shard: str
    frames: int
    width: int
    height: int
    anchors: NDArray[np.int32]
    tracks_offset: int
    anchor_sizes: NDArray[np.int64]
    frame_offsets: NDArray[np.int64]
    frame_sizes: NDArray[np.int64]


class ClipTable:
    """A list of clips, over an Arrow table. It holds no Python object a clip, so forked workers go on sharing its memory.

    Workers that are not forked get it as a file that they map, which lives as long as the list that it was made from.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        batches = table.to_batches()
        self._starts = [0, *accumulate(len(batch) for batch in batches)]
        self._parts = [
            {name: _column(batch[name]) for name in Clip.__dataclass_fields__} for batch in batches
        ]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _mapped, (f"{self._folder.name}/clips.arrow",)

    @cached_property
    def _folder(self) -> TemporaryDirectory[str]:
        folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="pretrack-")
        with (
            pa.OSFile(f"{folder.name}/clips.arrow", "wb") as file,
            pa.ipc.new_file(file, self.table.schema) as writer,
        ):
            writer.write_table(self.table)
        return folder

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> Clip:
        part = bisect_right(self._starts, index) - 1
        place = index - self._starts[part]
        values: dict[str, Any] = {name: column[place] for name, column in self._parts[part].items()}
        return Clip(**values)

    @property
    def identity(self) -> str:
        """A digest of which clips these are, and in what order."""
        return fingerprint_lines(self.table["checksum"].to_pylist())

    @property
    def shards(self) -> NDArray[np.int64]:
        """The number of each clip's shard, over all folders: [clips]."""
        shard = self.table["shard"].combine_chunks().dictionary_encode()
        places = (
            shard.indices.to_numpy().astype(np.int64)
            + len(shard.dictionary) * self.table["folder"].to_numpy()
        )
        return np.unique(places, return_inverse=True)[1]


def _mapped(path: str) -> ClipTable:
    return ClipTable(pa.ipc.open_file(pa.memory_map(path)).read_all())


class _Numbers:
    """A column of numbers, read as Python's own."""

    def __init__(self, column: pa.Array) -> None:
        self._values = column.to_numpy(zero_copy_only=False)

    def __getitem__(self, index: int) -> int:
        return self._values[index].item()


class _Lists:
    """A column of lists of numbers, read as arrays that are not copied."""

    def __init__(self, column: pa.ListArray) -> None:
        self._values, self._ends = column.values.to_numpy(), column.offsets.to_numpy()

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._values[self._ends[index] : self._ends[index + 1]]


class _Texts:
    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __getitem__(self, index: int) -> str:
        return str(self._column[index])


def _column(column: pa.Array) -> _Numbers | _Lists | _Texts:
    return (
        _Lists
        if pa.types.is_list(column.type)
        else _Texts
        if pa.types.is_string(column.type)
        else _Numbers
    )(column)


def open_snapshots(settings: DataSettings, names: Sequence[str] | None = None) -> list[Snapshot]:
    """The snapshots to train on: those named (one a folder, as a resumed run needs), else the settings', else the current ones.

    Raises PretrackError if one is not there, or if there are not as many names as folders.
    """
    wanted = names if names is not None else [settings.snapshot] * len(settings.out)
    if len(wanted) != len(settings.out):
        raise PretrackError(
            f"this run was begun with {len(wanted)} folders in 'data.out', and now there are {len(settings.out)}"
        )
    return [open_snapshot(out, name) for out, name in zip(settings.out, wanted, strict=True)]


def choose_clips(snapshots: Sequence[Snapshot], settings: DataSettings) -> ClipTable:
    """The clips of all snapshots that fit the settings; logs how many each rule leaves out.

    Raises PretrackError if nothing fits, or if clips differ in their number of points, or have a number that none can have.
    """
    tables = [_read(snapshot, number, settings.where) for number, snapshot in enumerate(snapshots)]
    clips = ClipTable(_fitting(pa.concat_tables(tables), settings))
    folders = ", ".join(str(snapshot.out) for snapshot in snapshots)
    if not len(clips):
        where = f" and {settings.where}" if settings.where else ""
        raise PretrackError(
            f"no clip in {folders} fits: split '{settings.split}'{where}, {settings.frames} frames or more from an anchor"
        )
    points = clips.table["points"].unique().to_pylist()
    if len(points) > 1:
        raise PretrackError(
            f"the clips in {folders} differ in their points ({sorted(points)}): choose some with "
            f"'data.where', such as \"points == {max(points)}\""
        )
    if not 0 < points[0] <= MOST_POINTS:  # there is memory of this size before any track is read
        raise PretrackError(f"the tables in {folders} are damaged: no clip has {points[0]} points")
    return clips


def mixed_groups(
    clips: ClipTable, snapshots: Sequence[Snapshot], weights: dict[str, float]
) -> tuple[ClipGroup, ...]:
    """The groups that `data.weights` names, by dataset or folder; none if it is empty.

    Raises PretrackError for a name of nothing, and unless every clip is in exactly one group.
    """
    datasets, folder = clips.table["dataset"], clips.table["folder"].to_numpy()
    times = np.zeros(len(clips), np.int64)
    groups = []
    for name, weight in weights.items():
        numbers = [
            i
            for i, snapshot in enumerate(snapshots)
            if snapshot.out == absolute(parse_location(name))
        ]
        chosen = np.isin(folder, numbers) if numbers else pc.equal(datasets, name).to_numpy()
        if not chosen.any():
            known = ", ".join(sorted(datasets.unique().to_pylist()))
            raise PretrackError(
                f"'data.weights' names '{name}', and no clip is of such a dataset or folder (there are: {known})"
            )
        times += chosen
        groups.append(ClipGroup(np.flatnonzero(chosen), weight))
    if weights and (times != 1).any():
        first = clips[int(np.flatnonzero(times != 1)[0])]
        how = "in none" if times.min() == 0 else "in two"
        raise PretrackError(
            f"'data.weights' should put every clip in one group, and {first.key} is {how}: name its dataset or its folder, "
            "or leave it out with 'data.where'"
        )
    return tuple(groups)


def _read(snapshot: Snapshot, number: int, where: str) -> pa.Table:
    """A snapshot's clips, without the columns that nobody asks for; `folder` is the snapshot's number."""
    needed = {"dataset", "split", "points", "checksum", *Clip.__dataclass_fields__}
    names = [field.name for field in CLIPS if field.name in needed or field.name in where]
    table = read_table(snapshot.folder / "clips.parquet", names)
    return table.append_column("folder", pa.repeat(pa.scalar(number, pa.int32()), table.num_rows))


def _fitting(clips: pa.Table, settings: DataSettings) -> pa.Table:
    """The clips that the settings ask for and that are long and large enough; logs how many each rule leaves out."""
    size, reach = settings.size, least_room(settings)
    rules: dict[str, pc.Expression] = {
        f"split other than '{settings.split}'": pc.field("split") == settings.split
    }
    if settings.where.strip():
        rules[f"not {settings.where}"] = parse_filter(settings.where)
    rules[f"too short for {settings.frames} frames from an anchor"] = pc.field("room") >= reach
    if settings.crop == "native":
        rules[f"smaller than {size}x{size}"] = (pc.field("width") >= size) & (
            pc.field("height") >= size
        )
    asked = [
        name
        for name in clips.column_names
        if name in ("split", "width", "height") or name in settings.where
    ]
    light = clips.select(asked)  # the rest is copied once, if at all
    light = light.append_column("room", pa.array(room(clips, settings)))
    light = light.append_column("row", pa.array(np.arange(clips.num_rows)))
    for reason, rule in rules.items():
        kept = light.filter(rule)
        if lost := light.num_rows - kept.num_rows:
            logger.info("%d clips left out: %s", lost, reason)
            light = kept
    return clips if light.num_rows == clips.num_rows else clips.take(light["row"])


def least_room(settings: DataSettings) -> int:
    """How many frames a clip needs on one side of an anchor."""
    return (settings.frames - 1) * min(settings.step, 1)


def room(clips: pa.Table, settings: DataSettings) -> NDArray[np.int64]:
    """The most frames that lie on one side of a usable anchor, from the columns `anchors` and `frames`: [clips]."""
    lengths = pc.list_value_length(clips["anchors"]).to_numpy()
    first, last = np.full(len(lengths), -1), np.full(len(lengths), -1)
    anchors, usable = pc.list_flatten(clips["anchors"]).to_numpy(), lengths > 0
    starts = (np.cumsum(lengths) - lengths)[usable]
    if len(anchors):
        first[usable] = (
            anchors[starts] if settings.anchor == "first" else np.minimum.reduceat(anchors, starts)
        )
        last[usable] = (
            anchors[starts] if settings.anchor == "first" else np.maximum.reduceat(anchors, starts)
        )
    forward = np.where(usable, clips["frames"].to_numpy() - 1 - first, -1)
    return np.maximum(forward, last) if settings.direction == "both" else forward
