"""Estimate what a plan costs (clips, bytes and worker time) from the shards made before."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from manifests.rows import ShardRow
from pipeline.monitoring.status import read_state
from pipeline.planning.existing_shards import ExistingShard
from pipeline.planning.plan import Action, Plan, PlannedShard
from shards.errors import AccessError, PretrackError


@dataclass(frozen=True)
class Cost:
    """The cost of some shards of a plan: those of one action and reason, or all of them.

    action, reason: None and "" for all
    bytes, seconds: size and worker time, None without earlier shards to estimate from
    """

    action: Action | None
    reason: str
    shards: int
    clips: int
    bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan: per action and reason, and of all shards to make.

    parallel:     seconds of work done per second
    wall_seconds: `total.seconds / parallel`
    """

    lines: tuple[Cost, ...]
    total: Cost
    parallel: float
    wall_seconds: float | None


@dataclass(frozen=True)
class _Rates:
    """Mean cost per clip of a source: bytes, and seconds per stage.

    decode: by the device that decodes
    track:  seconds per clip and point, by tracker
    """

    bytes: float
    decode: dict[str, float]
    load: float
    write: float
    track: dict[str, float]


def estimate(plan: Plan) -> Estimate:
    """Estimate the cost of a plan from the existing shards of the output folder."""
    rates = _rates_by_source(plan.existing.shards)
    rows = {shard.row.shard: shard.row for shard in plan.existing.shards}
    by_reason = defaultdict[tuple[Action, str], list[Cost]](list)
    for shard in plan.shards:
        cost = _shard_cost(shard, rates.get(shard.source), rows)
        by_reason[shard.action, shard.reason].append(cost)
    lines = tuple(
        replace(_sum(costs), action=action, reason=reason)
        for (action, reason), costs in sorted(by_reason.items())
    )
    total = _sum([line for line in lines if line.action != "keep"])
    parallel = _parallel(plan)
    wall_seconds = None if total.seconds is None else total.seconds / parallel
    return Estimate(lines, total, parallel, wall_seconds)


def _shard_cost(shard: PlannedShard, rates: _Rates | None, rows: dict[str, ShardRow]) -> Cost:
    size, seconds = _size_and_seconds(shard, rates, rows)
    return Cost(
        action=shard.action, reason="", shards=1, clips=shard.count, bytes=size, seconds=seconds
    )


def _size_and_seconds(
    shard: PlannedShard, rates: _Rates | None, rows: dict[str, ShardRow]
) -> tuple[int | None, float | None]:
    """Estimate a shard's bytes and seconds of worker time; None without earlier shards."""
    if shard.action == "keep":
        return rows[shard.shard].bytes, 0.0
    if rates is None:
        return None, None
    # A re-track keeps the frames, which are most of a shard's bytes.
    size = rows[shard.previous].bytes if shard.previous else round(rates.bytes * shard.count)
    if shard.action == "score":  # it is read and written again, as fast as it was written
        return size, 2 * rates.write * shard.count
    tracker, points = _points_per_clip(shard.tracks_settings)
    device = _device(shard.frames_settings)
    if tracker not in rates.track or (shard.action == "build" and device not in rates.decode):
        return size, None
    read = rates.load if shard.action == "retrack" else rates.decode[device]
    return size, shard.count * (read + rates.track[tracker] * points + rates.write)


def _sum(costs: Sequence[Cost]) -> Cost:
    """Add costs up; a sum with an unknown part is unknown."""
    sizes = [cost.bytes for cost in costs if cost.bytes is not None]
    times = [cost.seconds for cost in costs if cost.seconds is not None]
    return Cost(
        action=None,
        reason="",
        shards=sum(cost.shards for cost in costs),
        clips=sum(cost.clips for cost in costs),
        bytes=sum(sizes) if len(sizes) == len(costs) else None,
        seconds=sum(times) if len(times) == len(costs) else None,
    )


