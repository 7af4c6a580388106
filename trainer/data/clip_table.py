"""The clips of a run's snapshots as one table, cheap to index and to share with workers."""

from __future__ import annotations

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
from shards.errors import PretrackError
from trainer.data.settings import DataSettings


@dataclass(frozen=True, eq=False)
class Clip:
    """The parts of a clip's row that reading needs: its shard, and where its members lie there.

    folder:        index of the snapshot that has the shard
    frames:        number of frames; `width` and `height` in pixels
    anchors:       indices of the anchor frames within the clip [A]
    json_offset:   first byte of the description in the shard; its bytes: `json_size`
    tracks_offset: first byte of the tracks member in the shard
    anchor_sizes:  bytes of each anchor's tracks [A], one after the other in that member
    frame_offsets: first byte of each frame's JPEG in the shard [frames]; its bytes: `frame_sizes`
    scores_offset: first byte of the tracks' scores in the shard; their bytes, 0 if there are none:
                   `scores_size`
    """

    key: str
    folder: int
    shard: str
    frames: int
    width: int
    height: int
    anchors: NDArray[np.int32]
    json_offset: int
    json_size: int
    tracks_offset: int
    anchor_sizes: NDArray[np.int64]
    frame_offsets: NDArray[np.int64]
    frame_sizes: NDArray[np.int64]
    scores_offset: int
    scores_size: int


class ClipTable:
    """A list of clips over an Arrow table.

    It holds no Python object per clip, so forked workers keep sharing its memory; reference counts
    would copy its pages. Other workers receive it as the path of a file that they memory-map; the
    file lives as long as the list that it was written from.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        # Columns stay in their record batches: joining them would copy the table.
        batches = table.to_batches()
        self._starts = [0, *accumulate(len(batch) for batch in batches)]
        self._parts = [
            {name: _column(batch[name]) for name in Clip.__dataclass_fields__} for batch in batches
        ]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Pickling sends only the path, so that all workers map the same pages.
        return _memory_mapped, (f"{self._folder.name}/clips.arrow",)

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
        row = index - self._starts[part]
        values: dict[str, Any] = {name: column[row] for name, column in self._parts[part].items()}
        return Clip(**values)

    @property
    def largest_frame(self) -> int:
        """Bytes of the largest JPEG of all clips; 0 if none has any."""
        return pc.max(pc.list_flatten(self.table["frame_sizes"])).as_py() or 0

    @property
    def identity(self) -> str:
        """A digest of the clips and their order."""
        return fingerprint_lines(self.table["checksum"].to_pylist())

    @property
    def shards(self) -> NDArray[np.int64]:
        """Number of each clip's shard, counted over all folders: [clips]."""
        shard = self.table["shard"].combine_chunks().dictionary_encode()
        # Shards of different folders can have the same name: number (folder, name) pairs.
        pairs = (
            shard.indices.to_numpy().astype(np.int64)
            + len(shard.dictionary) * self.table["folder"].to_numpy()
        )
        return np.unique(pairs, return_inverse=True)[1]


def _memory_mapped(path: str) -> ClipTable:
    return ClipTable(pa.ipc.open_file(pa.memory_map(path)).read_all())


class _NumberColumn:
    """A column of numbers, indexed as Python numbers."""

    def __init__(self, column: pa.Array) -> None:
        self._values = column.to_numpy(zero_copy_only=False)

    def __getitem__(self, index: int) -> int:
        return self._values[index].item()


class _ListColumn:
    """A column of lists of numbers, indexed as array views."""

    def __init__(self, column: pa.ListArray) -> None:
        self._values, self._ends = column.values.to_numpy(), column.offsets.to_numpy()

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._values[self._ends[index] : self._ends[index + 1]]


class _StringColumn:
    """A column of strings, indexed as Python strings."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __getitem__(self, index: int) -> str:
        return str(self._column[index])


def _column(column: pa.Array) -> _NumberColumn | _ListColumn | _StringColumn:
    if pa.types.is_list(column.type):
        return _ListColumn(column)
    if pa.types.is_string(column.type):
        return _StringColumn(column)
    return _NumberColumn(column)


def open_snapshots(settings: DataSettings, names: Sequence[str] | None = None) -> list[Snapshot]:
    """Open the snapshots to train on, one per folder of `data.out`.

    names: the snapshots that a resumed run was started with; None: the one in the settings, or
    else each folder's current one

    Raises PretrackError if a snapshot does not exist, or if names and folders differ in number.
    """
    chosen = names if names is not None else [settings.snapshot] * len(settings.out)
    if len(chosen) != len(settings.out):
        raise PretrackError(
            f"this run was started with {len(chosen)} folders in 'data.out', and now there are "
            f"{len(settings.out)}: resume it with the same folders"
        )
    return [open_snapshot(out, name) for out, name in zip(settings.out, chosen, strict=True)]
