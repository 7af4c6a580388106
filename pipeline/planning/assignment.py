"""Assign clips to shards, and compute the fingerprints of what each shard is to hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.fingerprint import canonical_json
from pipeline.config import BuildSettings
from pipeline.planning.clip_windows import plan_clips
from pipeline.planning.existing_shards import ExistingShard, ExistingShards
from shards.errors import PretrackError

_BLOCK = 1 << 18
"""Clips whose fingerprint lines are in memory at once."""


@dataclass(frozen=True)
class Assignment:
    """Clips (table PLANNED_CLIPS) sorted by group, video and start.

    Group number g has rows firsts[g] to firsts[g + 1]. A group is a shard's name without checksum.
    """

    clips: pa.Table
    groups: tuple[str, ...]
    firsts: NDArray[np.int64]


def assign_clips(
    settings: BuildSettings, videos: pa.Table, names: pa.Array, existing: ExistingShards
) -> Assignment:
    """Assign each clip to the group whose shard has it, and the other clips to new groups.

    A group only counts if it is of the clip's source and split. `names` are the `video_names` of
    `videos`. Raises PretrackError if two videos have the same name.
    """
    clips = plan_clips(videos, names, settings.frames)
    video = clips["video"].to_numpy()
    # A key is its video's name and a start, so videos of one name would share keys.
    _check_names(videos, names, video)
    # Each clip's group prefix ("co3d-train-"), as a number.
    prefixes = (
        pc.binary_join_element_wise(videos["source"], videos["split"], "", "-")
        .combine_chunks()
        .dictionary_encode()
    )
    prefix_of_clip = prefixes.indices.to_numpy()[video]
    old_groups, group = _existing_groups(
        settings,
        clips["key"],
        prefixes=prefixes.dictionary,
        prefix_of_clip=prefix_of_clip,
        existing=existing,
    )
    # Clips without a group fill new groups, numbered after the existing ones of their prefix.
    groups = list(old_groups)
    for code, prefix in sorted(
        enumerate(prefixes.dictionary.to_pylist()), key=lambda item: item[1]
    ):
        unassigned = np.flatnonzero((group < 0) & (prefix_of_clip == code))
        taken = [int(name.rsplit("-", 1)[1]) for name in old_groups if _prefix(name) == prefix]
        first = max(taken, default=-1) + 1
        new_group = np.arange(len(unassigned)) // settings.shards.clips_per_shard
        group[unassigned] = len(groups) + new_group
        count = new_group[-1] + 1 if len(new_group) else 0
        groups += [f"{prefix}{first + number:06d}" for number in range(count)]
    return _sorted(clips, groups, group)


def frames_fingerprints(
    assigned: Assignment, identities: pa.ChunkedArray, frames_settings: str
) -> list[str]:
    """Compute the frames fingerprint of each group.

    It is the `fingerprint_lines` of the settings and one line per clip: its key, its video's
    identity (`identities`, one per video) and its number of frames.
    """
    identities = identities.combine_chunks()
    # Hash the settings once; every group continues a copy of this digest.
    settings_only = hashlib.blake2b(f"{frames_settings}\n".encode(), digest_size=16)
    fingerprints: list[str] = []
    # As many groups at a time as fit a block, at least one, so that memory stays bounded.
    while len(fingerprints) < len(assigned.groups):
        group = len(fingerprints)
        begin = assigned.firsts[group]
        in_block = np.searchsorted(assigned.firsts, begin + _BLOCK, side="right") - 1
        firsts = assigned.firsts[group : max(group + 1, int(in_block)) + 1] - begin
        lines, offsets = _lines(assigned.clips.slice(begin, firsts[-1]), identities)
        for first, last in pairwise(offsets[firsts].tolist()):
            digest = settings_only.copy()
            digest.update(lines[first:last])
            fingerprints.append(digest.hexdigest())
    return fingerprints


def _lines(clips: pa.Table, identities: pa.Array) -> tuple[memoryview, NDArray[np.int64]]:
    """Return one line of text per clip, as bytes, and the offset of each line and of their end."""
    line_end = pc.binary_join_element_wise(clips["frames"].cast(pa.string()), "", "\n")
    identity = identities.take(clips["video"].combine_chunks())
    lines = (
        pc.binary_join_element_wise(clips["key"], identity, line_end, " ")
        .combine_chunks()
        .cast(pa.large_string())
    )
    # The buffers of an Arrow string array are its offsets and its text: no copy per line.
    _, offsets, text = lines.buffers()
    start = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(text), start


def _existing_groups(
    settings: BuildSettings,
    keys: pa.ChunkedArray,
    *,
    prefixes: pa.Array,
    prefix_of_clip: NDArray[np.int32],
    existing: ExistingShards,
) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Number the groups of the existing shards; return the numbers, and each clip's (-1 if none).

    Only shards of the same frame settings count: others have different clips. A clip's group must
    have its prefix (`prefix_of_clip`, an index into `prefixes`), because builds with other settings
    may have put the clip in a shard of another split too.
    """
    frames_settings = canonical_json(settings.frames.of_content())
    # One shard per group and frames fingerprint: shards of the same frames have the same clips.
    shards: dict[tuple[str, str], ExistingShard] = {}
    for shard in existing.shards:
        if shard.row.frames_settings == frames_settings:
            shards.setdefault((shard.row.group, shard.row.frames_fingerprint), shard)
    numbers = {
        group: number for number, group in enumerate(dict.fromkeys(group for group, _ in shards))
    }
    assigned = np.full(len(keys), -1)
    if not numbers:
        return numbers, assigned
    stored_keys, shard_of_key = existing.clips_of(list(shards.values()))
    group_of_key = np.array([numbers[group] for group, _ in shards])[shard_of_key]
    prefix_of_group = _positions(pa.array([_prefix(group) for group in numbers]), prefixes)
    # Look the keys up, prefix by prefix.
    for code in range(len(prefixes)):
        stored = prefix_of_group[group_of_key] == code
        planned = prefix_of_clip == code
        position = _positions(keys.filter(pa.array(planned)), stored_keys.filter(pa.array(stored)))
        # Position -1 picks the -1 that is appended.
        assigned[planned] = np.append(group_of_key[stored], -1)[position]
    return numbers, assigned


