"""What a plan costs: clips, bytes and worker time, judged by the shards made before."""

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
from shards.errors import PretrackError


@dataclass(frozen=True)
class Cost:
    """Shards of a plan with one action and reason, or all of them; `bytes` and `seconds` of work are None where nothing tells."""

    action: Action | None
    reason: str
    shards: int
    clips: int
    bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a plan costs: by action and reason, and in all. `wall_seconds` is `total.seconds` shared by `parallel` workers."""

    lines: tuple[Cost, ...]
    total: Cost
    parallel: float
    wall_seconds: float | None


@dataclass(frozen=True)
class _Rates:
    """What a clip of a source takes: its bytes, and seconds by stage; tracking by tracker, in seconds a point."""

    bytes: float
    decode: float
    load: float
    write: float
    track: dict[str, float]


def estimate(plan: Plan) -> Estimate:
    """Estimates a plan by its known shards."""
    rates = _rates(plan.known.shards)
    known = {shard.row.shard: shard.row for shard in plan.known.shards}
    by_reason = defaultdict[tuple[Action, str], list[Cost]](list)
    for shard in plan.shards:
        by_reason[shard.action, shard.reason].append(_cost(shard, rates.get(shard.source), known))
    lines = tuple(
        replace(_sum(costs), action=action, reason=reason)
        for (action, reason), costs in sorted(by_reason.items(), key=lambda i: i[0])
    )
    total = _sum([line for line in lines if line.action != "keep"])
    parallel = _parallel(plan)
    return Estimate(
        lines, total, parallel, None if total.seconds is None else total.seconds / parallel
    )


def _cost(shard: PlannedShard, rates: _Rates | None, known: dict[str, ShardRow]) -> Cost:
    if shard.action == "keep":
        return Cost("keep", "", 1, shard.count, known[shard.shard].bytes, 0.0)
    if rates is None:
        return Cost(shard.action, "", 1, shard.count, None, None)
    tracker, points = _points(shard.tracks_settings)
    size = known[shard.previous].bytes if shard.previous else round(rates.bytes * shard.count)
    if tracker not in rates.track:
        return Cost(shard.action, "", 1, shard.count, size, None)
    read = rates.load if shard.action == "retrack" else rates.decode
    return Cost(
        shard.action,
        "",
        1,
        shard.count,
        size,
        shard.count * (read + rates.track[tracker] * points + rates.write),
    )


def _sum(costs: Sequence[Cost]) -> Cost:
    sizes = [cost.bytes for cost in costs if cost.bytes is not None]
    times = [cost.seconds for cost in costs if cost.seconds is not None]
    return Cost(
        None,
        "",
        sum(cost.shards for cost in costs),
        sum(cost.clips for cost in costs),
        sum(sizes) if len(sizes) == len(costs) else None,
        sum(times) if len(times) == len(costs) else None,
    )


def _rates(shards: Iterable[ExistingShard]) -> dict[str, _Rates]:
    """By source: of the current snapshot's shards where it has any, else of all."""
    by_source = defaultdict[str, list[ExistingShard]](list)
    for shard in shards:
        if shard.row.clips:
            by_source[shard.row.source].append(shard)
    return {source: _rates_of(some) for source, some in by_source.items()}


def _rates_of(shards: Sequence[ExistingShard]) -> _Rates:
    newest = [shard.row for shard in shards if shard.current] or [shard.row for shard in shards]
    clips = sum(row.clips for row in newest)
    reading = defaultdict[str, list[ShardRow]](list)
    points, seconds = defaultdict[str, int](int), defaultdict[str, float](float)
    for row in (shard.row for shard in shards):
        reading[row.frames_fingerprint].append(row)
        tracker, each = _points(row.tracks_settings)
        points[tracker] += row.clips * each
        seconds[tracker] += row.track_seconds
    # Of shards of the same frames one was decoded, and the others took its frames: reading those is quicker.
    slowest = [max(rows, key=lambda row: row.decode_seconds) for rows in reading.values()]
    loaded = [
        row
        for rows, slow in zip(reading.values(), slowest, strict=True)
        for row in rows
        if row is not slow
    ]
    return _Rates(
        bytes=sum(row.bytes for row in newest) / clips,
        decode=_decode_seconds(slowest),
        load=_decode_seconds(loaded),
        write=sum(row.write_seconds for row in newest) / clips,
        track={tracker: seconds[tracker] / points[tracker] for tracker in points},
    )


def _decode_seconds(rows: Sequence[ShardRow]) -> float:
    """Mean seconds a clip, 0 where there are no rows."""
    return sum(row.decode_seconds for row in rows) / sum(row.clips for row in rows) if rows else 0.0


def _points(tracks_settings: str) -> tuple[str, int]:
    """The tracker, and how many points it follows through a clip."""
    settings = json.loads(tracks_settings)
    return settings["tracker"], settings["grid"] ** 2 * len(settings["anchors"])


def _parallel(plan: Plan) -> float:
    """How many seconds of work the folder's latest build did a second; this machine's cores where there was none."""
    try:
        state = read_state(plan.known.out)
    except PretrackError:  # damaged, or another version's: the next build writes it anew
        state = None
    work = sum(state.stage_seconds.values()) if state else 0.0
    if state is None or not work or state.updated <= state.began:
        return float(os.cpu_count() or 1)
    return max(1.0, work / (state.updated - state.began))
