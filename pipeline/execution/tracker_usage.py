"""Account for the time that tracker workers are loaded and tracking."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.execution.tracker_slots import TrackerHandle
from pipeline.monitoring.status import TrackerUsage


class UsageMeter:
    """Sum up the seconds of finished calls and of trackers that were lost."""

    def __init__(self) -> None:
        self._live_seconds_of_lost = 0.0
        self._tracked_seconds = 0.0

    def call_ended(self, seconds: float) -> None:
        """Add a call that tracked for `seconds`."""
        self._tracked_seconds += seconds

    def tracker_ended(self, tracker: TrackerHandle) -> None:
        """Add the time that a tracker was loaded."""
        if tracker.live_since:
            self._live_seconds_of_lost += time.monotonic() - tracker.live_since

    def usage(self, trackers: Sequence[TrackerHandle]) -> TrackerUsage:
        """Return the usage now; `trackers` are those that are not lost."""
        now = time.monotonic()
        live = [now - tracker.live_since for tracker in trackers if tracker.live_since]
        busy = [now - tracker.busy_since for tracker in trackers if tracker.calls]
        return TrackerUsage(
            live=len(live),
            busy=len(busy),
            live_seconds=self._live_seconds_of_lost + sum(live),
            busy_seconds=self._tracked_seconds + sum(busy),
        )
