"""What a running build tells the world: its progress, its events, `OUT/build.json`, and Ray's metrics."""

from __future__ import annotations

from manifests.receipt import Receipt
from pipeline.events import Events
from pipeline.metrics import BuildMetrics
from pipeline.plan import PlannedShard
from pipeline.progress import Stage
from pipeline.status import STAGES, StateFile
from pipeline.tracker_pool import TrackerPool
from shards.errors import first_line


class Report:
    """Takes what happens to shards and hands it to all who want to know."""

    def __init__(self, events: Events, state: StateFile, stage: Stage) -> None:
        self._events = events
        self._state = state
        self._stage = stage
        self._metrics = BuildMetrics()

    def made(self, clips: int, receipt: Receipt) -> None:
        """A shard of so many planned clips was written."""
        row = receipt.shard
        seconds = {stage: round(getattr(row, f"{stage}_seconds"), 3) for stage in STAGES}
        took = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        said = f"{row.shard}: {row.clips} clips, {len(receipt.failures)} failures, {row.bytes / 1e6:.1f} MB; {took}"
        failures = len(receipt.failures)
        self._events.note("shard made", said, shard=row.shard, clips=row.clips, failures=failures, bytes=row.bytes, seconds=seconds)
        self._state.made(receipt, clips)
        self._metrics.made(receipt)
        self._stage.advance(clips)

    def broken(self, clips: int, shard: PlannedShard, error: Exception) -> None:
        """A shard of so many planned clips could not be made."""
        said = f"{shard.shard} could not be made: {first_line(error)}"
        self._events.note("shard failed", said, notable=True, shard=shard.shard, reason=first_line(error))
        self._state.broken(clips)
        self._metrics.broken()
        self._stage.advance(clips)

    def under_way(self, shards: int, pool: TrackerPool) -> None:
        """So many shards are in flight."""
        self._state.under_way(shards, pool.live, pool.live_seconds, pool.busy_seconds)
        self._metrics.trackers(pool.live, pool.busy)
