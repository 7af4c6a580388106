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
from shards.errors import PretrackError
from shards.files import absolute, parse_location
from trainer.config import DataSettings
from trainer.data.clip_filter import parse_filter
from trainer.data.clip_table import Clip, ClipTable
from trainer.data.sampler import ClipGroup

logger = logging.getLogger(__name__)

MOST_POINTS = 1 << 20
"""Of a clip: a grid of 1024 x 1024."""


def choose_clips(snapshots: Sequence[Snapshot], settings: DataSettings) -> ClipTable:
    """The clips of all snapshots that fit the settings; logs how many each rule leaves out.

    Raises PretrackError if nothing fits, or if clips differ in their number of points, or have a number that none can have.
    """
    tables = [_read(snapshot, number, settings.where) for number, snapshot in enumerate(snapshots)]
    clips = ClipTable(_fitting(pa.concat_tables(tables), settings))
    folders = ", ".join(str(snapshot.out) for snapshot in snapshots)
    if not len(clips):
        where = f" and {settings.where}" if settings.where else ""
        raise PretrackError(
            f"no clip in {folders} fits: split '{settings.split}'{where}, {settings.frames} frames or more from an anchor"
        )
    points = clips.table["points"].unique().to_pylist()
    if len(points) > 1:
        raise PretrackError(
            f"the clips in {folders} differ in their points ({sorted(points)}): choose some with "
            f"'data.where', such as \"points == {max(points)}\""
        )
    if not 0 < points[0] <= MOST_POINTS:  # there is memory of this size before any track is read
        raise PretrackError(f"the tables in {folders} are damaged: no clip has {points[0]} points")
    return clips


def mixed_groups(
    clips: ClipTable, snapshots: Sequence[Snapshot], weights: dict[str, float]
) -> tuple[ClipGroup, ...]:
    """The groups that `data.weights` names, by dataset or folder; none if it is empty.

    Raises PretrackError for a name of nothing, and unless every clip is in exactly one group.
    """
    datasets, folder = clips.table["dataset"], clips.table["folder"].to_numpy()
    times = np.zeros(len(clips), np.int64)
    groups = []
    for name, weight in weights.items():
        numbers = [
            i
            for i, snapshot in enumerate(snapshots)
            if snapshot.out == absolute(parse_location(name))
        ]
        chosen = np.isin(folder, numbers) if numbers else pc.equal(datasets, name).to_numpy()
        if not chosen.any():
            known = ", ".join(sorted(datasets.unique().to_pylist()))
            raise PretrackError(
                f"'data.weights' names '{name}', and no clip is of such a dataset or folder (there are: {known})"
            )
        times += chosen
        groups.append(ClipGroup(np.flatnonzero(chosen), weight))
    if weights and (times != 1).any():
        first = clips[int(np.flatnonzero(times != 1)[0])]
        how = "in none" if times.min() == 0 else "in two"
        raise PretrackError(
            f"'data.weights' should put every clip in one group, and {first.key} is {how}: name its dataset or its folder, "
            "or leave it out with 'data.where'"
        )
    return tuple(groups)


def _read(snapshot: Snapshot, number: int, where: str) -> pa.Table:
    """A snapshot's clips, without the columns that nobody asks for; `folder` is the snapshot's number."""
    needed = {"dataset", "split", "points", "checksum", *Clip.__dataclass_fields__}
    names = [field.name for field in CLIPS if field.name in needed or field.name in where]
    table = read_table(snapshot.folder / "clips.parquet", names)
    return table.append_column("folder", pa.repeat(pa.scalar(number, pa.int32()), table.num_rows))


def _fitting(clips: pa.Table, settings: DataSettings) -> pa.Table:
    """The clips that the settings ask for and that are long and large enough; logs how many each rule leaves out."""
    size, reach = settings.size, frames_needed(settings)
    rules: dict[str, pc.Expression] = {
        f"split other than '{settings.split}'": pc.field("split") == settings.split
    }
    if settings.where.strip():
        rules[f"not {settings.where}"] = parse_filter(settings.where)
    rules[f"too short for {settings.frames} frames from an anchor"] = (
        pc.field("frames_available") >= reach
    )
    if settings.crop == "native":
        rules[f"smaller than {size}x{size}"] = (pc.field("width") >= size) & (
            pc.field("height") >= size
        )
    asked = [
        name
        for name in clips.column_names
        if name in ("split", "width", "height") or name in settings.where
    ]
    light = clips.select(asked)  # the rest is copied once, if at all
    light = light.append_column("frames_available", pa.array(frames_available(clips, settings)))
    light = light.append_column("row", pa.array(np.arange(clips.num_rows)))
    for reason, rule in rules.items():
        kept = light.filter(rule)
        if lost := light.num_rows - kept.num_rows:
            logger.info("%d clips left out: %s", lost, reason)
            light = kept
    return clips if light.num_rows == clips.num_rows else clips.take(light["row"])


def frames_needed(settings: DataSettings) -> int:
    """How many frames a clip needs on one side of an anchor."""
    return (settings.frames - 1) * min(settings.step, 1)


def frames_available(clips: pa.Table, settings: DataSettings) -> NDArray[np.int64]:
    """The most frames that lie on one side of a usable anchor, from the columns `anchors` and `frames`: [clips]."""
    lengths = pc.list_value_length(clips["anchors"]).to_numpy()
    first, last = np.full(len(lengths), -1), np.full(len(lengths), -1)
    anchors, usable = pc.list_flatten(clips["anchors"]).to_numpy(), lengths > 0
    starts = (np.cumsum(lengths) - lengths)[usable]
    if len(anchors):
        first[usable] = (
            anchors[starts] if settings.anchor == "first" else np.minimum.reduceat(anchors, starts)
        )
        last[usable] = (
            anchors[starts] if settings.anchor == "first" else np.maximum.reduceat(anchors, starts)
        )
    forward = np.where(usable, clips["frames"].to_numpy() - 1 - first, -1)
    return np.maximum(forward, last) if settings.direction == "both" else forward
