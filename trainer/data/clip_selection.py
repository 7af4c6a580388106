"""Selection of clips: those that fit the settings, and the groups that weights mix."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from manifests.tables import CLIPS, read_table
from shards.clip import Directions
from shards.errors import PretrackError
from shards.files import absolute, parse_location
from trainer.data.clip_filter import parse_filter
from trainer.data.clip_table import Clip, ClipTable
from trainer.data.footage import FOOTAGE_COLUMNS
from trainer.data.sampler import ClipGroup
from trainer.data.score_rule import ScoreRule
from trainer.data.settings import DataSettings

logger = logging.getLogger(__name__)

MOST_POINTS = 1 << 20
"""Most points per clip that a table may claim: a grid of 1024 x 1024."""


def choose_clips(snapshots: Sequence[Snapshot], settings: DataSettings) -> ClipTable:
    """Select the clips of all snapshots that fit the settings; log how many each rule leaves out.

    Raises PretrackError if no clip fits, if clips differ in their number of points, or if that
    number is impossible.
    """
    tables = [
        _read_columns(snapshot, folder, settings) for folder, snapshot in enumerate(snapshots)
    ]
    tracked = [snapshot.tracked for snapshot in snapshots]
    clips = ClipTable(_apply_rules(pa.concat_tables(tables), settings, tracked))
    folders = ", ".join(str(snapshot.out) for snapshot in snapshots)
    if not len(clips):
        where = f" and {settings.where}" if settings.where else ""
        if settings.frames_by == "angle":
            where += f" and scored poses that turn by {settings.angle[0]:g} degrees or more"
        raise PretrackError(
            f"no clip in {folders} fits: split '{settings.split}'{where}, {settings.frames} frames "
            f"or more from an anchor{in_direction(tracked)}"
        )
    points = clips.table["points"].unique().to_pylist()
    if len(points) > 1:
        raise PretrackError(
            f"the clips in {folders} differ in their points ({sorted(points)}): choose some with "
            f"'data.where', such as \"points == {max(points)}\""
        )
    # Memory of this size is allocated before any track is read, and tables come from others.
    if not 0 < points[0] <= MOST_POINTS:
        raise PretrackError(f"the tables in {folders} are damaged: no clip has {points[0]} points")
    return clips


def check_scores(clips: ClipTable, snapshots: Sequence[Snapshot], by_score: ScoreRule) -> None:
    """Raise PretrackError if no clip has scores of its tracks."""
    if not pc.any(pc.greater(clips.table["scores_size"], 0)).as_py():
        folders = ", ".join(str(snapshot.out) for snapshot in snapshots)
        raise PretrackError(
            f"'{by_score.setting}' needs scores of tracks, and no clip in {folders} has any: "
            "run 'pretrack build' again, which adds them, or leave the setting out"
        )


def mixed_groups(
    clips: ClipTable, snapshots: Sequence[Snapshot], weights: dict[str, float]
) -> tuple[ClipGroup, ...]:
    """Return the groups that `data.weights` names, by dataset or folder; none if it is empty.

    Raises PretrackError for a name without clips, and unless every clip is in exactly one group.
    """
    datasets, folder = clips.table["dataset"], clips.table["folder"].to_numpy()
    memberships = np.zeros(len(clips), np.int64)
    groups = []
    for name, weight in weights.items():
        out = absolute(parse_location(name))
        folders = [number for number, snapshot in enumerate(snapshots) if snapshot.out == out]
        chosen = np.isin(folder, folders) if folders else pc.equal(datasets, name).to_numpy()
        if not chosen.any():
            existing = ", ".join(sorted(datasets.unique().to_pylist()))
            raise PretrackError(
                f"'data.weights' names '{name}', and no clip is of such a dataset or folder "
                f"(there are: {existing})"
            )
        memberships += chosen
        groups.append(ClipGroup(np.flatnonzero(chosen), weight))
    if weights and (memberships != 1).any():
        first = clips[int(np.flatnonzero(memberships != 1)[0])]
        number = "none" if memberships.min() == 0 else "two"
        raise PretrackError(
            f"'data.weights' should put every clip in one group, and {first.key} is in {number}: "
            "name its dataset or its folder, or leave it out with 'data.where'"
        )
    return tuple(groups)


def _read_columns(snapshot: Snapshot, folder: int, settings: DataSettings) -> pa.Table:
    """Read the needed columns of a snapshot's clips; `folder` is added as a column."""
    needed = {"split", "points", "checksum", *FOOTAGE_COLUMNS, *Clip.__dataclass_fields__}
    # A name that only occurs in a string of `where` is read too, which does no harm.
    needed |= {"posed", "turn"} if settings.frames_by == "angle" else set()
    names = [field.name for field in CLIPS if field.name in needed or field.name in settings.where]
    table = read_table(snapshot.folder / "clips.parquet", names)
    for name in ("scores_offset", "scores_size"):  # null for clips without scores
        index = table.column_names.index(name)
        table = table.set_column(index, name, table[name].fill_null(0))
    return table.append_column("folder", pa.repeat(pa.scalar(folder, pa.int32()), table.num_rows))


