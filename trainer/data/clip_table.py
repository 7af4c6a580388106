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
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import Snapshot, open_snapshot
from shards.errors import PretrackError
from trainer.config import DataSettings

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
