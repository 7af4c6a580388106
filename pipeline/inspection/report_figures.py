"""The figures of `pretrack report`, from the tables and the tracks of sampled clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from manifests.tables import failure_counts, video_identifiers
from manifests.terms import Terms, terms_of
from manifests.wording import pluralise
from pipeline.inspection.geometry_figures import GeometryFigures, InlierCounts, measure_geometry
from pipeline.monitoring.status import STAGES
from pipeline.planning.anchor_use import measure_use, stored_lengths
from shards.clip import ClipInfo, Directions, Tracks, tracked_frames
from shards.codec import decode_tracks
from shards.cycles import cycle_errors
from shards.errors import ShardError
from shards.reader import read_members
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule

SAMPLED = 200
"""At most this many clips are sampled to read their tracks, in equal shares per source."""

SEED = 0
"""Seed of the sample."""

_MIN_MOTION, _MIN_VISIBLE = 0.01, 0.5
GOOD = f"motion > {_MIN_MOTION} and visible_fraction > {_MIN_VISIBLE}"
"""The filter that the README suggests for a trainer's `data.where`."""

_DOMINANT = 0.8
"""A source with a larger fraction of the clips than this is a concern."""
_LARGE_CYCLE_ERROR = 2.0
"""A median forward-backward error above this, in pixels of the stored frames, is a concern."""

_READERS = 8
_BINS = 25