def _apply_rules(
    clips: pa.Table, settings: DataSettings, tracked: Sequence[Directions]
) -> pa.Table:
    """Return the clips that the settings select and that are long and large enough.

    tracked: the directions in which the points of each folder's clips were tracked
    """
    size = settings.size
    rules: dict[str, pc.Expression] = {
        f"split other than '{settings.split}'": pc.field("split") == settings.split
    }
    if settings.where.strip():
        rules[f"not {settings.where}"] = parse_filter(settings.where)
    rules[f"too short for {settings.frames} frames from an anchor"] = pc.field(
        "frames_available"
    ) >= frames_needed(settings)
    if settings.frames_by == "angle":
        # Both are null for clips without scores, which are left out.
        rules[f"without poses and scores, or turning less than {settings.angle[0]:g} degrees"] = (
            pc.field("posed") & (pc.field("turn") >= settings.angle[0])
        )
    if settings.crop == "native":
        rules[f"smaller than {size}x{size}"] = (pc.field("width") >= size) & (
            pc.field("height") >= size
        )
    # Filter only the columns that rules use. The others, with lists of offsets per clip, are large:
    # they are copied at most once, at the end.
    used = [
        name
        for name in clips.column_names
        if name in ("split", "width", "height", "posed", "turn") or name in settings.where
    ]
    filtered = clips.select(used)
    filtered = filtered.append_column(
        "frames_available", pa.array(frames_available(clips, settings, tracked))
    )
    filtered = filtered.append_column("row", pa.array(np.arange(clips.num_rows)))
    for reason, rule in rules.items():
        kept = filtered.filter(rule)
        if lost := filtered.num_rows - kept.num_rows:
            logger.info("%d clips left out: %s", lost, reason)
            filtered = kept
    return clips if filtered.num_rows == clips.num_rows else clips.take(filtered["row"])


def frames_needed(settings: DataSettings) -> int:
    """Return how many frames a clip needs on one side of an anchor, without the anchor frame."""
    return (settings.frames - 1) * (1 if settings.frames_by == "angle" else min(settings.step, 1))


def in_direction(tracked: Sequence[Directions]) -> str:
    """Say in which direction points were tracked, if in all folders it is the same one alone."""
    (direction, *others) = set(tracked) or {"both"}
    return "" if others or direction == "both" else f" (tracked only {direction})"


def frames_available(
    clips: pa.Table, settings: DataSettings, tracked: Sequence[Directions] = ("both",)
) -> NDArray[np.int64]:
    """Return the most frames on one side of a usable anchor, without the anchor frame: [clips].

    From the columns `anchors` and `frames`; -1 for a clip without anchors, and for one that was not
    tracked in a direction of the settings. `tracked` has the directions of each `folder`, a column
    that is needed only if there are several.
    """
    lengths = pc.list_value_length(clips["anchors"]).to_numpy()
    first, last = np.full(len(lengths), -1), np.full(len(lengths), -1)
    anchors, has_anchors = pc.list_flatten(clips["anchors"]).to_numpy(), lengths > 0
    starts = (np.cumsum(lengths) - lengths)[has_anchors]
    if len(anchors) and settings.anchor == "first":
        first[has_anchors] = last[has_anchors] = anchors[starts]
    elif len(anchors):
        first[has_anchors] = np.minimum.reduceat(anchors, starts)
        last[has_anchors] = np.maximum.reduceat(anchors, starts)
    # Forward in time the earliest anchor has the most frames after it, backward the latest.
    forward = np.where(has_anchors, clips["frames"].to_numpy() - 1 - first, -1)
    backward = last if settings.direction == "both" else np.full(len(lengths), -1)
    folder = clips["folder"].to_numpy() if len(tracked) > 1 else 0
    went_forward, went_backward = (
        np.array([directions != other for directions in tracked])[folder]
        for other in ("backward", "forward")
    )
    return np.maximum(np.where(went_forward, forward, -1), np.where(went_backward, backward, -1))
