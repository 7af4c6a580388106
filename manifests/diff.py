"""What differs between two snapshots of a folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.changes import SettingChange, changed_settings
from manifests.snapshot import Snapshot
from manifests.tables import failure_counts, read_table, video_identifiers


@dataclass(frozen=True)
class VideoChanges:
    """Videos of one snapshot and not the other, and those whose files changed."""

    added: int
    removed: int
    replaced: int


@dataclass(frozen=True)
class ClipChanges:
    """Clips of one snapshot and not the other; of the clips of both, those with the same bytes, those with other tracks over the
    same frames, and those with other frames."""

    added: int
    removed: int
    same: int
    retracked: int
    other_frames: int


@dataclass(frozen=True)
class FailureChange:
    """How often something was left out for a reason, in each snapshot."""

    stage: str
    reason: str
    old: int
    new: int


@dataclass(frozen=True)
class ShardChanges:
    """Shards and their bytes: in both snapshots, and in only one."""

    shared: int
    shared_bytes: int
    added: int
    added_bytes: int
    removed: int
    removed_bytes: int


@dataclass(frozen=True)
class Difference:
    """Everything that differs. `failures` has every reason of either snapshot."""

    settings: tuple[SettingChange, ...]
    videos: VideoChanges
    clips: ClipChanges
    failures: tuple[FailureChange, ...]
    shards: ShardChanges


def compare(old: Snapshot, new: Snapshot) -> Difference:
    """Compares two snapshots by their tables; no shard is read. Raises PretrackError if a table cannot be read."""
    return Difference(
        settings=tuple(changed_settings(old.settings, new.settings)),
        videos=_videos(old, new),
        clips=_clips(old, new),
        failures=_failures(old, new),
        shards=_shards(old.shards, new.shards),
    )


def _videos(old: Snapshot, new: Snapshot) -> VideoChanges:
    before, after = (
        read_table(it.folder / "videos.parquet", ["source", "video_id", "identity"])
        for it in (old, new)
    )
    place, removed = _matched(video_identifiers(before), video_identifiers(after))
    common = place >= 0
    same = pc.equal(after["identity"].filter(common), before["identity"].take(place[common]))
    return VideoChanges(
        int((~common).sum()), removed, int(common.sum()) - (pc.sum(same).as_py() or 0)
    )


def _clips(old: Snapshot, new: Snapshot) -> ClipChanges:
    columns = ["key", "checksum", "frame_sizes"]
    before, after = (read_table(it.folder / "clips.parquet", columns) for it in (old, new))
    place, removed = _matched(before["key"], after["key"])
    common = place >= 0
    changed = pc.not_equal(
        after["checksum"].filter(common), before["checksum"].take(place[common])
    ).to_numpy()
    rows = np.flatnonzero(common)[changed]
    retracked = _same_lists(
        before["frame_sizes"].take(place[rows]), after["frame_sizes"].take(rows)
    )
    return ClipChanges(
        added=int((~common).sum()),
        removed=removed,
        same=int(common.sum()) - len(rows),
        retracked=retracked,
        other_frames=len(rows) - retracked,
    )


def _matched(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[NDArray[np.int64], int]:
    """Where each of `new` is in `old`, -1 where it is not; and how many of `old` are not in `new`."""
    place = pc.index_in(new, value_set=old).fill_null(-1).to_numpy().astype(np.int64)
    return place, len(old) - len(np.unique(place[place >= 0]))


def _same_lists(old: pa.ChunkedArray, new: pa.ChunkedArray) -> int:
    """How many lists are equal, of two columns of as many. Frames that were taken over have the sizes they had; frames encoded
    anew from other pixels never all have the same."""
    lengths = pc.list_value_length(old).to_numpy(), pc.list_value_length(new).to_numpy()
    alike = lengths[0] == lengths[1]
    values = [pc.list_flatten(column.filter(pa.array(alike))).to_numpy() for column in (old, new)]
    of_list = np.repeat(np.arange(alike.sum()), lengths[0][alike])
    return int(alike.sum() - len(np.unique(of_list[values[0] != values[1]])))


def _failures(old: Snapshot, new: Snapshot) -> tuple[FailureChange, ...]:
    counts = [
        {(stage, reason): count for stage, reason, count in failure_counts(it.failures)}
        for it in (old, new)
    ]
    return tuple(
        FailureChange(*key, *(count.get(key, 0) for count in counts))
        for key in sorted({*counts[0], *counts[1]})
    )


def _shards(old: pa.Table, new: pa.Table) -> ShardChanges:
    shared = pc.is_in(new["shard"], value_set=old["shard"])
    added = new.filter(pc.invert(shared))
    removed = old.filter(pc.invert(pc.is_in(old["shard"], value_set=new["shard"])))
    both = new.filter(shared)
    return ShardChanges(
        len(both), _bytes(both), len(added), _bytes(added), len(removed), _bytes(removed)
    )


def _bytes(shards: pa.Table) -> int:
    return pc.sum(shards["bytes"]).as_py() or 0
