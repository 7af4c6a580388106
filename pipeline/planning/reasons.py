"""Describe why a shard is made again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.changes import changed_settings
from manifests.tables import read_table
from manifests.wording import pluralise
from pipeline.planning.clip_windows import video_names, videos_of
from pipeline.planning.existing_shards import ExistingShard, ExistingShards

# Fates of a video since the current snapshot, in the words of reasons.
_SAME = "cut into other clips"
_ADDED = "added"
_MOVED = "moved to another split"
_REPLACED = "replaced"
_REMOVED = "removed"
_ORDER = (_ADDED, _REMOVED, _REPLACED, _MOVED, _SAME)


def describe_settings_change(section: str, old: str, new: str) -> str:
    """Describe which settings (canonical JSON) differ: "tracks.grid 16 → 24", "" if none does."""
    before, after = json.loads(old), json.loads(new)
    # Stored settings omit these where they are as here.
    omitted: dict[str, dict[str, Any]] = {
        "tracks": {"directions": "both"},
        "frames": {"depth": False, "masks": False},
    }
    before, after = ({**omitted[section], **values} for values in (before, after))
    changes = changed_settings({section: before}, {section: after})
    # Another tracker has different settings altogether: listing them would not help.
    tracker = [change for change in changes if change.key == f"{section}.tracker"]
    return ", ".join(str(change) for change in tracker or changes)


@dataclass(frozen=True)
class ChangedShard:
    """A shard whose clips change.

    videos:      rows of the videos that it is to hold
    predecessor: the existing shard that it replaces, None for a new group
    """

    split: str
    videos: frozenset[int]
    predecessor: ExistingShard | None


@dataclass(frozen=True)
class _HeldVideos:
    """The videos that an existing shard has clips of.

    rows:    those that are still there, as rows of the videos table
    removed: number of those that are not
    """

    rows: frozenset[int] = frozenset()
    removed: int = 0


def describe_video_changes(
    videos: pa.Table, names: pa.Array, existing: ExistingShards, shards: Sequence[ChangedShard]
) -> list[str]:
    """Describe how each shard's videos changed: "3 videos added, 1 video replaced".

    The description is "" if that explains nothing. `names` are the `video_names` of `videos`.
    """
    fates = _fates(videos, names, _videos_before(existing))
    splits = videos["split"].to_pylist()
    predecessors = [shard.predecessor for shard in shards if shard.predecessor]
    held = iter(_held_videos(names, existing, predecessors))
    descriptions = []
    for shard in shards:
        before = next(held) if shard.predecessor else _HeldVideos()
        counts = Counter({_REMOVED: before.removed})
        # Videos new to this shard, then those that stay, then those that leave it.
        counts.update(fates[video] for video in shard.videos - before.rows)
        counts.update(
            _REPLACED for video in shard.videos & before.rows if fates[video] == _REPLACED
        )
        for video in before.rows - shard.videos:
            # Compared with this shard's split: the video's row has the split that it has now.
            if splits[video] != shard.split:
                counts[_MOVED] += 1
            else:
                counts[_REPLACED if fates[video] == _REPLACED else _SAME] += 1
        if shard.predecessor is None:  # a new group: "cut into other clips" explains nothing
            del counts[_SAME]
        descriptions.append(_describe(counts))
    return descriptions


def _describe(counts: Counter[str]) -> str:
    return ", ".join(
        f"{pluralise(counts[fate], 'video')} {fate}" for fate in _ORDER if counts[fate]
    )


def _videos_before(existing: ExistingShards) -> pa.Table:
    """Return name, split and identity of the current snapshot's videos."""
    columns = ["source", "video_id", "split", "identity"]
    if existing.current is None:
        return pa.table({name: pa.array([], pa.string()) for name in ("name", "split", "identity")})
    videos = read_table(existing.current.folder / "videos.parquet", columns)
    return pa.table(
        {"name": video_names(videos), "split": videos["split"], "identity": videos["identity"]}
    )


def _fates(videos: pa.Table, names: pa.Array, before: pa.Table) -> list[str]:
    """Return the fate of each video since the current snapshot."""
    # A video that was not there has no row before; comparisons with it are null, not false.
    row_before = pc.index_in(names, value_set=before["name"])
    same_split = pc.equal(videos["split"], before["split"].take(row_before))
    same_content = pc.equal(videos["identity"], before["identity"].take(row_before))
    kept = pc.if_else(same_split, pc.if_else(same_content, _SAME, _REPLACED), _MOVED)
    fates: list[str] = pc.if_else(pc.is_valid(row_before), kept, _ADDED).to_pylist()
    return fates


def _held_videos(
    names: pa.Array, existing: ExistingShards, shards: Sequence[ExistingShard]
) -> list[_HeldVideos]:
    """List the videos that each of the existing shards has clips of."""
    keys, shard_of_clip = existing.clips_of(shards)
    # Number the videos that clips name, so that each name is looked up once; row -1 means that the
    # video is gone.
    video_of_clip = videos_of(keys).combine_chunks().dictionary_encode()
    row_of_video = pc.index_in(video_of_clip.dictionary, value_set=names).fill_null(-1).to_numpy()
    # One (shard, video) pair per video of a shard, packed into one integer and sorted by shard.
    count = max(len(row_of_video), 1)
    pairs = np.unique(shard_of_clip.astype(np.int64) * count + video_of_clip.indices.to_numpy())
    shard, video = np.divmod(pairs, count)
    rows: NDArray[np.int64] = row_of_video[video]
    bounds = np.searchsorted(shard, np.arange(len(shards) + 1))
    return [
        _HeldVideos(
            rows=frozenset(held[held >= 0].tolist()), removed=int(np.count_nonzero(held < 0))
        )
        for held in (rows[first:last] for first, last in pairwise(bounds))
    ]
