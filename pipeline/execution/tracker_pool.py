"""Keep a pool of tracker workers alive for a build, and track decoded shards on them.

Each worker is a Ray actor that holds a loaded tracker. A worker that dies is replaced; one whose
resources are not free (its node died, for example) is pending and gets no work. The pool follows
the cluster: it shrinks when cores or GPUs disappear, so that decoding always has a core, and grows
when they appear.

The parts: `tracker_slots` schedules calls, `tracker_restarts` decides on retries, `tracker_usage`
accounts for time, `tracker_sizing` computes how many trackers there should be.
"""

from __future__ import annotations

import asyncio
import re
import time
from itertools import count
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.config import BuildSettings
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.tracker_restarts import RestartPolicy
from pipeline.execution.tracker_sizing import check_trackers, cores_per_tracker, tracker_count
from pipeline.execution.tracker_slots import TrackerHandle, TrackerSlots
from pipeline.execution.tracker_usage import UsageMeter
from pipeline.execution.tracker_worker import UNPACKING, TrackerWorker
from pipeline.monitoring.status import TrackerUsage
from pipeline.ray_cluster import Cluster, resources
from shards.errors import first_line

_RESIZE_EVERY_S = 1.0
PATIENCE_S = 30.0
"""How long shards wait for a tracker before it is reported."""
_WORKER_LOST = (RayActorError, OutOfMemoryError, NodeDiedError)


class TrackerLost(Exception):
    """The tracker died or was stopped during a call.

    suspect: the tracker was working on this call when it died, so the call may be the cause
    """

    def __init__(self, suspect: bool) -> None:
        super().__init__("a tracker was lost")
        self.suspect = suspect


