"""Schedule calls onto the tracker workers that are loaded."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_SLOTS = 2
"""Calls in flight per tracker: the next frames arrive and are unpacked while it tracks."""


@dataclass(eq=False)
class TrackerHandle:
    """A tracker worker, as the driver sees it. Times are those of `time.monotonic`.

    actor:      the Ray actor
    cores:      the cores it reserves
    location:   its process and host, "" until it is loaded
    live_since: when it was loaded, None until then
    busy_since: when it began the oldest of its calls
    calls:      calls in flight, oldest first
    tracking:   the one of them that it tracks, None while it tracks none
    turn:       held by that call, so that the driver always knows which one it is
    lost:       it died or was stopped
    suspect:    the call that it was working on when it died
    """

    actor: Any
    cores: float
    location: str = ""
    live_since: float | None = None
    busy_since: float = 0.0
    calls: list[object] = field(default_factory=list)
    tracking: object | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    lost: bool = False
    suspect: object | None = None


class TrackerSlots:
    """Hand the free slots of loaded trackers to the calls that wait, first come, first served.

    `trackers` is the pool's list of handles.
    """

    def __init__(self, trackers: list[TrackerHandle]) -> None:
        self._trackers = trackers
        self._queue: deque[asyncio.Future[tuple[TrackerHandle, object]]] = deque()

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a slot."""
        return sum(not ticket.done() for ticket in self._queue)

    async def acquire(self) -> tuple[TrackerHandle, object]:
        """Wait for a free slot; return its tracker and a token for the call."""
        ticket: asyncio.Future[tuple[TrackerHandle, object]] = (
            asyncio.get_running_loop().create_future()
        )
        self._queue.append(ticket)
        self.assign()
        return await ticket

    def release(self, tracker: TrackerHandle, call: object) -> None:
        """Free the slot of a call that ended."""
        tracker.calls.remove(call)
        if tracker.tracking is call:
            tracker.tracking = None
        tracker.busy_since = time.monotonic()  # if it has another call, that call begins now
        self.assign()

    def assign(self) -> None:
        """Assign free slots to the calls that wait, from the tracker with the fewest calls."""
        # Search again for each call: an assignment may fill its tracker.
        while self._queue and (
            free := [t for t in self._trackers if t.live_since and len(t.calls) < _SLOTS]
        ):
            ticket = self._queue.popleft()
            if ticket.done():  # the caller was cancelled
                continue
            tracker, call = min(free, key=lambda tracker: len(tracker.calls)), object()
            if not tracker.calls:
                tracker.busy_since = time.monotonic()
            tracker.calls.append(call)
            ticket.set_result((tracker, call))
