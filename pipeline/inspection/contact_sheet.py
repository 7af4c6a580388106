"""Picks clips of a snapshot and draws them."""

from __future__ import annotations

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
from shards.reader import read_clip_members
from shards.stored_clip import StoredClip


def show_clips(
    snapshot: Snapshot, wanted: list[str], count: int, anchor: int, folder: Path
) -> list[Path]:
    """Draws the clips whose keys hold one of `wanted`; or else `count` clips of each source, of different videos where there are
    as many, that move most while most of their points stay visible. Returns the files.

    Raises PretrackError for a name that no clip has, or an anchor that a clip does not have.
    """
    clips = clips_named(snapshot, wanted)
    anchors = pc.list_value_length(clips["anchors"])
    having = clips.filter(pc.greater(anchors, anchor))
    if not having.num_rows:
        most = pluralise(pc.max(anchors).as_py() or 0, "anchor")
        raise PretrackError(
            f"these clips have up to {most}, and there is no number {anchor} (they are counted from 0)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(having.num_rows) if wanted else best_clips(having, count):
        clip = read_clip(snapshot, having.slice(number, 1).to_pylist()[0])
        sheet, video = folder / f"{clip.info.key}.png", folder / f"{clip.info.key}.mp4"
        write_sheet(sheet, clip, anchor)
        write_video(video, clip, anchor)
        made += [sheet, video]
    return made


def read_clip(snapshot: Snapshot, row: dict[str, Any]) -> StoredClip:
    """One clip by its row of the clips table. Raises ShardError if it is damaged."""
    members = members_of(row)
    path, shape = (
        snapshot.shard_path(row["shard"]),
        (len(row["anchors"]), row["frames"], row["points"]),
    )
    try:
        info, tracks, *jpegs = read_clip_members(path, members)
        return StoredClip(ClipInfo.from_json(info), decode_tracks(tracks, shape), tuple(jpegs))
    except ShardError as error:
        raise ShardError(
            f"clip {row['key']} in {path}: {error}; 'pretrack verify {snapshot.out}' says more"
        ) from error


def clips_named(snapshot: Snapshot, wanted: list[str]) -> pa.Table:
    """The rows of all clips, or of those whose keys hold one of `wanted`. Raises PretrackError for a name that no clip has."""
    keys = snapshot.clips["key"]
    masks = [pc.match_substring(keys, name) for name in wanted]
    for name, mask in zip(wanted, masks, strict=True):
        if not pc.any(mask).as_py():
            like = ", ".join(keys.slice(0, 3).to_pylist())
            raise PretrackError(
                f"no clip of snapshot {snapshot.name} has '{name}' in its key (keys are like {like})"
            )
    return snapshot.clips.filter(reduce(pc.or_, masks)) if masks else snapshot.clips


def best_clips(clips: pa.Table, count: int) -> list[int]:
    """Of each source the rows of `count` clips, a video's best before any other's second."""
    video = pc.binary_join_element_wise(clips["source"], clips["video_id"], "\n")
    score = pc.multiply(clips["motion"], clips["visible_fraction"])
    ranked = pa.table(
        {
            "source": clips["source"],
            "video": video,
            "key": clips["key"],
            "score": score,
            "row": np.arange(len(clips)),
        }
    )
    by_merit = [("score", "descending"), ("key", "ascending")]
    ranked = ranked.sort_by([("video", "ascending"), *by_merit])
    ranked = ranked.append_column("place", pa.array(_place_in_run(ranked["video"])))
    ranked = ranked.sort_by([("source", "ascending"), ("place", "ascending"), *by_merit])
    best: list[int] = (
        ranked["row"].filter(pa.array(_place_in_run(ranked["source"]) < count)).to_pylist()
    )
    return best


def _place_in_run(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many rows of the same value lie just before each row."""
    codes = values.combine_chunks().dictionary_encode().indices.to_numpy()
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.arange(len(codes)) - np.repeat(begins, np.diff(begins, append=len(codes)))