class TrackerPool:
    """The tracker workers of a build. Belongs to one event loop; call `resize` every second or so.

    Raises PretrackError if the cluster can hold no tracker, or fewer than the settings ask for.
    """

    def __init__(self, settings: BuildSettings, monitor: BuildMonitor) -> None:
        check_trackers(settings.ray, resources(), settings.decoder_gpus)
        self._settings = settings
        self._monitor = monitor
        self._trackers: list[TrackerHandle] = []
        self._slots = TrackerSlots(self._trackers)
        self._usage = UsageMeter()
        self._restarts = RestartPolicy()
        self._numbers = count()
        # asyncio itself keeps only weak references to tasks.
        self._loading: set[asyncio.Task[None]] = set()
        self._target_size = 0
        self._resize_after = 0.0
        self._idle_since = time.monotonic()

    @property
    def size(self) -> int:
        """Number of trackers, loaded or starting."""
        return len(self._trackers)

    @property
    def usage(self) -> TrackerUsage:
        """How many trackers are loaded and busy, and their total times."""
        return self._usage.usage(self._trackers)

    async def track(self, decoded: Any, only: str = "") -> Any:
        """Track a decoded shard, or only its clip with the key `only`.

        `decoded` and the result are Ray references: the frames do not pass through the driver.
        Raises TrackerLost.
        """
        tracker, call = await self._slots.acquire()
        number = next(self._numbers)
        try:
            unpack = tracker.actor.unpack.options(concurrency_group=UNPACKING)
            await unpack.remote(number, decoded, only)
            # The next call is sent once this one has been answered: a worker that dies right
            # after an answer may not have sent it, and the wrong call would be suspected.
            async with tracker.turn:
                tracker.tracking = call
                tracks, seconds = tracker.actor.track.options(num_returns=2).remote(number)
                self._usage.call_ended(await seconds)
                tracker.tracking = None
            return tracks
        except _WORKER_LOST as error:
            self._replace(tracker, _death_reason(error))
            raise TrackerLost(suspect=tracker.suspect is call) from error
        finally:
            self._slots.release(tracker, call)

    def resize(self, now: bool = False) -> None:
        """Start and stop trackers as the cluster allows; at most once per second unless `now`.

        Raises the error that keeps trackers from loading.
        """
        if self._restarts.error:
            raise self._restarts.error
        if not now and time.monotonic() < self._resize_after:
            return
        self._resize_after = time.monotonic() + _RESIZE_EVERY_S
        cluster = resources()
        cores = cores_per_tracker(self._settings.ray, cluster)
        self._target_size = tracker_count(self._settings.ray, cluster, self._settings.decoder_gpus)
        # A tracker started on a larger cluster may hold the core that decoding now needs.
        while self.size > self._target_size or any(t.cores > cores for t in self._trackers):
            self._retire()
        while self.size < self._target_size and self._restarts.may_start:
            self._start(cores)
        self._report_waiting(cluster)

    def close(self) -> None:
        """Stop all trackers."""
        for task in self._loading:
            task.cancel()
        while self._trackers:
            self._kill(self._trackers[-1])

    def _start(self, cores: float) -> None:
        """Start a worker, and load its tracker in the background."""
        # SPREAD: one node should not hold all trackers while others are idle.
        options = {
            "num_cpus": cores,
            "num_gpus": self._settings.ray.tracker_gpus,
            "scheduling_strategy": "SPREAD",
            "concurrency_groups": {UNPACKING: 1},
        }
        actor = ray.remote(**options)(TrackerWorker).remote(self._settings)
        tracker = TrackerHandle(actor, cores)
        self._trackers.append(tracker)
        task = asyncio.get_running_loop().create_task(self._load(tracker))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load(self, tracker: TrackerHandle) -> None:
        """Wait until a worker has its resources and its tracker is loaded."""
        try:
            tracker.location = await tracker.actor.load.remote()
        except RayError as error:
            if not tracker.lost:  # a retired tracker fails to load, too
                self._load_failed(tracker, error)
        else:
            self._restarts.loaded()
            tracker.live_since = time.monotonic()
            self._monitor.tracker_ready(tracker.location, self.usage.live)
            self._slots.assign()

    def _load_failed(self, tracker: TrackerHandle, error: RayError) -> None:
        """Drop a tracker that did not load; the restart policy says when to try again."""
        # A task error wraps what `load` raised; any other Ray error means that the worker died.
        raised = error.cause if isinstance(error, RayTaskError) else None
        if not isinstance(raised, Exception):
            raised = None
        self._restarts.failed(raised, _death_reason(error), self._target_size)
        self._replace(tracker, first_line(raised) if raised else _death_reason(error))

    def _replace(self, tracker: TrackerHandle, reason: str) -> None:
        """Drop a tracker that died, and start another."""
        if tracker.lost:  # each of its calls reports the death; the first one replaced it
            return
        # If it tracked none, the oldest call is the one whose frames were unpacked first.
        tracker.suspect = tracker.tracking or next(iter(tracker.calls), None)
        self._kill(tracker)
        if self._restarts.error:  # the next `resize` raises it, and the build ends
            return
        self._monitor.tracker_lost(tracker.location, reason, self.usage.live)
        self.resize(now=True)

    def _retire(self) -> None:
        """Stop a tracker: the newest that is not loaded, else the one with the fewest calls."""
        # Reversed, because `min` returns the first of equals and the newest is wanted.
        tracker = min(
            reversed(self._trackers),
            key=lambda tracker: (tracker.live_since is not None, len(tracker.calls)),
        )
        self._kill(tracker)
        if tracker.live_since:
            self._monitor.tracker_stopped(tracker.location, self.size, self.usage.live)

    def _kill(self, tracker: TrackerHandle) -> None:
        self._usage.tracker_ended(tracker)
        tracker.lost = True
        self._trackers.remove(tracker)
        ray.kill(tracker.actor)

    def _report_waiting(self, cluster: Cluster) -> None:
        """Report every `PATIENCE_S` seconds that shards wait and no tracker is loaded."""
        now, waiting = time.monotonic(), self._slots.waiting
        if self.usage.live or not waiting:
            self._idle_since = now
        elif now - self._idle_since > PATIENCE_S:
            self._idle_since = now
            self._monitor.waiting_for_tracker(
                waiting,
                seconds=PATIENCE_S,
                cores=cores_per_tracker(self._settings.ray, cluster),
                gpus=self._settings.ray.tracker_gpus,
                cluster=cluster,
            )


def _death_reason(error: RayError) -> str:
    """Extract the reason from Ray's long message: "its worker process has died"."""
    match = re.search(r"is dead because (.*?)(\.|$)", str(error), re.MULTILINE)
    return match[1] if match else first_line(error)
