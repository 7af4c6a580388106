"""Calls go to the tracker with the least to do, two at most per tracker; times add up."""

from __future__ import annotations

import asyncio
import time

import pytest

from pipeline.execution.tracker_slots import TrackerHandle, TrackerSlots
from pipeline.execution.tracker_usage import UsageMeter
from pipeline.monitoring.status import TrackerUsage


def loaded(live_since: float = 1.0) -> TrackerHandle:
    return TrackerHandle(actor=None, cores=1.0, live_since=live_since)


def test_calls_spread_over_trackers_and_wait_for_a_slot() -> None:
    async def schedule() -> None:
        first, second, loading = loaded(), loaded(), TrackerHandle(actor=None, cores=1.0)
        slots = TrackerSlots([first, second, loading])
        calls = [await slots.acquire() for _ in range(4)]
        assert [tracker for tracker, _ in calls] == [first, second, first, second]
        late = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        assert slots.waiting == 1
        slots.release(*calls[1])
        tracker, _ = await late
        assert tracker is second
        assert (slots.waiting, len(first.calls), len(second.calls)) == (0, 2, 2)
        assert not loading.calls

    asyncio.run(schedule())


def test_a_cancelled_call_takes_no_slot() -> None:
    async def schedule() -> None:
        tracker = loaded()
        slots = TrackerSlots([tracker])
        calls = [await slots.acquire() for _ in range(2)]
        cancelled = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        slots.release(*calls[0])
        assert (slots.waiting, len(tracker.calls)) == (0, 1)

    asyncio.run(schedule())


def test_usage_adds_lost_trackers_and_calls_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    idle, busy, loading = loaded(90.0), loaded(60.0), TrackerHandle(actor=None, cores=1.0)
    busy.calls, busy.busy_since = [object(), object()], 97.0
    meter = UsageMeter()
    meter.tracker_ended(loaded(80.0))
    meter.tracker_ended(TrackerHandle(actor=None, cores=1.0))  # never loaded
    meter.call_ended(5.0)
    meter.call_ended(1.5)
    # Loaded for 20 s (lost), 10 s and 40 s; tracked for 6.5 s (done) and 3 s (in flight).
    assert meter.usage([idle, busy, loading]) == TrackerUsage(
        live=2, busy=1, live_seconds=70.0, busy_seconds=9.5
    )
