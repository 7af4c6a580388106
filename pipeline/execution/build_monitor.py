"""What a running build tells the world: its progress, its events, `OUT/build.json`, and Ray's metrics."""

from __future__ import annotations

from manifests.receipt import Receipt
from manifests.wording import pluralise, size
from pipeline.execution.tracker_pool import TrackerPool
from pipeline.monitoring.event_log import EventLog
from pipeline.monitoring.metrics import BuildMetrics
from pipeline.monitoring.progress import ProgressTask
from pipeline.monitoring.status import STAGES, StateFile
from pipeline.planning.plan import PlannedShard
from shards.errors import first_line


class BuildMonitor:
    """Takes what happens to shards and hands it to all who want to know."""

    def __init__(self, events: EventLog, state: StateFile, stage: ProgressTask) -> None:
        self._events = events
        self._state = state
        self._stage = stage
        self._metrics = BuildMetrics()

    def made(self, shard: PlannedShard, receipt: Receipt) -> None:
        """A shard was written."""
        row, failures = receipt.shard, len(receipt.failures)
        seconds = {stage: round(getattr(row, f"{stage}_seconds"), 3) for stage in STAGES}
        took = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        said = f"{row.shard}: {pluralise(row.clips, 'clip')}, {pluralise(failures, 'failure')}, {size(row.bytes)}; {took}"
        self._events.note(
            "shard made",
            said,
            shard=row.shard,
            clips=row.clips,
            failures=failures,
            bytes=row.bytes,
            seconds=seconds,
        )
        self._state.made(receipt, shard.count)
        self._metrics.made(receipt)
        self._stage.advance(shard.count)

    def broken(self, shard: PlannedShard, error: Exception) -> None:
        """A shard could not be made."""
        said = f"{shard.group} could not be made: {first_line(error)}"
        self._events.note(
            "shard failed", said, notable=True, shard=shard.group, reason=first_line(error)
        )
        self._state.broken(shard.count)
        self._metrics.broken()
        self._stage.advance(shard.count)

    def under_way(self, shards: int, pool: TrackerPool) -> None:
        """So many shards are in flight."""
        self._state.under_way(shards, pool.live, pool.live_seconds, pool.busy_seconds)
        self._metrics.trackers(pool.live, pool.busy)
