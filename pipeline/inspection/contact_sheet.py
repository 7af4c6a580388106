"""Choose clips of a snapshot, read them, and draw each as a contact sheet and a video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.rows import members_of
from manifests.snapshot import Snapshot
from manifests.wording import pluralise
from pipeline.inspection.draw import write_sheet, write_video
from shards.clip import ClipInfo
from shards.codec import decode_tracks
from shards.errors import PretrackError, ShardError
from shards.frame_maps import NO_MAPS
from shards.reader import read_clip_members, read_frame_maps
from shards.stored_clip import StoredClip


@dataclass(frozen=True)
class ClipChoice:
    """Which clips to show: those whose keys contain one of `names`, or the best of each source.

    count:  clips per source (see `best_clips`); by default one on contact sheets, all in a gallery
    anchor: index of the anchor whose tracks are drawn
    """

    names: tuple[str, ...] = ()
    count: int | None = None
    anchor: int = 0


def show_clips(snapshot: Snapshot, choice: ClipChoice, folder: Path) -> list[Path]:
    """Draw the chosen clips into a folder, and return the files.

    Raises PretrackError for a name that no clip has, or if no clip has the anchor.
    """
    names, anchor = choice.names, choice.anchor
    clips = clips_named(snapshot, names)
    anchors = pc.list_value_length(clips["anchors"])
    with_anchor = clips.filter(pc.greater(anchors, anchor))
    if not with_anchor.num_rows:
        most = pluralise(pc.max(anchors).as_py() or 0, "anchor")
        raise PretrackError(
            f"these clips have up to {most}, and there is no number {anchor} "
            "(they are counted from 0)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in (
        range(with_anchor.num_rows) if names else best_clips(with_anchor, choice.count or 1)
    ):
        clip = read_clip(snapshot, with_anchor.slice(number, 1).to_pylist()[0])
        sheet, video = folder / f"{clip.info.key}.png", folder / f"{clip.info.key}.mp4"
        write_sheet(sheet, clip, anchor)
        write_video(video, clip, anchor)
        written += [sheet, video]
    return written


def read_clip(snapshot: Snapshot, row: dict[str, Any], *, maps: bool = False) -> StoredClip:
    """Read a clip by its row of the clips table, with its depth maps and masks if `maps`.

    Raises ShardError if it is damaged.
    """
    members = members_of(row)
    path = snapshot.shard_path(row["shard"])
    shape = (len(row["anchors"]), row["frames"], row["points"])
    try:
        description, tracks, *jpegs = read_clip_members(path, members)
        info = ClipInfo.from_json(description)
        stored_maps = read_frame_maps(path, members, info) if maps else NO_MAPS
        return StoredClip(info, decode_tracks(tracks, shape), tuple(jpegs), stored_maps)
    except ShardError as error:
        raise ShardError(
            f"clip {row['key']} in {path}: {error}; 'pretrack verify {snapshot.out}' says more"
        ) from error


def clips_named(snapshot: Snapshot, names: Sequence[str]) -> pa.Table:
    """Return the rows of the clips whose keys contain one of `names`; of all clips without names.

    Raises PretrackError for a name that no clip has.
    """
    keys = snapshot.clips["key"]
    masks = [pc.match_substring(keys, name) for name in names]
    for name, mask in zip(names, masks, strict=True):
        if not pc.any(mask).as_py():
            examples = ", ".join(keys.slice(0, 3).to_pylist())
            raise PretrackError(
                f"no clip of snapshot {snapshot.name} has '{name}' in its key "
                f"(keys are like {examples})"
            )
    return snapshot.clips.filter(reduce(pc.or_, masks)) if masks else snapshot.clips


def best_clips(clips: pa.Table, count: int) -> list[int]:
    """Return the rows of the `count` best clips of each source.

    A clip's score is motion times visible fraction: it moves, and most of its points stay visible.
    The best clip of every video comes before the second best of any.
    """
    video = pc.binary_join_element_wise(clips["source"], clips["video_id"], "\n")
    ranked = pa.table(
        {
            "source": clips["source"],
            "video": video,
            "key": clips["key"],
            "score": pc.multiply(clips["motion"], clips["visible_fraction"]),
            "row": np.arange(len(clips)),
        }
    )
    best_first = [("score", "descending"), ("key", "ascending")]
    # rank the clips of each video, then the clips of each source by that rank
    ranked = ranked.sort_by([("video", "ascending"), *best_first])
    ranked = ranked.append_column("rank", pa.array(_rank_within_runs(ranked["video"])))
    ranked = ranked.sort_by([("source", "ascending"), ("rank", "ascending"), *best_first])
    chosen = pa.array(_rank_within_runs(ranked["source"]) < count)
    rows: list[int] = ranked["row"].filter(chosen).to_pylist()
    return rows


def _rank_within_runs(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return for each row the number of rows with the same value directly before it."""
    codes = values.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
