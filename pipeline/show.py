"""Picks clips of a snapshot and draws them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from manifests.snapshot import Snapshot
from manifests.tables import members_of
from pipeline.draw import write_sheet, write_video
from shards.clip import ClipInfo, StoredClip
from shards.codec import decode_tracks
from shards.errors import PretrackError
from shards.reader import read_members


def show_clips(snapshot: Snapshot, wanted: list[str], count: int, anchor: int, folder: Path) -> list[Path]:
    """Draws the clips whose keys hold one of `wanted`; or else `count` clips of each source, of different videos where there are
    as many, that move most while most of their points stay visible. Returns the files.

    Raises PretrackError for a name that no clip has, or an anchor that a clip does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for row in _picked(snapshot, wanted, count):
        if anchor >= len(row["anchors"]):
            raise PretrackError(
                f"the clip {row['key']} has the anchors {row['anchors']}, and there is no number {anchor} among them"
            )
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
    data = read_members(snapshot.shard_path(row["shard"]), [span.offset for span in spans], [span.size for span in spans])
    return StoredClip(ClipInfo.from_json(data[0]), decode_tracks(data[1]), tuple(data[2:]))


def _picked(snapshot: Snapshot, wanted: list[str], count: int) -> list[dict[str, Any]]:
    rows = snapshot.clips.to_pylist()
    rows.sort(key=lambda row: (-row["motion"] * row["visible_fraction"], row["key"]))
    if not wanted:
        place: Counter[tuple[str, str]] = Counter()
        for row in rows:  # a video's best clip comes before any other's second
            row["place"] = place[row["source"], row["video_id"]]
            place[row["source"], row["video_id"]] += 1
        rows.sort(key=lambda row: row["place"])
        sources = sorted({row["source"] for row in rows})
        return [row for source in sources for row in [row for row in rows if row["source"] == source][:count]]
    for name in wanted:
        if not any(name in row["key"] for row in rows):
            known = ", ".join(row["key"] for row in rows[:3])
            raise PretrackError(f"no clip of snapshot {snapshot.name} has '{name}' in its key (keys are like {known})")
    return [row for row in rows if any(name in row["key"] for name in wanted)]
