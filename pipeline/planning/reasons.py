"""Why a shard is made again, in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.changes import changed_settings
from manifests.tables import read_table
from manifests.wording import pluralise
from pipeline.planning.clip_windows import video_names, videos_of
from pipeline.planning.existing_shards import ExistingShard, ExistingShards

_SAME, _ADDED, _MOVED, _REPLACED, _REMOVED = (
    "cut into other clips",
    "added",
    "moved to another split",
    "replaced",
    "removed",
)


def describe_settings_change(what: str, old: str, new: str) -> str:
    """Which settings (canonical JSON) differ: "tracks.grid 16 → 24", "" if none does."""
    changes = changed_settings({what: json.loads(old)}, {what: json.loads(new)})
    tracker = [change for change in changes if change.key == f"{what}.tracker"]
    return ", ".join(
        str(change) for change in tracker or changes
    )  # another tracker has other settings altogether


@dataclass(frozen=True)
class ChangedShard:
    """A shard whose clips are to change: the rows of the videos it is to hold, and the known shard in whose place it comes, or
    None if it is one more of its source."""

    split: str
    videos: frozenset[int]
    known: ExistingShard | None


def describe_video_changes(
    videos: pa.Table, names: pa.Array, known: ExistingShards, shards: Sequence[ChangedShard]
) -> list[str]:
    """What became of the videos of shards: "3 videos added, 1 video replaced"; "" where nothing tells."""
    before = _videos_before(known)
    splits = videos["split"].to_pylist()
    fate = _fates(videos, names, before)
    old = [shard.known for shard in shards if shard.known]
    held, gone = _held(names, known, old)
    places = iter(range(len(old)))
    words = []
    for shard in shards:
        place = next(places) if shard.known else None
        had = held[place] if place is not None else frozenset()
        counts = Counter({_REMOVED: gone[place] if place is not None else 0})
        counts.update(fate[video] for video in shard.videos - had)
        counts.update(_REPLACED for video in shard.videos & had if fate[video] == _REPLACED)
        for video in had - shard.videos:
            counts[
                _MOVED
                if splits[video] != shard.split
                else _REPLACED
                if fate[video] == _REPLACED
                else _SAME
            ] += 1
        if shard.known is None:
            del counts[_SAME]
        words.append(_words(counts))
    return words


def _words(counts: Counter[str]) -> str:
    order = (_ADDED, _REMOVED, _REPLACED, _MOVED, _SAME)
    return ", ".join(f"{pluralise(counts[what], 'video')} {what}" for what in order if counts[what])


def _videos_before(known: ExistingShards) -> pa.Table:
    """Name, split and identity of the current snapshot's videos."""
    columns = ["source", "video_id", "split", "identity"]
    if known.current is None:
        return pa.table({name: pa.array([], pa.string()) for name in ("name", "split", "identity")})
    videos = read_table(known.current.folder / "videos.parquet", columns)
    return pa.table(
        {"name": video_names(videos), "split": videos["split"], "identity": videos["identity"]}
    )


def _fates(videos: pa.Table, names: pa.Array, before: pa.Table) -> list[str]:
    """What became of each video since the current snapshot."""
    place = pc.index_in(names, value_set=before["name"])
    same_split = pc.equal(videos["split"], before["split"].take(place))
    same_content = pc.equal(videos["identity"], before["identity"].take(place))
    fates = pc.if_else(same_split, pc.if_else(same_content, _SAME, _REPLACED), _MOVED)
    found: list[str] = pc.if_else(pc.is_valid(place), fates, _ADDED).to_pylist()
    return found


def _held(
    names: pa.Array, known: ExistingShards, shards: Sequence[ExistingShard]
) -> tuple[list[frozenset[int]], list[int]]:
    """Of each known shard: the rows of the videos it holds clips of, and how many videos it holds that are gone."""
    keys, places = known.clips_of(shards)
    of_video = videos_of(keys).combine_chunks().dictionary_encode()
    row = pc.index_in(of_video.dictionary, value_set=names).fill_null(-1).to_numpy()
    pairs = (
        np.unique(places.astype(np.int64) * len(row) + of_video.indices.to_numpy())
        if len(places)
        else places
    )
    place, video = np.divmod(pairs, max(len(row), 1))
    rows: NDArray[np.int64] = row[video]
    bounds = np.searchsorted(place, np.arange(len(shards) + 1))
    each = [rows[first:last] for first, last in pairwise(bounds)]
    return [frozenset(some[some >= 0].tolist()) for some in each], [
        int((some < 0).sum()) for some in each
    ]