def _positions(values: pa.ChunkedArray, value_set: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return the index of each value in `value_set`, -1 if it is absent."""
    positions: NDArray[np.int32] = pc.index_in(values, value_set=value_set).fill_null(-1).to_numpy()
    return positions


def _sorted(clips: pa.Table, groups: list[str], group: NDArray[np.int64]) -> Assignment:
    """Sort clips by the names of their groups, and leave out groups without clips."""
    counts = np.bincount(group, minlength=len(groups))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: groups[number])
    # Groups get ranks by name; a stable sort by rank keeps the order of clips within a group.
    rank = np.zeros(len(groups), np.int64)
    rank[order] = np.arange(len(order))
    rows = np.argsort(rank[group], kind="stable")
    # `take` copies all columns, and usually the clips are in this order already.
    if (np.diff(rows) != 1).any():
        clips = clips.take(pa.array(rows))
    firsts = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
    return Assignment(clips, tuple(groups[number] for number in order), firsts)


def _check_names(videos: pa.Table, names: pa.Array, video: NDArray[np.int32]) -> None:
    """Raise PretrackError if two videos with clips have the same name."""
    rows = np.unique(video)
    used = names.take(pa.array(rows))
    if pc.count_distinct(used).as_py() == len(used):
        return
    first = np.asarray(pc.index_in(used, value_set=used))
    repeated = rows[np.flatnonzero(first != np.arange(len(used)))[0]]
    (duplicate,) = videos.slice(repeated, 1).to_pylist()
    raise PretrackError(
        f"two videos of source {duplicate['source']} are both called {duplicate['video_id']}: "
        "rename one of them"
    )


def _prefix(group: str) -> str:
    """Return the part of a group's name before its number: "co3d-train-"."""
    return group[: group.rfind("-") + 1]
