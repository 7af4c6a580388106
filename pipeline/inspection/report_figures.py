"""What is to be known of a snapshot before one trains on it: from its tables, and from the tracks of some of its clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from manifests.tables import failure_counts, video_identifiers
from manifests.wording import pluralise
from pipeline.monitoring.status import STAGES
from shards.clip import VISIBLE_THRESHOLD, Tracks
from shards.codec import decode_tracks
from shards.errors import ShardError
from shards.reader import read_members

SAMPLED = 200
"""Clips whose tracks are read, at most, shared out among the sources."""

SEED = 0
"""Which clips those are."""

_MOVES, _SEEN = 0.01, 0.5
GOOD = f"motion > {_MOVES} and visible_fraction > {_SEEN}"
"""What a trainer's `data.where` may ask for, as in the README."""

_AT_ONCE = 8
_BINS = 25


@dataclass(frozen=True)
class SourceFigures:
    """The clips of a source in a split. `visible_fraction` and `motion` are means."""

    source: str
    dataset: str
    split: str
    videos: int
    clips: int
    frames: int
    visible_fraction: float
    motion: float


@dataclass(frozen=True)
class Histogram:
    """How many clips lie between edges; what lies beyond the last edge counts in the last bin."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SourceTracks:
    """What the tracks of a source's sampled clips say.

    since_anchor: (frames since the anchor, mean visibility), from before it to after it
    cycles:       how many points were followed from one anchor to another and back
    cycle_median: pixels of the stored frame by which they miss their start (see `cycle_errors`), None where there were none
    cycle_p90:    a tenth of them miss by more
    """

    source: str
    clips: int
    since_anchor: tuple[tuple[int, float], ...]
    cycles: int
    cycle_median: float | None
    cycle_p90: float | None


@dataclass(frozen=True)
class StageSpeed:
    """What workers spent in a stage of the build, and the stored frames that each second of it made (None where it took none)."""

    stage: str
    seconds: float
    frames_per_second: float | None


@dataclass(frozen=True)
class SnapshotFigures:
    """All of it. `bytes` are those of frames, tracks, descriptions and the tar around them; `failures` (stage, reason, count)."""

    out: str
    snapshot: str
    tracks: dict[str, Any]
    videos: int
    clips: int
    frames: int
    shards: int
    groups: tuple[SourceFigures, ...]
    lengths: Histogram
    visible: Histogram
    motion: Histogram
    good: int
    sources: tuple[SourceTracks, ...]
    damaged: int
    failures: tuple[tuple[str, str, int], ...]
    videos_lost: int
    bytes: dict[str, int]
    stages: tuple[StageSpeed, ...]
    concerns: tuple[str, ...]


def measure(snapshot: Snapshot) -> SnapshotFigures:
    """Reads the tables, and of at most SAMPLED clips the tracks. Raises PretrackError if a table cannot be read."""
    clips, shards = snapshot.clips, snapshot.shards
    groups = _groups(clips)
    good = (
        pc.sum(
            pc.and_(
                pc.greater(clips["motion"], _MOVES), pc.greater(clips["visible_fraction"], _SEEN)
            )
        ).as_py()
        or 0
    )
    frames = pc.sum(clips["frames"]).as_py() or 0
    sources, damaged = _sources(snapshot)
    figures = SnapshotFigures(
        out=str(snapshot.out),
        snapshot=snapshot.name,
        tracks=dict(snapshot.settings.get("tracks", {})),
        videos=len(snapshot.videos),
        clips=len(clips),
        frames=frames,
        shards=len(shards),
        groups=groups,
        lengths=_lengths(clips["frames"].to_numpy()),
        visible=_histogram(clips["visible_fraction"].to_numpy(), 1.0),
        motion=_histogram(clips["motion"].to_numpy(), _round_up(_most(clips["motion"]))),
        good=good,
        sources=sources,
        damaged=damaged,
        failures=tuple(failure_counts(snapshot.failures)),
        videos_lost=_videos_lost(snapshot.failures, clips),
        bytes=_bytes(clips, shards),
        stages=tuple(
            _stage(stage, pc.sum(shards[f"{stage}_seconds"]).as_py() or 0.0, frames)
            for stage in STAGES
        ),
        concerns=(),
    )
    return replace(figures, concerns=tuple(_concerns(figures)))


def cycle_errors(tracks: Tracks) -> NDArray[np.float32]:
    """How far points come home from where they started, in pixels: [M], of those that can be judged.

    A point of one anchor's grid is followed to another anchor's frame, and from there back: along what the four points of that
    one's grid around it did, bilinearly. This is the forward-backward error (Kalal et al., ICPR 2010) of stored tracks, of which
    none starts exactly where another ends. All five have to be visible at both ends. Where neighbours move apart (at an object's
    edge) it is large though no track is wrong: its median tells more than its mean.
    """
    side = round(tracks.positions.shape[2] ** 0.5)
    found = [np.empty(0, np.float32)]
    for a, start in enumerate(tracks.anchors):
        for b, turn in enumerate(tracks.anchors):
            if a != b and side > 1 and side * side == tracks.positions.shape[2]:
                seen = tracks.visibility[a, turn] >= VISIBLE_THRESHOLD
                home, known = _carried(tracks, b, int(start), tracks.positions[a, turn], side)
                found.append(
                    np.linalg.norm(home - tracks.positions[a, start], axis=-1)[seen & known]
                )
    return np.concatenate(found).astype(np.float32)


def _carried(
    tracks: Tracks, anchor: int, t: int, points: NDArray[np.float32], side: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points [N, 2] of an anchor's frame are in frame `t`, by the grid around them: [N, 2], and whether that is known [N]."""
    grid = tracks.positions[anchor, tracks.anchors[anchor]].reshape(side, side, 2)
    moved = (tracks.positions[anchor, t] - grid.reshape(-1, 2)).reshape(side, side, 2)
    visible = (tracks.visibility[anchor, t] >= VISIBLE_THRESHOLD).reshape(side, side)
    xs, ys = grid[0, :, 0], grid[:, 0, 1]
    inside = (
        (points[:, 0] >= xs[0])
        & (points[:, 0] < xs[-1])
        & (points[:, 1] >= ys[0])
        & (points[:, 1] < ys[-1])
    )
    column = np.clip(np.searchsorted(xs, points[:, 0], side="right") - 1, 0, side - 2)
    row = np.clip(np.searchsorted(ys, points[:, 1], side="right") - 1, 0, side - 2)
    u = ((points[:, 0] - xs[column]) / (xs[column + 1] - xs[column]))[:, None]
    v = ((points[:, 1] - ys[row]) / (ys[row + 1] - ys[row]))[:, None]
    above = moved[row, column] * (1 - u) + moved[row, column + 1] * u
    below = moved[row + 1, column] * (1 - u) + moved[row + 1, column + 1] * u
    known = (
        visible[row, column]
        & visible[row, column + 1]
        & visible[row + 1, column]
        & visible[row + 1, column + 1]
    )
    return points + above * (1 - v) + below * v, inside & known