def _rates_by_source(shards: Iterable[ExistingShard]) -> dict[str, _Rates]:
    """Compute the rates of each source that has clips."""
    by_source = defaultdict[str, list[ExistingShard]](list)
    for shard in shards:
        if shard.row.clips:
            by_source[shard.row.source].append(shard)
    return {source: _rates(shards_of_source) for source, shards_of_source in by_source.items()}


def _rates(shards: Sequence[ExistingShard]) -> _Rates:
    """Compute rates from shards of one source.

    Bytes and writing are those of the current snapshot's shards, if it has any; decoding, loading
    and tracking are means over all shards.
    """
    rows = [shard.row for shard in shards]
    # Size depends on the settings, and the current snapshot's are most like the plan's.
    newest = [shard.row for shard in shards if shard.current] or rows
    newest_clips = sum(row.clips for row in newest)
    decoded, loaded = _decoded_and_loaded(rows)
    points, seconds = defaultdict[str, float](float), defaultdict[str, float](float)
    for row in rows:
        tracker, points_per_clip = _points_per_clip(row.tracks_settings)
        points[tracker] += row.clips * points_per_clip
        seconds[tracker] += row.track_seconds
    return _Rates(
        bytes=sum(row.bytes for row in newest) / newest_clips,
        decode={
            device: _decode_seconds_per_clip(
                [row for row in decoded if _device(row.frames_settings) == device]
            )
            for device in {_device(row.frames_settings) for row in decoded}
        },
        load=_decode_seconds_per_clip(loaded),
        write=sum(row.write_seconds for row in newest) / newest_clips,
        track={tracker: seconds[tracker] / points[tracker] for tracker in points},
    )


def _decoded_and_loaded(rows: Sequence[ShardRow]) -> tuple[list[ShardRow], list[ShardRow]]:
    """Divide shards into those decoded from their source, and those that read stored frames.

    Among shards with the same frames, one was decoded and the others read its stored frames, which
    is faster. Rows do not say which, so the slowest is taken to be the decoded one.
    """
    by_frames = defaultdict[str, list[ShardRow]](list)
    for row in rows:
        by_frames[row.frames_fingerprint].append(row)
    decoded, loaded = [], []
    for same_frames in by_frames.values():
        slowest = max(same_frames, key=lambda row: row.decode_seconds)
        decoded.append(slowest)
        loaded += [row for row in same_frames if row is not slowest]
    return decoded, loaded


def _decode_seconds_per_clip(rows: Sequence[ShardRow]) -> float:
    """Compute the mean seconds per clip of the decode stage, 0 if there are no rows."""
    return sum(row.decode_seconds for row in rows) / sum(row.clips for row in rows) if rows else 0.0


def _device(frames_settings: str) -> str:
    """Return the device that decodes video files, from settings as JSON."""
    return str(json.loads(frames_settings).get("device", "cpu"))


def _points_per_clip(tracks_settings: str) -> tuple[str, float]:
    """Return the tracker, and how many points it follows in each clip, from settings as JSON.

    A point that is followed in one direction only counts half, unless the tracker follows it in
    both directions at once.
    """
    settings = json.loads(tracks_settings)
    one_pass = settings["tracker"] == "tapir" and settings["mode"] == "offline"
    directions = 1.0 if one_pass or settings.get("directions", "both") == "both" else 0.5
    return settings["tracker"], settings["grid"] ** 2 * len(settings["anchors"]) * directions


def _parallel(plan: Plan) -> float:
    """Return the latest build's seconds of work per second, or else this machine's cores."""
    try:
        state = read_state(plan.existing.out)
    except AccessError:
        raise
    except PretrackError:  # damaged, or another version's: the next build writes a new one
        state = None
    if (
        state
        and state.updated > state.began
        and (work_seconds := sum(state.stage_seconds.values()))
    ):
        # A build that mostly waited (for a GPU, for example) did less than 1 s of work per second.
        return max(1.0, work_seconds / (state.updated - state.began))
    return float(os.cpu_count() or 1)
