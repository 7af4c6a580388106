"""Export a build's figures to Prometheus on Ray's metrics endpoint, `http://NODE:PORT/metrics`.

The node that runs the build serves them. Ray prefixes the names with `ray_` and adds its own
labels.
"""

from __future__ import annotations

from collections import Counter as Counted

from ray.util.metrics import Counter, Gauge, Histogram

from manifests.receipt import Receipt
from pipeline.monitoring.status import STAGES

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
"""Bucket boundaries of the histogram of stage durations."""


class BuildMetrics:
    """Count the clips, frames, bytes and failures of a build, and its stage durations."""

    def __init__(self) -> None:
        self._clips = Counter("pretrack_clips", "Clips written to shards", ("source",))
        self._frames = Counter("pretrack_frames", "Frames written to shards", ("source",))
        self._bytes = Counter("pretrack_bytes", "Bytes of the shards written", ("source",))
        self._failures = Counter(
            "pretrack_failures", "Clips and images left out", ("source", "stage", "reason")
        )
        self._shards_failed = Counter("pretrack_shards_failed", "Shards that could not be made")
        self._seconds = Histogram(
            "pretrack_stage_seconds",
            "Seconds a shard took in a stage",
            _SECONDS,
            ("source", "stage"),
        )
        self._trackers = Gauge("pretrack_trackers", "Tracker workers that are loaded")
        self._busy = Gauge("pretrack_trackers_busy", "Tracker workers that have something to do")

    def shard_made(self, receipt: Receipt) -> None:
        """Count a shard that was written."""
        shard, source = receipt.shard, {"source": receipt.shard.source}
        for counter, amount in (
            (self._clips, shard.clips),
            (self._frames, sum(clip.frames for clip in receipt.clips)),
            (self._bytes, shard.bytes),
        ):
            if amount:  # Ray's counters reject increments of 0
                counter.inc(amount, source)
        reasons = Counted((failure.stage, failure.reason) for failure in receipt.failures)
        for (failed_stage, reason), count in reasons.items():
            self._failures.inc(count, {**source, "stage": failed_stage, "reason": reason})
        for stage in STAGES:
            self._seconds.observe(getattr(shard, f"{stage}_seconds"), {**source, "stage": stage})

    def shard_failed(self) -> None:
        """Count a shard that could not be made."""
        self._shards_failed.inc()

    def trackers(self, live: int, busy: int) -> None:
        """Set how many tracker workers are loaded and how many have calls in flight."""
        self._trackers.set(live)
        self._busy.set(busy)
