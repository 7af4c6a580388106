"""A build's figures on Ray's own metrics endpoint, for Prometheus, on the node that runs the build: `http://NODE:PORT/metrics`.

Ray puts `ray_` before the names and adds labels of its own.
"""

from __future__ import annotations

from collections import Counter as Counted

from ray.util.metrics import Counter, Gauge, Histogram

from manifests.receipt import Receipt
from pipeline.monitoring.status import STAGES

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class BuildMetrics:
    """Counts what a build makes."""

    def __init__(self) -> None:
        self._clips = Counter("pretrack_clips", "Clips written to shards", ("source",))
        self._frames = Counter("pretrack_frames", "Frames written to shards", ("source",))
        self._bytes = Counter("pretrack_bytes", "Bytes of the shards written", ("source",))
        self._failures = Counter(
            "pretrack_failures", "Clips and images left out", ("source", "stage", "reason")
        )
        self._broken = Counter("pretrack_shards_failed", "Shards that could not be made")
        self._seconds = Histogram(
            "pretrack_stage_seconds",
            "Seconds a shard took in a stage",
            _SECONDS,
            ("source", "stage"),
        )
        self._trackers = Gauge("pretrack_trackers", "Tracker workers that are loaded")
        self._busy = Gauge("pretrack_trackers_busy", "Tracker workers that have something to do")

    def made(self, receipt: Receipt) -> None:
        """Counts a shard that was written."""
        shard, source = receipt.shard, {"source": receipt.shard.source}
        for counter, amount in (
            (self._clips, shard.clips),
            (self._frames, sum(clip.frames for clip in receipt.clips)),
            (self._bytes, shard.bytes),
        ):
            if amount:  # a counter only takes what is more than nothing
                counter.inc(amount, source)
        reasons = Counted((failure.stage, failure.reason) for failure in receipt.failures)
        for (failed_stage, reason), count in reasons.items():
            self._failures.inc(count, {**source, "stage": failed_stage, "reason": reason})
        for stage in STAGES:
            self._seconds.observe(getattr(shard, f"{stage}_seconds"), {**source, "stage": stage})

    def broken(self) -> None:
        """Counts a shard that could not be made."""
        self._broken.inc()

    def trackers(self, live: int, busy: int) -> None:
        """What the tracker pool is doing."""
        self._trackers.set(live)
        self._busy.set(busy)