@dataclass(frozen=True)
class SourceFigures:
    """Counts of a source in one split; `visible_fraction` and `motion` are means over its clips."""

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
    """Counts [bins] of clips between edges [bins + 1]; the last bin includes larger values."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SourceTracks:
    """Figures of the tracks of a source's sampled clips.

    since_anchor: (frames after the anchor frame, negative before it; mean visibility)
    cycles:       number of points followed from one anchor to another and back
    cycle_median: their median forward-backward error in pixels of the stored frames (see
                  `cycle_errors`); None if there are no such points
    cycle_p90:    its 90th percentile
    """

    source: str
    clips: int
    since_anchor: tuple[tuple[int, float], ...]
    cycles: int
    cycle_median: float | None
    cycle_p90: float | None


@dataclass(frozen=True)
class StageSpeed:
    """Worker time in a build stage, and stored frames per second of it (None if it took none)."""

    stage: str
    seconds: float
    frames_per_second: float | None


@dataclass(frozen=True)
class SnapshotFigures:
    """All figures of a snapshot.

    bytes:       by part: frames, tracks, descriptions, and the tar format around them
    failures:    (stage, reason, count)
    good:        number of clips that `GOOD` keeps
    damaged:     number of sampled clips whose tracks cannot be read
    videos:      rows of the videos table
    videos_lost: number of videos with failures and without a clip
    unused_tracks: sentences on anchors and clips that no training sample can use
    geometry:    what the scores of tracks say
    terms:       what may be done with the build
    """

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
    unused_tracks: tuple[str, ...]
    geometry: GeometryFigures
    terms: Terms


def measure(snapshot: Snapshot, rule: SampleRule = TRAINER_DEFAULTS) -> SnapshotFigures:
    """Read the tables, and the tracks of at most SAMPLED clips.

    rule: how training takes samples, to name tracks that it cannot use

    Raises PretrackError if a table cannot be read.
    """
    clips, shards = snapshot.clips, snapshot.shards
    frames = pc.sum(clips["frames"]).as_py() or 0
    counts = InlierCounts()
    sources, damaged = _measure_sources(snapshot, counts)
    figures = SnapshotFigures(
        out=str(snapshot.out),
        snapshot=snapshot.name,
        tracks=dict(snapshot.settings.get("tracks", {})),
        videos=len(snapshot.videos),
        clips=len(clips),
        frames=frames,
        shards=len(shards),
        groups=_count_groups(clips),
        lengths=_length_histogram(clips["frames"].to_numpy()),
        visible=_histogram(clips["visible_fraction"].to_numpy(), 1.0),
        motion=_histogram(clips["motion"].to_numpy(), _motion_scale(clips["motion"].to_numpy())),
        good=_count_good(clips),
        sources=sources,
        damaged=damaged,
        failures=tuple(failure_counts(snapshot.failures)),
        videos_lost=_count_lost_videos(snapshot.failures, clips),
        bytes=_bytes_by_part(clips, shards),
        stages=tuple(_stage_speed(stage, shards, frames) for stage in STAGES),
        concerns=(),
        unused_tracks=tuple(measure_use(stored_lengths(clips), rule, snapshot.tracked).sentences()),
        geometry=measure_geometry(snapshot, counts),
        terms=terms_of(snapshot.videos, snapshot.settings.get("tracks", {})),
    )
    return replace(figures, concerns=tuple(_concerns(figures)))


def _count_good(clips: pa.Table) -> int:
    """Count the clips that `GOOD` keeps."""
    moves = pc.greater(clips["motion"], _MIN_MOTION)
    visible = pc.greater(clips["visible_fraction"], _MIN_VISIBLE)
    return pc.sum(pc.and_(moves, visible)).as_py() or 0


def _count_lost_videos(failures: pa.Table, clips: pa.Table) -> int:
    """Count the videos that have a failure and no clip."""
    failed, with_clips = (pc.unique(video_identifiers(rows)) for rows in (failures, clips))
    return len(failed) - (pc.sum(pc.is_in(failed, value_set=with_clips)).as_py() or 0)


def _count_groups(clips: pa.Table) -> tuple[SourceFigures, ...]:
    """Count per source and split, by source, `train` before `eval`."""
    columns = {
        ("video_id", "count_distinct"): "videos",
        ("key", "count"): "clips",
        ("frames", "sum"): "frames",
        ("visible_fraction", "mean"): "visible_fraction",
        ("motion", "mean"): "motion",
    }
    keys = ["source", "dataset", "split"]
    groups = clips.group_by(keys).aggregate(list(columns))
    groups = groups.sort_by([("source", "ascending"), ("split", "descending")])
    return tuple(
        SourceFigures(
            **{key: row[key] for key in keys},
            **{name: row["_".join(column)] for column, name in columns.items()},
        )
        for row in groups.to_pylist()
    )


def _length_histogram(frames: NDArray[np.int32]) -> Histogram:
    """Count clips by length: a bin per length, or wider ones so that there are at most about 50."""
    longest = int(frames.max(initial=1))
    width = -(-longest // 50)
    edges = np.arange(0.5, longest + width + 0.5, width)
    return Histogram(tuple(edges.tolist()), tuple(np.histogram(frames, edges)[0].tolist()))


def _histogram(values: NDArray[np.float32], end: float) -> Histogram:
    """Count values in _BINS bins from 0 to `end`: NaN as 0, larger values in the last bin."""
    edges = np.linspace(0, end, _BINS + 1)
    counts = np.histogram(np.clip(np.nan_to_num(values), 0, end), edges)[0]
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _motion_scale(motion: NDArray[np.float32]) -> float:
    """Return the end of the histogram of motion: its 99th percentile, rounded up."""
    return _round_up(float(np.nanquantile(motion, 0.99)) if len(motion) else 0.0)


def _round_up(value: float) -> float:
    """Return the next of 0.05, 0.1, 0.2, 0.5, 1, 2, 5, or the next whole number above these."""
    for step in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
        if value <= step:
            return step
    return float(np.ceil(value))


def _bytes_by_part(clips: pa.Table, shards: pa.Table) -> dict[str, int]:
    """Sum the bytes of frames, tracks and descriptions; `tar` is the rest of the shards."""
    parts = {
        "frames": pc.sum(pc.list_flatten(clips["frame_sizes"])).as_py() or 0,
        "tracks": pc.sum(clips["tracks_size"]).as_py() or 0,
        "descriptions": pc.sum(clips["json_size"]).as_py() or 0,
    }
    return {**parts, "tar": max(0, (pc.sum(shards["bytes"]).as_py() or 0) - sum(parts.values()))}


def _stage_speed(stage: str, shards: pa.Table, frames: int) -> StageSpeed:
    """Sum the worker time of a stage over all shards."""
    seconds = pc.sum(shards[f"{stage}_seconds"]).as_py() or 0.0
    return StageSpeed(stage, seconds, frames / seconds if seconds else None)


def _measure_sources(
    snapshot: Snapshot, counts: InlierCounts
) -> tuple[tuple[SourceTracks, ...], int]:
    """Measure the tracks of sampled clips per source; count those that cannot be read.

    Adds their points to `counts`.
    """
    columns = ["source", "shard", "tracks_offset", "tracks_size", "anchors", "frames", "points"]
    clips = snapshot.clips.select([*columns, "json_offset", "json_size"])
    names = sorted(pc.unique(clips["source"]).to_pylist())
    share = max(1, SAMPLED // max(1, len(names)))
    rng = np.random.default_rng(SEED)
    measured, damaged = [], 0
    with ThreadPoolExecutor(_READERS) as pool:
        for name in names:
            rows = np.flatnonzero(pc.equal(clips["source"], name).to_numpy())
            # in the order of the table, so that neighbours in a shard are read one after another
            sample = np.sort(rng.choice(rows, min(share, len(rows)), replace=False))
            sampled = clips.take(pa.array(sample)).to_pylist()
            read = list(pool.map(partial(_read_tracks, snapshot), sampled))
            readable = [one for one in read if one is not None]
            damaged += len(read) - len(readable)
            for info, tracks in readable:
                counts.add(info, tracks)
            measured.append(_measure_source(name, [it[1] for it in readable], snapshot.tracked))
    return tuple(measured), damaged


def _read_tracks(snapshot: Snapshot, row: dict[str, Any]) -> tuple[ClipInfo, Tracks] | None:
    """Read the description and tracks of a clip by its row; None if they are damaged."""
    offsets, sizes = (
        [row[f"{member}_{what}"] for member in ("json", "tracks")] for what in ("offset", "size")
    )
    try:
        info, tracks = read_members(snapshot.shard_path(row["shard"]), offsets, sizes)
        shape = len(row["anchors"]), row["frames"], row["points"]
        return ClipInfo.from_json(info), decode_tracks(tracks, shape)
    except ShardError:
        return None


def _measure_source(name: str, clips: Sequence[Tracks], directions: Directions) -> SourceTracks:
    """Measure visibility around the anchor and forward-backward errors over clips of a source."""
    longest = max((tracks.positions.shape[1] for tracks in clips), default=1)
    # at index `longest + offset`, for offsets from the anchor frame of -longest to longest - 1
    sums, counts = np.zeros(2 * longest), np.zeros(2 * longest, np.int64)
    errors = [np.empty(0, np.float32)]
    for tracks in clips:
        frames = tracks.positions.shape[1]
        tracked = tracked_frames(tracks.anchors, frames, directions)
        for row, anchor in enumerate(tracks.anchors):
            indices = longest + np.flatnonzero(tracked[row]) - anchor
            sums[indices] += tracks.visibility[row, tracked[row]].mean(axis=1) / 255
            counts[indices] += 1
        cycles = cycle_errors(tracks)
        errors.append(cycles[np.isfinite(cycles)])
    since_anchor = tuple(
        (int(index - longest), float(sums[index] / counts[index]))
        for index in np.flatnonzero(counts)
    )
    judged = np.concatenate(errors)
    median, p90 = map(float, np.quantile(judged, [0.5, 0.9])) if len(judged) else (None, None)
    return SourceTracks(
        source=name,
        clips=len(clips),
        since_anchor=since_anchor,
        cycles=len(judged),
        cycle_median=median,
        cycle_p90=p90,
    )


def _concerns(figures: SnapshotFigures) -> Iterator[str]:
    """Yield what to consider before training on this snapshot, one sentence each."""
    splits = {group.split for group in figures.groups}
    by_source = Counter[str]()
    for group in figures.groups:
        by_source[group.source] += group.clips
    if "train" not in splits:
        yield "The split train has no clips: there is nothing to train on."
    if "eval" not in splits:
        yield (
            "The split eval has no clips: it cannot be measured whether training helped; "
            "set split.eval_fraction."
        )
    if figures.videos_lost:
        lost = pluralise(figures.videos_lost, "video")
        yield f"{lost} yielded no clips, beside {figures.videos:,} that could be read."
    if figures.clips and figures.good < figures.clips:
        kept = f"{figures.good:,} of {pluralise(figures.clips, 'clip')}"
        yield f'"{GOOD}" keeps {kept} ({figures.good / figures.clips:.0%}).'
    if len(by_source) > 1:
        ((largest, clips),) = by_source.most_common(1)
        if clips > _DOMINANT * figures.clips:
            part = f"{clips / figures.clips:.0%} of the clips"
            yield f"{part} are from the source {largest}: data.weights can balance the sources."
    for source in figures.sources:
        if source.cycle_median is not None and source.cycle_median > _LARGE_CYCLE_ERROR:
            yield (
                f"The median forward-backward error of {source.source} is "
                f"{source.cycle_median:.1f} px: look at its tracks."
            )
    for video in figures.geometry.suspicious[:1]:
        several = pluralise(figures.geometry.suspicious_videos, "video")
        yield (
            f"Tracks and poses disagree in {several}, or many points move there; the worst is "
            f"{video.video_id}, where {video.epipolar_inliers:.0%} of the points are within 2 px "
            "of their epipolar lines."
        )
    if figures.damaged:
        damaged = pluralise(figures.damaged, "sampled clip")
        yield f"The tracks of {damaged} could not be read: run 'pretrack verify'."
