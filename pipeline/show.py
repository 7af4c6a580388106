"""Picks clips of a snapshot and draws them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.snapshot import Snapshot
from manifests.tables import members_of
from pipeline.draw import write_sheet, write_video
from shards.clip import ClipInfo, StoredClip
from shards.codec import decode_tracks
from shards.errors import PretrackError, ShardError
from shards.reader import read_members


def show_clips(snapshot: Snapshot, wanted: list[str], count: int, anchor: int, folder: Path) -> list[Path]:
    """Draws the clips whose keys hold one of `wanted`; or else `count` clips of each source, of different videos where there are
    as many, that move most while most of their points stay visible. Returns the files.

    Raises PretrackError for a name that no clip has, or an anchor that a clip does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    rows = _picked(snapshot, wanted)
    having = [row for row in rows if anchor < len(row["anchors"])]
    if not having:
        most = max((len(row["anchors"]) for row in rows), default=0)
        raise PretrackError(f"these clips have up to {most} anchors, and there is no number {anchor} (they are counted from 0)")
    for row in having if wanted else _best(having, count):
        clip = read_clip(snapshot, row)
        sheet, video = folder / f"{clip.info.key}.png", folder / f"{clip.info.key}.mp4"
        write_sheet(sheet, clip, anchor)
        write_video(video, clip, anchor)
        made += [sheet, video]
    return made


def read_clip(snapshot: Snapshot, row: dict[str, Any]) -> StoredClip:
    """One clip by its row of the clips table. Raises ShardError if it is damaged."""
    members = members_of(row)
    spans = [members.info, members.tracks, *members.frames]
    path = snapshot.shard_path(row["shard"])
    try:
        data = read_members(path, [span.offset for span in spans], [span.size for span in spans])
        return StoredClip(ClipInfo.from_json(data[0]), decode_tracks(data[1]), tuple(data[2:]))
    except ShardError as error:
        raise ShardError(f"clip {row['key']} in {path}: {error}; 'pretrack verify {snapshot.out}' says more") from error


def _picked(snapshot: Snapshot, wanted: list[str]) -> list[dict[str, Any]]:
    """The rows of all clips, or of those whose keys hold one of `wanted`."""
    keys = snapshot.clips.column("key").to_pylist()
    for name in wanted:
        if not any(name in key for key in keys):
            raise PretrackError(
                f"no clip of snapshot {snapshot.name} has '{name}' in its key (keys are like {', '.join(keys[:3])})"
            )
    mask = [not wanted or any(name in key for name in wanted) for key in keys]
    rows: list[dict[str, Any]] = snapshot.clips.filter(pa.array(mask)).to_pylist()
    return rows


def _best(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Of each source `count` clips, a video's best before any other's second."""
    place: Counter[tuple[str, str]] = Counter()
    ranked = []
    for row in sorted(rows, key=lambda row: (-row["motion"] * row["visible_fraction"], row["key"])):
        video = (row["source"], row["video_id"])
        ranked.append((place[video], row))
        place[video] += 1
    ranked.sort(key=lambda item: item[0])
    sources = sorted({row["source"] for _, row in ranked})
    return [row for source in sources for row in [row for _, row in ranked if row["source"] == source][:count]]
