"""Write a gallery: a folder that a browser shows from disk, a bucket or a web server.

    index.html, gallery.css, and scripts   the page, the same for every gallery
    clips.js                               one entry per clip, for the list
    clips/000000.jpg, clips/000000.js      a clip's thumbnail; its frames and tracks, loaded when it
                                           is opened

It loads nothing from elsewhere. Data are scripts that call a function of the page, because a page
opened from disk may load nothing but scripts and images. Names of videos are only ever text on the
page, never HTML.
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
from pipeline.inspection.contact_sheet import ClipChoice, best_clips, clips_named, read_clip
from pipeline.inspection.draw import thumbnail
from pipeline.monitoring.progress import Progress
from shards.errors import PretrackError, ShardError, first_line
from shards.files import TEMPORARY, Location, atomic_write, delete, parse_location, sizes_in
from shards.score_codec import codes_of
from shards.stored_clip import StoredClip
from shards.track_scores import score_clip

MOST_CLIPS = 300
"""Most clips that a gallery shows if no number is given."""

_PAGE = ("index.html", "gallery.css", "gallery.js", "player.js", "draw.js", "input.js")
_CLIP_FILE = re.compile(r"\d{6}\.(js|jpg)")
_WRITERS = 4
_UNITS_PER_PIXEL = 32
_LARGEST = 2**15 - 1
_COLUMNS = ("key", "source", "dataset", "video_id", "split", "frames", "width", "height", "points")
_FIGURES = ("visible_fraction", "motion")
_SCORES = ("turn", "epipolar_px", "epipolar_inliers", "reprojection_px", "cycle_px")


@dataclass(frozen=True)
class Gallery:
    """A written gallery: its page, and the number of clips it shows.

    left_out: number of clips that were left out because there are more than MOST_CLIPS
    damaged:  why clips could not be read, one sentence each
    """

    page: Location
    clips: int
    left_out: int
    damaged: tuple[str, ...]


def write_gallery(
    snapshot: Snapshot,
    folder: Location,
    progress: Progress,
    choice: ClipChoice = ClipChoice(),  # noqa: B008 (it is frozen)
    against: Snapshot | None = None,
) -> Gallery:
    """Write the gallery of a snapshot into `folder`, in place of an older one.

    What a killed process left half-written there is deleted. Shows the chosen clips. Without a
    count, or with names, it shows at most MOST_CLIPS of them, spread evenly over their order. Clips
    that `against` has too are shown in both snapshots. A clip that cannot be read is left out and
    named. Raises PretrackError for a name that no clip has, or if no clip can be shown.
    """
    table = clips_named(snapshot, choice.names)
    chosen = _choose_rows(table, None if choice.names else choice.count)
    rows = table.take(pa.array(chosen, pa.int64())).to_pylist()
    others = _rows_by_key(against, [row["key"] for row in rows]) if against else {}
    sides = _Sides(folder, snapshot, against, choice.anchor)
    left_by_killed = _temporary_files(folder)

    entries, damaged = _write_clips(sides, rows, others, progress)
    if not entries:
        empty = f"snapshot {snapshot.name} of {snapshot.out} has no clips to show"
        raise PretrackError(damaged[0] if damaged else empty)
    left_out = len(table) - len(rows) if choice.names or not choice.count else 0
    missing = len(rows) - len(others) if against else 0
    notes = list(_notes(left_out, damaged, missing, against))

    atomic_write(folder / "clips.js", _call("pretrackGallery", _index(sides, entries, notes)))
    page = files("pipeline.inspection.gallery")
    for name in _PAGE:
        atomic_write(folder / name, page.joinpath(name).read_bytes())
    kept = {f"{entry['file']}.{suffix}" for entry in entries for suffix in ("js", "jpg")}
    _delete_older_clips(folder, kept)
    for path in left_by_killed:
        path.unlink(missing_ok=True)  # another process may have been at work on it
    return Gallery(folder / "index.html", len(entries), left_out, tuple(damaged))


@dataclass(frozen=True)
class _Sides:
    """Where a gallery is written, the one or two snapshots it shows, and the anchor shown first."""

    folder: Location
    snapshot: Snapshot
    against: Snapshot | None
    anchor: int


def _write_clips(
    sides: _Sides,
    rows: list[dict[str, Any]],
    others: dict[str, dict[str, Any]],
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the files of all clips; return their entries, and why others could not be read."""
    entries: list[dict[str, Any]] = []
    damaged: list[str] = []

    def write(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any] | str:
        number, row = numbered
        try:
            return _write_clip(sides, f"{number:06d}", row, others.get(row["key"]))
        except ShardError as error:
            return first_line(error)

    with (
        progress.task("writing the gallery", "clip", len(rows)) as shown,
        ThreadPoolExecutor(_WRITERS) as pool,
    ):
        for result in pool.map(write, enumerate(rows)):
            shown.advance()
            if isinstance(result, str):
                damaged.append(result)
            else:
                entries.append(result)
    return entries, damaged