def _videos_lost(failures: pa.Table, clips: pa.Table) -> int:
    """How many videos are named by a failure and have no clip."""
    named, having = (pc.unique(video_identifiers(rows)) for rows in (failures, clips))
    return len(named) - (pc.sum(pc.is_in(named, value_set=having)).as_py() or 0)


def _groups(clips: pa.Table) -> tuple[SourceFigures, ...]:
    found = clips.group_by(["source", "dataset", "split"]).aggregate(
        [
            ("video_id", "count_distinct"),
            ("key", "count"),
            ("frames", "sum"),
            ("visible_fraction", "mean"),
            ("motion", "mean"),
        ]
    )
    rows = found.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist()
    return tuple(
        SourceFigures(
            row["source"],
            row["dataset"],
            row["split"],
            row["video_id_count_distinct"],
            row["key_count"],
            row["frames_sum"],
            row["visible_fraction_mean"],
            row["motion_mean"],
        )
        for row in rows
    )


def _lengths(frames: NDArray[np.int32]) -> Histogram:
    """A bin for every length, or for several where there are many."""
    longest = int(frames.max(initial=1))
    wide = -(-longest // 50)
    edges = np.arange(0.5, longest + wide + 0.5, wide)
    return Histogram(tuple(edges.tolist()), tuple(np.histogram(frames, edges)[0].tolist()))


def _histogram(values: NDArray[np.float32], most: float) -> Histogram:
    edges = np.linspace(0, most, _BINS + 1)
    counts = np.histogram(np.clip(np.nan_to_num(values), 0, most), edges)[0]
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _most(values: pa.ChunkedArray) -> float:
    """What only one in a hundred is above."""
    return float(np.nanquantile(values.to_numpy(), 0.99)) if len(values) else 0.0


def _round_up(value: float) -> float:
    """The next of 0.05, 0.1, 0.2, 0.5, 1 …"""
    for step in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        if value <= step:
            return step
    return float(np.ceil(value))


def _bytes(clips: pa.Table, shards: pa.Table) -> dict[str, int]:
    parts = {
        "frames": pc.sum(pc.list_flatten(clips["frame_sizes"])).as_py() or 0,
        "tracks": pc.sum(clips["tracks_size"]).as_py() or 0,
        "descriptions": pc.sum(clips["json_size"]).as_py() or 0,
    }
    return {**parts, "tar": max(0, (pc.sum(shards["bytes"]).as_py() or 0) - sum(parts.values()))}


def _stage(stage: str, seconds: float, frames: int) -> StageSpeed:
    return StageSpeed(stage, seconds, frames / seconds if seconds else None)


def _sources(snapshot: Snapshot) -> tuple[tuple[SourceTracks, ...], int]:
    """What the sampled tracks of each source say, and how many could not be read."""
    columns = snapshot.clips.select(
        ["source", "shard", "tracks_offset", "tracks_size", "anchors", "frames", "points"]
    )
    names = sorted(pc.unique(columns["source"]).to_pylist())
    each = max(1, SAMPLED // max(1, len(names)))
    rng = np.random.default_rng(SEED)
    found, damaged = [], 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name in names:
            rows = np.flatnonzero(pc.equal(columns["source"], name).to_numpy())
            picked = np.sort(rng.choice(rows, min(each, len(rows)), replace=False))
            read = list(
                pool.map(
                    lambda row: _tracks(snapshot, row), columns.take(pa.array(picked)).to_pylist()
                )
            )
            good = [tracks for tracks in read if tracks is not None]
            damaged += len(read) - len(good)
            found.append(_source(name, good))
    return tuple(found), damaged


def _tracks(snapshot: Snapshot, row: dict[str, Any]) -> Tracks | None:
    """The tracks of a clip, None if they are damaged."""
    try:
        (data,) = read_members(
            snapshot.shard_path(row["shard"]), [row["tracks_offset"]], [row["tracks_size"]]
        )
        return decode_tracks(data, (len(row["anchors"]), row["frames"], row["points"]))
    except ShardError:
        return None


def _source(name: str, clips: Sequence[Tracks]) -> SourceTracks:
    longest = max((tracks.positions.shape[1] for tracks in clips), default=1)
    sums, counts = np.zeros(2 * longest), np.zeros(2 * longest, np.int64)
    errors = [np.empty(0, np.float32)]
    for tracks in clips:
        frames = tracks.positions.shape[1]
        for row, anchor in enumerate(tracks.anchors):
            places = longest + np.arange(frames) - anchor
            sums[places] += tracks.visibility[row].mean(axis=1) / 255
            counts[places] += 1
        errors.append(cycle_errors(tracks))
    cycles = np.concatenate(errors)
    median, p90 = (
        (float(part) for part in np.quantile(cycles, [0.5, 0.9])) if len(cycles) else (None, None)
    )
    since = tuple(
        (int(place - longest), float(sums[place] / counts[place]))
        for place in np.flatnonzero(counts)
    )
    return SourceTracks(name, len(clips), since, len(cycles), median, p90)


def _concerns(figures: SnapshotFigures) -> Iterator[str]:
    """What a person should think about before training on this."""
    by_split = {
        split: sum(group.clips for group in figures.groups if group.split == split)
        for split in ("train", "eval")
    }
    if not by_split["train"]:
        yield "There is no clip in the split train: nothing can be trained on."
    if not by_split["eval"]:
        yield "There is no clip in the split eval: whether training helped cannot be told (split.eval_fraction)."
    if figures.videos_lost:
        yield f"{pluralise(figures.videos_lost, 'video')} yielded nothing, beside {figures.videos:,} that could be read."
    if figures.clips and figures.good < figures.clips:
        share = figures.good / figures.clips
        yield f'"{GOOD}" keeps {figures.good:,} of {pluralise(figures.clips, "clip")} ({share:.0%}).'
    by_source: dict[str, int] = {}
    for group in figures.groups:
        by_source[group.source] = by_source.get(group.source, 0) + group.clips
    largest = max(by_source, key=lambda source: by_source[source], default="")
    if len(by_source) > 1 and by_source[largest] > 0.8 * figures.clips:
        yield f"{by_source[largest] / figures.clips:.0%} of the clips are of the source {largest}: data.weights can balance them."
    for source in figures.sources:
        if source.cycle_median is not None and source.cycle_median > 2:
            missed = f"miss their start by more than {source.cycle_median:.1f} px"
            yield f"Half of the points of {source.source} {missed}, there and back: look at its tracks."
    if figures.damaged:
        yield f"The tracks of {pluralise(figures.damaged, 'sampled clip')} could not be read: run 'pretrack verify'."
