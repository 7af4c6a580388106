"""Clips → shards: which clip goes to which shard, and the fingerprints of what each shard is to hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Assignment:
    """Clips (table PLANNED_CLIPS) sorted by group, video and start; group number g has rows firsts[g] to firsts[g + 1]."""

    clips: pa.Table
    groups: tuple[str, ...]
    firsts: NDArray[np.int64]


def assign_clips(
    settings: BuildSettings, videos: pa.Table, names: pa.Array, known: ExistingShards
) -> Assignment:
    """Every clip goes to the group whose shard has it, if that is of its source and split; the others fill new groups.

    Raises PretrackError if two videos have one name.
    """
    clips = plan_clips(videos, names, settings.frames)
    video = clips["video"].to_numpy()
    _check_names(videos, names, video)
    prefixes = (
        pc.binary_join_element_wise(videos["source"], videos["split"], "", "-")
        .combine_chunks()
        .dictionary_encode()
    )
    wanted = prefixes.indices.to_numpy()[video]
    homes, group = _homes(settings, clips["key"], prefixes.dictionary, wanted, known)
    groups = list(homes)
    for code, prefix in sorted(
        enumerate(prefixes.dictionary.to_pylist()), key=lambda item: item[1]
    ):
        homeless = np.flatnonzero((group < 0) & (wanted == code))
        first = (
            max(
                (int(name.rsplit("-", 1)[1]) for name in homes if _prefix(name) == prefix),
                default=-1,
            )
            + 1
        )
        number = np.arange(len(homeless)) // settings.shards.clips_per_shard
        group[homeless] = len(groups) + number
        groups += [f"{prefix}{first + i:06d}" for i in range(number[-1] + 1 if len(number) else 0)]
    return _sorted(clips, groups, group)


def frames_fingerprints(
    assigned: Assignment, identities: pa.ChunkedArray, frames_settings: str
) -> list[str]:
    """Of each group: `fingerprint_lines` of the settings and one line a clip: its key, its video's identity and its frames."""
    identities = identities.combine_chunks()
    blank = hashlib.blake2b(f"{frames_settings}\n".encode(), digest_size=16)
    found: list[str] = []
    while len(found) < len(
        assigned.groups
    ):  # as many groups at a time as fit a block, so that memory stays bounded
        begin = assigned.firsts[len(found)]
        upto = max(
            len(found) + 1, int(np.searchsorted(assigned.firsts, begin + _BLOCK, side="right")) - 1
        )
        firsts = assigned.firsts[len(found) : upto + 1] - begin
        lines, offsets = _lines(assigned.clips.slice(begin, firsts[-1]), identities)
        for first, last in zip(
            offsets[firsts[:-1]].tolist(), offsets[firsts[1:]].tolist(), strict=True
        ):
            digest = blank.copy()
            digest.update(lines[first:last])
            found.append(digest.hexdigest())
    return found


def _lines(clips: pa.Table, identities: pa.Array) -> tuple[memoryview, NDArray[np.int64]]:
    """One line of text a clip, as bytes, and where each begins."""
    end = pc.binary_join_element_wise(clips["frames"].cast(pa.string()), "", "\n")
    of_video = identities.take(clips["video"].combine_chunks())
    text = (
        pc.binary_join_element_wise(clips["key"], of_video, end, " ")
        .combine_chunks()
        .cast(pa.large_string())
    )
    _, offsets, data = text.buffers()
    start = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return memoryview(data), start


def _homes(
    settings: BuildSettings,
    keys: pa.ChunkedArray,
    prefixes: pa.Array,
    wanted: NDArray[np.int32],
    known: ExistingShards,
) -> tuple[dict[str, int], NDArray[np.int64]]:
    """The groups of all shards of these frame settings, numbered; and of each clip the number of the group that has it, -1 if none.

    Only groups of its source and split count (`wanted`, an index into `prefixes`): builds with other settings may have had it too.
    """
    frames_settings = canonical_json(settings.frames.of_content())
    shards: dict[tuple[str, str], ExistingShard] = {}
    for shard in known.shards:
        if (
            shard.row.frames_settings == frames_settings
        ):  # shards of the same frames have the same clips
            shards.setdefault((shard.row.group, shard.row.frames_fingerprint), shard)
    homes = {
        group: number for number, group in enumerate(dict.fromkeys(group for group, _ in shards))
    }
    found = np.full(len(keys), -1)
    if not homes:
        return homes, found
    stored, places = known.clips_of(list(shards.values()))
    group = np.array([homes[name] for name, _ in shards])[places]
    of_group = (
        pc.index_in(pa.array([_prefix(name) for name in homes]), value_set=prefixes)
        .fill_null(-1)
        .to_numpy()
    )
    for code in range(len(prefixes)):
        inside, asked = of_group[group] == code, wanted == code
        home = (
            pc.index_in(keys.filter(pa.array(asked)), value_set=stored.filter(pa.array(inside)))
            .fill_null(-1)
            .to_numpy()
        )
        found[asked] = np.where(home >= 0, np.append(group[inside], -1)[home], -1)
    return homes, found


def _sorted(clips: pa.Table, groups: list[str], group: NDArray[np.int64]) -> Assignment:
    """Clips by group, in the order of the groups' names; groups without clips are left out."""
    counts = np.bincount(group, minlength=len(groups))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: groups[number])
    rank = np.zeros(len(groups), np.int64)
    rank[order] = np.arange(len(order))
    rows = np.argsort(rank[group], kind="stable")
    if (np.diff(rows) != 1).any():
        clips = clips.take(pa.array(rows))
    firsts = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
    return Assignment(clips, tuple(groups[number] for number in order), firsts)


def _check_names(videos: pa.Table, names: pa.Array, video: NDArray[np.int32]) -> None:
    """Raises PretrackError if two videos with clips have the same name."""
    used = np.unique(video)
    some = names.take(pa.array(used))
    if pc.count_distinct(some).as_py() < len(some):
        first = np.asarray(pc.index_in(some, value_set=some))
        double = videos.slice(
            used[np.flatnonzero(first != np.arange(len(some)))[0]], 1
        ).to_pylist()[0]
        raise PretrackError(
            f"two videos of source {double['source']} are both called {double['video_id']}: rename one of them"
        )


def _prefix(group: str) -> str:
    """What a group's name has before its number: "co3d-train-"."""
    return group[: group.rfind("-") + 1]