def _index(sides: _Sides, entries: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """Return the data of the list of clips."""
    snapshot, against = sides.snapshot, sides.against
    changes = changed_settings(snapshot.settings, against.settings) if against else []
    return {
        "out": str(snapshot.out),
        "snapshot": snapshot.name,
        "against": against.name if against else None,
        "changes": [str(change) for change in changes],
        "anchor": sides.anchor,
        "notes": notes,
        "clips": entries,
    }


def open_in_browser(page: Location) -> bool:
    """Open a page in this machine's browser; False if there is none (a server, a container)."""
    if not isinstance(page, Path):
        return False
    displays = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"}
    if sys.platform.startswith("linux") and not displays & os.environ.keys():
        return False  # only browsers in a terminal are left, and they show no pictures
    return webbrowser.open(page.absolute().as_uri())


def _choose_rows(table: pa.Table, count: int | None) -> list[int]:
    """Choose the rows to show, in their order: the best per source, or an even spread."""
    if count:
        return sorted(best_clips(table, count))
    spread = np.linspace(0, len(table) - 1, min(MOST_CLIPS, len(table))).round().astype(int)
    return sorted(set(spread.tolist()))


def _rows_by_key(snapshot: Snapshot, keys: list[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of the clips table by key, for those keys that it has."""
    wanted = pc.is_in(snapshot.clips["key"], value_set=pa.array(keys, pa.string()))
    return {row["key"]: row for row in snapshot.clips.filter(wanted).to_pylist()}


def _notes(
    left_out: int, damaged: list[str], missing: int, against: Snapshot | None
) -> Iterator[str]:
    """Describe what is not shown, and why; `missing` clips are not in `against`."""
    if left_out:
        more = f"{left_out:,} more {'clip is' if left_out == 1 else 'clips are'} not shown"
        yield f"{more}; those here are spread evenly. --clip or --count choose others."
    if damaged:
        yield f"{pluralise(len(damaged), 'clip')} could not be read; the first: {damaged[0]}"
    if missing and against:
        clips = f"{missing:,} of these clips {'is' if missing == 1 else 'are'}"
        yield f"{clips} not in snapshot {against.name}, and shown without it."


def _write_clip(
    sides: _Sides, file: str, row: dict[str, Any], other: dict[str, Any] | None
) -> dict[str, Any]:
    """Write a clip's thumbnail, frames and tracks; return its entry in the list.

    `row` and `other` are its rows in the two snapshots. Raises ShardError if it cannot be read.
    """
    clip = read_clip(sides.snapshot, row)
    shown = [_side(clip, sides.snapshot, None)]
    if other and sides.against:
        shown.append(_side(read_clip(sides.against, other), sides.against, clip))
    info = clip.info
    data = {
        "sequence": info.sequence,
        "source_size": [info.source_width, info.source_height],
        "numbers": info.frame_numbers,
        "times": [round(time, 4) for time in info.timestamps] if info.timestamps else None,
        "sides": shown,
    }
    anchor = min(sides.anchor, len(clip.tracks.anchors) - 1)
    clips = sides.folder / "clips"
    atomic_write(clips / f"{file}.js", _call("pretrackClip", file, data))
    atomic_write(clips / f"{file}.jpg", thumbnail(clip, anchor))
    return {
        "file": file,
        **{column: row[column] for column in _COLUMNS},
        "first": info.frame_numbers[0],
        "last": info.frame_numbers[-1],
        "terms": info.terms,
        **{name: _json_number(row[name]) for name in (*_FIGURES, *_SCORES)},
        "against": {name: _json_number(other[name]) for name in _FIGURES} if other else None,
    }


def _side(clip: StoredClip, snapshot: Snapshot, first: StoredClip | None) -> dict[str, Any]:
    """Return a clip's data in one snapshot, without frames if `first` beside it has the same."""
    positions, units = _quantised_positions(clip)
    own_frames = first is None or clip.jpegs != first.jpegs
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
        "scores": _base64(_score_codes(clip).tobytes()),
        "frames": [_base64(frame) for frame in clip.jpegs] if own_frames else None,
    }


def _score_codes(clip: StoredClip) -> NDArray[np.uint8]:
    """Return the codes of epipolar, reprojection and cycle scores [3, A, N], 0 for none.

    Computed here, so that clips of snapshots without scores have them too.
    """
    scores = score_clip(clip.tracks, clip.info).tracks
    return np.stack(
        [codes_of(scores.epipolar), codes_of(scores.reprojection), codes_of(scores.cycle)]
    )


def _json_number(value: float | None) -> float | None:
    """Round a figure for JSON; None if it is not finite, which the page shows as "?"."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _quantised_positions(clip: StoredClip) -> tuple[NDArray[np.int16], float]:
    """Return positions [A, T, N, 2] as 16-bit integers, and their units per pixel.

    A unit is 1/32 px, as stored, or coarser if frames are huge. Points more than four frame sizes
    away are moved to that distance, which makes no visible difference.
    """
    limit = 4 * np.array([clip.info.width, clip.info.height], np.float32)
    positions = np.clip(clip.tracks.positions, -limit, limit)
    units = float(_UNITS_PER_PIXEL)
    while np.abs(positions).max(initial=0) * units > _LARGEST:
        units /= 2
    return np.rint(positions * units).astype("<i2"), units


def _base64(data: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(data).decode()


def _call(function: str, *values: Any) -> bytes:
    """Return a script that passes values to the page.

    JSON in ASCII is a JavaScript expression, whatever texts it contains.
    """
    arguments = (json.dumps(value, separators=(",", ":"), allow_nan=False) for value in values)
    return f"{function}({', '.join(arguments)});\n".encode()


def _temporary_files(folder: Location) -> list[Path]:
    """List the temporary files in a gallery's folder on a disk. On a bucket there are none."""
    if not isinstance(folder, Path):
        return []
    paths = [path for part in (folder, folder / "clips") for path in part.glob(f"{TEMPORARY}*")]
    return [path for path in paths if not path.is_dir()]  # folders are those of exports


def _delete_older_clips(folder: Location, kept: set[str]) -> None:
    """Delete the clips of an older gallery in the same folder."""
    for name in sizes_in(parse_location(folder / "clips")):
        if _CLIP_FILE.fullmatch(name) and name not in kept:
            delete(folder / "clips" / name)
