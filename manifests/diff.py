"""Compare two snapshots of a folder, by their tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.changes import SettingChange, changed_settings
from manifests.snapshot import Snapshot
from manifests.tables import failure_counts, read_table, video_identifiers

_SCORES = ("epipolar_px", "epipolar_inliers", "reprojection_px", "cycle_px")
"""The columns that say how good the tracks of a clip are."""


@dataclass(frozen=True)
class VideoChanges:
    """Numbers of videos in only one snapshot, and of those whose files changed."""

    added: int
    removed: int
    replaced: int


@dataclass(frozen=True)
class ClipChanges:
    """Numbers of clips in only one snapshot, and three kinds of clips in both.

    same:         their bytes are identical
    retracked:    their frames are identical, their tracks differ
    other_frames: their frames differ
    """

    added: int
    removed: int
    same: int
    retracked: int
    other_frames: int


@dataclass(frozen=True)
class FailureChange:
    """How often something was left out at a stage for a reason, in each snapshot."""

    stage: str
    reason: str
    old: int
    new: int


@dataclass(frozen=True)
class ShardChanges:
    """Numbers of shards in both snapshots and in only one, with their bytes."""

    shared: int
    shared_bytes: int
    added: int
    added_bytes: int
    removed: int
    removed_bytes: int


@dataclass(frozen=True)
class ScoreChange:
    """The median over clips of a score, in each snapshot, over the clips that have it in both.

    For `epipolar_inliers` larger is better, for the errors smaller.
    """

    score: str
    clips: int
    old: float
    new: float


@dataclass(frozen=True)
class Difference:
    """Everything that differs. `failures` has one entry per reason of either snapshot.

    scores: those of the clips' tracks, whether or not they differ
    """

    settings: tuple[SettingChange, ...]
    videos: VideoChanges
    clips: ClipChanges
    failures: tuple[FailureChange, ...]
    shards: ShardChanges
    scores: tuple[ScoreChange, ...]


def compare(old: Snapshot, new: Snapshot) -> Difference:
    """Compare two snapshots without reading any shard. Raises PretrackError for a damaged table."""
    return Difference(
        settings=tuple(changed_settings(old.settings, new.settings)),
        videos=_videos(old, new),
        clips=_clips(old, new),
        failures=_failures(old, new),
        shards=_shards(old.shards, new.shards),
        scores=_scores(old, new),
    )


def _videos(old: Snapshot, new: Snapshot) -> VideoChanges:
    before, after = (
        read_table(snapshot.folder / "videos.parquet", ["source", "video_id", "identity"])
        for snapshot in (old, new)
    )
    index, removed = _match(video_identifiers(before), video_identifiers(after))
    common = index >= 0
    same = pc.equal(after["identity"].filter(common), before["identity"].take(index[common]))
    return VideoChanges(
        added=int((~common).sum()),
        removed=removed,
        replaced=int(common.sum()) - (pc.sum(same).as_py() or 0),
    )


def _clips(old: Snapshot, new: Snapshot) -> ClipChanges:
    columns = ["key", "checksum", "frame_sizes"]
    before, after = (
        read_table(snapshot.folder / "clips.parquet", columns) for snapshot in (old, new)
    )
    index, removed = _match(before["key"], after["key"])
    common = index >= 0
    # The checksum covers all members, so equal checksums mean equal bytes.
    changed = pc.not_equal(
        after["checksum"].filter(common), before["checksum"].take(index[common])
    ).to_numpy()
    rows = np.flatnonzero(common)[changed]
    # Frames copied from the older shard keep their sizes; frames encoded again from other pixels
    # never all have the same sizes as before.
    retracked = _count_equal_lists(
        before["frame_sizes"].take(index[rows]), after["frame_sizes"].take(rows)
    )
    return ClipChanges(
        added=int((~common).sum()),
        removed=removed,
        same=int(common.sum()) - len(rows),
        retracked=retracked,
        other_frames=len(rows) - retracked,
    )


def _scores(old: Snapshot, new: Snapshot) -> tuple[ScoreChange, ...]:
    before, after = (
        read_table(snapshot.folder / "clips.parquet", ["key", *_SCORES]) for snapshot in (old, new)
    )
    index, _ = _match(before["key"], after["key"])
    common = index >= 0
    changes = []
    for name in _SCORES:
        earlier = before[name].take(index[common]).to_numpy()
        later = after[name].filter(common).to_numpy()
        both = np.isfinite(earlier) & np.isfinite(later)  # null is NaN here
        if both.any():
            medians = (float(np.median(values[both])) for values in (earlier, later))
            changes.append(ScoreChange(name, int(both.sum()), *medians))
    return tuple(changes)


def _match(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[NDArray[np.int64], int]:
    """Find each value of `new` in `old`.

    Returns its index [len(new)], -1 if it is absent, and the number of `old` values not in `new`.
    """
    index = pc.index_in(new, value_set=old).fill_null(-1).to_numpy().astype(np.int64)
    return index, len(old) - len(np.unique(index[index >= 0]))


def _count_equal_lists(old: pa.ChunkedArray, new: pa.ChunkedArray) -> int:
    """Count the rows at which two columns of lists, equally long, hold equal lists."""
    lengths = pc.list_value_length(old).to_numpy(), pc.list_value_length(new).to_numpy()
    same_length = lengths[0] == lengths[1]
    keep = pa.array(same_length)
    values = [pc.list_flatten(column.filter(keep)).to_numpy() for column in (old, new)]
    # For each flattened value, the list that it belongs to.
    list_of_value = np.repeat(np.arange(same_length.sum()), lengths[0][same_length])
    return int(same_length.sum() - len(np.unique(list_of_value[values[0] != values[1]])))


def _failures(old: Snapshot, new: Snapshot) -> tuple[FailureChange, ...]:
    counts = [
        {(stage, reason): count for stage, reason, count in failure_counts(snapshot.failures)}
        for snapshot in (old, new)
    ]
    return tuple(
        FailureChange(stage, reason, *(count.get((stage, reason), 0) for count in counts))
        for stage, reason in sorted({*counts[0], *counts[1]})
    )


def _shards(old: pa.Table, new: pa.Table) -> ShardChanges:
    shared = pc.is_in(new["shard"], value_set=old["shard"])
    added = new.filter(pc.invert(shared))
    removed = old.filter(pc.invert(pc.is_in(old["shard"], value_set=new["shard"])))
    both = new.filter(shared)
    return ShardChanges(
        shared=len(both),
        shared_bytes=_bytes(both),
        added=len(added),
        added_bytes=_bytes(added),
        removed=len(removed),
        removed_bytes=_bytes(removed),
    )


def _bytes(shards: pa.Table) -> int:
    return pc.sum(shards["bytes"]).as_py() or 0
