"""Writes a gallery: a folder that a browser shows from the file system, a bucket or a web server, with nothing from elsewhere.

    index.html, gallery.css, and scripts   the page, the same for every gallery
    clips.js                               one entry a clip, for the list
    clips/000000.jpg, clips/000000.js      a clip's thumbnail; its frames and tracks, loaded when it is opened

Data are scripts that call a function of the page, since a browser loads those from a file system and nothing else. Whatever a
source calls its videos is only ever text on the page.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import sys
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.changes import changed_settings
from manifests.snapshot import Snapshot
from manifests.wording import pluralise
from pipeline.inspection.contact_sheet import best_clips, clips_named, read_clip
from pipeline.inspection.draw import thumbnail
from pipeline.monitoring.progress import Progress
from shards.errors import PretrackError, ShardError, first_line
from shards.files import Location, atomic_write, delete, parse_location, sizes_in
from shards.stored_clip import StoredClip

MOST_CLIPS = 300
"""How many clips a gallery shows where nothing else is asked for."""

_PAGE = ("index.html", "gallery.css", "gallery.js", "player.js", "draw.js", "input.js")
_OF_A_CLIP = re.compile(r"\d{6}\.(js|jpg)")
_AT_ONCE = 4
_UNITS = 32
_LARGEST = 2**15 - 1


@dataclass(frozen=True)
class Gallery:
    """What was written: the page to open, the clips it shows, how many were left out for want of room, and those that could not be
    read, each with the reason."""

    page: Location
    clips: int
    left_out: int
    damaged: tuple[str, ...]


def write_gallery(
    snapshot: Snapshot,
    folder: Location,
    progress: Progress,
    *,
    wanted: list[str] | None = None,
    count: int | None = None,
    anchor: int = 0,
    against: Snapshot | None = None,
) -> Gallery:
    """Writes the gallery of a snapshot into `folder`, over an older one if there is one.

    It shows the `count` best clips of each source (see `show_clips`), or those whose keys hold one of `wanted`, or all; of more
    than MOST_CLIPS of those as many, evenly spread over their order. Clips that `against` holds too are shown in both. `anchor` is
    the one chosen at first. A clip that cannot be read is left out and named. Raises PretrackError for a name that no clip has.
    """
    table = clips_named(snapshot, wanted or [])
    rows = table.take(pa.array(_chosen(table, None if wanted else count), pa.int64())).to_pylist()
    others = _rows_by_key(against, [row["key"] for row in rows]) if against else {}
    entries: list[dict[str, Any]] = []
    damaged: list[str] = []

    def make(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any] | str:
        number, row = numbered
        try:
            return _write_clip(
                folder, f"{number:06d}", row, others.get(row["key"]), anchor, (snapshot, against)
            )
        except ShardError as error:
            return first_line(error)

    with (
        progress.task("writing the gallery", "clip", len(rows)) as task,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for made in pool.map(make, enumerate(rows)):
            task.advance()
            if isinstance(made, str):
                damaged.append(made)
            else:
                entries.append(made)
    if not entries:
        raise PretrackError(
            damaged[0]
            if damaged
            else f"snapshot {snapshot.name} of {snapshot.out} has no clips to show"
        )
    left_out = len(table) - len(rows) if wanted or not count else 0
    index = {
        "out": str(snapshot.out),
        "snapshot": snapshot.name,
        "against": against.name if against else None,
        "changes": [str(change) for change in changed_settings(snapshot.settings, against.settings)]
        if against
        else [],
        "anchor": anchor,
        "notes": list(
            _notes(left_out, damaged, len(rows) - len(others) if against else 0, against)
        ),
        "clips": entries,
    }
    atomic_write(folder / "clips.js", _call("pretrackGallery", index))
    for name in _PAGE:
        atomic_write(
            folder / name, files("pipeline.inspection.gallery").joinpath(name).read_bytes()
        )
    _drop_older(
        folder, {f"{entry['file']}.{suffix}" for entry in entries for suffix in ("js", "jpg")}
    )
    return Gallery(folder / "index.html", len(entries), left_out, tuple(damaged))


def open_in_browser(page: Location) -> bool:
    """Opens a page in this machine's browser; False where there is none to see it in (a server, a container)."""
    if not isinstance(page, Path):
        return False
    if (
        sys.platform.startswith("linux")
        and not {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys()
    ):
        return False  # what is left are browsers in a terminal, which show no picture
    return webbrowser.open(page.absolute().as_uri())


def _chosen(table: pa.Table, count: int | None) -> list[int]:
    """The rows to show, in their order."""
    if count:
        return sorted(best_clips(table, count))
    return sorted(
        set(
            np.linspace(0, len(table) - 1, min(MOST_CLIPS, len(table))).round().astype(int).tolist()
        )
    )


def _rows_by_key(snapshot: Snapshot, keys: list[str]) -> dict[str, dict[str, Any]]:
    """The rows of some clips, those that there are."""
    rows = snapshot.clips.filter(
        pc.is_in(snapshot.clips["key"], value_set=pa.array(keys, pa.string()))
    )
    return {row["key"]: row for row in rows.to_pylist()}


def _notes(
    left_out: int, damaged: list[str], alone: int, against: Snapshot | None
) -> Iterator[str]:
    """What is not shown, and why."""
    if left_out:
        more = f"{left_out:,} more {'clip is' if left_out == 1 else 'clips are'} not shown"
        yield f"{more}; those here are spread evenly. --clip or --count choose others."
    if damaged:
        yield f"{pluralise(len(damaged), 'clip')} could not be read, the first being: {damaged[0]}"
    if alone and against:
        yield f"{alone:,} of these {'is' if alone == 1 else 'are'} not in snapshot {against.name}, and shown alone."


def _write_clip(
    folder: Location,
    file: str,
    row: dict[str, Any],
    other: dict[str, Any] | None,
    anchor: int,
    snapshots: tuple[Snapshot, Snapshot | None],
) -> dict[str, Any]:
    """Writes a clip's thumbnail, frames and tracks; returns its entry in the list."""
    snapshot, against = snapshots
    clip = read_clip(snapshot, row)
    sides = [_side(clip, snapshot, None)]
    if other and against:
        sides.append(_side(read_clip(against, other), against, clip))
    info = clip.info
    shown = {
        "sequence": info.sequence,
        "source_size": [info.source_width, info.source_height],
        "numbers": info.frame_numbers,
        "times": [round(time, 4) for time in info.timestamps] if info.timestamps else None,
        "sides": sides,
    }
    atomic_write(folder / "clips" / f"{file}.js", _call("pretrackClip", file, shown))
    atomic_write(
        folder / "clips" / f"{file}.jpg", thumbnail(clip, min(anchor, len(clip.tracks.anchors) - 1))
    )
    columns = (
        "key",
        "source",
        "dataset",
        "video_id",
        "split",
        "frames",
        "width",
        "height",
        "points",
    )
    figures = ("visible_fraction", "motion")
    entry: dict[str, Any] = {"file": file, **{column: row[column] for column in columns}}
    entry |= {"first": info.frame_numbers[0], "last": info.frame_numbers[-1], "terms": info.terms}
    entry |= {figure: _figure(row[figure]) for figure in figures}
    entry["against"] = {figure: _figure(other[figure]) for figure in figures} if other else None
    return entry


def _side(clip: StoredClip, snapshot: Snapshot, shown: StoredClip | None) -> dict[str, Any]:
    """A clip in one snapshot. Its frames are left out where they are those of the clip `shown` beside it."""
    positions, units = _whole_numbers(clip)
    own_frames = shown is None or clip.jpegs != shown.jpegs
    return {
        "snapshot": snapshot.name,
        "tracker": str(snapshot.settings.get("tracks", {}).get("tracker", "")),
        "width": clip.info.width,
        "height": clip.info.height,
        "anchors": clip.tracks.anchors.tolist(),
        "points": clip.tracks.positions.shape[2],
        "units": units,
        "positions": _base64(positions.tobytes()),
        "visibility": _base64(clip.tracks.visibility.tobytes()),
        "confidence": _base64(clip.tracks.confidence.tobytes()),
        "frames": [_base64(frame) for frame in clip.jpegs] if own_frames else None,
    }


def _figure(value: float) -> float | None:
    """A figure of a table as JSON can hold it: None, for which the page has a question mark, where it is no number."""
    return round(value, 4) if math.isfinite(value) else None


def _whole_numbers(clip: StoredClip) -> tuple[NDArray[np.int16], float]:
    """Positions [A, T, N, 2] in so many units a pixel that they fit 16 bits: 1/32 px as they are stored, unless frames are huge.

    Points that have flown off by more than four frames' sizes are kept there: nothing shows the difference.
    """
    limit = 4 * np.array([clip.info.width, clip.info.height], np.float32)
    near = np.clip(clip.tracks.positions, -limit, limit)
    units = float(_UNITS)
    while np.abs(near).max(initial=0) * units > _LARGEST:
        units /= 2
    return np.rint(near * units).astype("<i2"), units


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _call(function: str, *values: Any) -> bytes:
    """A script that hands values to the page. JSON in ASCII is a JavaScript expression, whatever the texts in it."""
    return f"{function}({', '.join(json.dumps(value, separators=(',', ':'), allow_nan=False) for value in values)});\n".encode()


def _drop_older(folder: Location, written: set[str]) -> None:
    """Removes the clips of an older gallery in the same folder."""
    for name in sizes_in(parse_location(folder / "clips")):
        if _OF_A_CLIP.fullmatch(name) and name not in written:
            delete(folder / "clips" / name)
