"""The tracker workers of a build: a pool that outlives its workers.

Each worker is a Ray actor that holds a loaded tracker. A call goes to a live one with a free slot; each has two, so that its next
frames arrive while it tracks. One that dies is replaced, and one that has no place yet (its node is gone, say) just gets no work.
The pool follows the cluster: where cores or GPUs go away it shrinks, so that decoding always has a core, and it grows with them.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from pipeline.config import BuildSettings, RaySettings
from pipeline.execution import shard_stages as stages
from pipeline.monitoring.event_log import EventLog
from pipeline.ray_cluster import Cluster, resources
from shards.errors import PretrackError, first_line

_SLOTS = 2
_LOADS = 3
_TENDED_EVERY_S = 1.0
_SLOWEST_RESTART_S = 60.0
PATIENCE_S = 30.0
"""How long shards wait for a tracker before the log says so."""


TRACKER_LOST = (RayActorError, OutOfMemoryError, NodeDiedError)


class TrackerLost(Exception):
    """The tracker died, or was stopped, during a call. `suspect`: it was at this call when it died."""

    def __init__(self, suspect: bool) -> None:
        super().__init__("a tracker was lost")
        self.suspect = suspect


class TrackerWorker:
    """Holds a loaded tracker on a worker."""

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings

    def load(self) -> str:
        """Loads the tracker, and says where it is. What is wrong with its settings is raised here."""
        import cv2

        cv2.setNumThreads(max(1, int(self._settings.ray.tracker_cpus)))
        self._tracker = self._settings.tracks.load()
        return f"process {os.getpid()} on {socket.gethostname()}"

    def track(self, decoded: stages.DecodedShard, only: str) -> tuple[stages.TrackedShard, float]:
        """Tracks a shard, or the `only` clip of it, and says how long that took. See `stages.track_shard`."""
        if only:
            decoded = replace(
                decoded, clips=tuple(clip for clip in decoded.clips if clip.info.key == only)
            )
        tracked = stages.track_shard(decoded, self._tracker, self._settings)
        if any("CUDA error" in failure.detail for failure in tracked.failures):
            os._exit(
                1
            )  # a process whose GPU kernel crashed cannot use the GPU again: every later clip would fail too
        return tracked, tracked.seconds


@dataclass(eq=False)
class _Tracker:
    """A worker as the pool sees it. `calls` are under way, in their order, the first since `at_since`; `suspect` is the one
    it died at."""

    actor: Any
    cores: float
    where: str = ""
    live_since: float | None = None
    at_since: float = 0.0
    lost: bool = False
    calls: list[object] = field(default_factory=list)
    suspect: object | None = None


class TrackerPool:
    """The tracker workers. It belongs to the event loop that calls it, and somebody has to `tend` it every second or so."""

    def __init__(self, settings: BuildSettings, events: EventLog) -> None:
        check_trackers(settings.ray, resources())
        self._settings = settings
        self._events = events
        self._trackers: list[_Tracker] = []
        self._queue: deque[asyncio.Future[tuple[_Tracker, object]]] = deque()
        self._error: Exception | None = None
        self._loading: set[asyncio.Task[None]] = set()
        self._count = self._deaths_at_load = 0
        self._ever_live = False
        self._start_after = self._tend_after = 0.0
        self._idle_since = time.monotonic()
        self._seconds_of_lost = 0.0
        self._tracked_seconds = 0.0

    @property
    def live(self) -> int:
        """Trackers that are loaded."""
        return sum(tracker.live_since is not None for tracker in self._trackers)

    @property
    def busy(self) -> int:
        """Trackers that have something to do."""
        return sum(bool(tracker.calls) for tracker in self._trackers)

    @property
    def live_seconds(self) -> float:
        """How long trackers have been there, all together."""
        now = time.monotonic()
        return self._seconds_of_lost + sum(
            now - tracker.live_since for tracker in self._trackers if tracker.live_since
        )

    @property
    def busy_seconds(self) -> float:
        """How long trackers have tracked, all together; what they are at counts too."""
        now = time.monotonic()
        return self._tracked_seconds + sum(
            now - tracker.at_since for tracker in self._trackers if tracker.calls
        )

    @property
    def size(self) -> int:
        """Trackers that are there or on their way."""
        return len(self._trackers)

    async def track(self, decoded: Any, only: str = "") -> Any:
        """The tracks (a Ray reference) of a decoded shard (another), or of the `only` clip of it. Raises TrackerLost."""
        place: asyncio.Future[tuple[_Tracker, object]] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._hand_out()
        tracker, call = await place
        try:
            tracks, seconds = tracker.actor.track.options(num_returns=2).remote(decoded, only)
            self._tracked_seconds += await seconds
            return tracks
        except TRACKER_LOST as error:
            self._lose(tracker, _why(error))
            raise TrackerLost(suspect=tracker.suspect is call) from error
        finally:
            tracker.calls.remove(call)
            tracker.at_since = time.monotonic()
            self._hand_out()

    def tend(self, now: bool = False) -> None:
        """Starts and stops trackers as the cluster allows. Raises what was wrong with the tracker's settings."""
        if self._error:
            raise self._error
        if not now and time.monotonic() < self._tend_after:
            return
        self._tend_after = time.monotonic() + _TENDED_EVERY_S
        cluster, wanted = resources(), self._settings.ray
        count, cores = tracker_count(wanted, cluster), _cores(wanted, cluster)
        self._count = count
        while self.size > count or any(tracker.cores > cores for tracker in self._trackers):
            self._retire()
        while self.size < count and time.monotonic() >= self._start_after:
            self._start(cores)
        self._complain_of_waiting(cluster)

    def close(self) -> None:
        """Stops all trackers."""
        for task in self._loading:
            task.cancel()
        while self._trackers:
            self._forget(self._trackers[-1])

    def _hand_out(self) -> None:
        """Gives free slots to those who wait, of the tracker with the least to do first."""
        while self._queue and (
            free := [t for t in self._trackers if t.live_since and len(t.calls) < _SLOTS]
        ):
            place = self._queue.popleft()
            if not place.done():
                tracker, call = min(free, key=lambda tracker: len(tracker.calls)), object()
                if not tracker.calls:
                    tracker.at_since = time.monotonic()
                tracker.calls.append(call)
                place.set_result((tracker, call))

    def _start(self, cores: float) -> None:
        options = {
            "num_cpus": cores,
            "num_gpus": self._settings.ray.tracker_gpus,
            "scheduling_strategy": "SPREAD",
        }
        tracker = _Tracker(ray.remote(**options)(TrackerWorker).remote(self._settings), cores)
        self._trackers.append(tracker)
        task = asyncio.get_running_loop().create_task(self._load(tracker))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load(self, tracker: _Tracker) -> None:
        """Waits until a tracker has a place and is loaded."""
        try:
            tracker.where = await tracker.actor.load.remote()
        except RayError as error:
            if not tracker.lost:
                self._not_loaded(tracker, error)
        else:
            self._deaths_at_load, self._ever_live = 0, True
            tracker.live_since = time.monotonic()
            self._events.note(
                "tracker ready",
                f"a tracker is ready: {tracker.where}",
                where=tracker.where,
                trackers=self.live,
            )
            self._hand_out()

    def _not_loaded(self, tracker: _Tracker, error: RayError) -> None:
        """Tries again later, ever later; gives up if none was ever loaded, or if the settings are to blame."""
        raised = (
            error.cause
            if isinstance(error, RayTaskError) and isinstance(error.cause, Exception)
            else None
        )
        self._deaths_at_load += 1
        rounds = self._deaths_at_load / max(1, self._count)
        if raised and (isinstance(raised, PretrackError) or not self._ever_live):
            self._error = raised
        elif rounds >= _LOADS and not self._ever_live:
            self._error = PretrackError(
                f"every tracker dies while it is loaded, the last one because {_why(error)}"
            )
        self._start_after = time.monotonic() + min(2.0**rounds, _SLOWEST_RESTART_S)
        self._lose(tracker, first_line(raised) if raised else _why(error))

    def _lose(self, tracker: _Tracker, why: str) -> None:
        """Drops a tracker that died, and starts another."""
        if tracker.lost:
            return
        tracker.suspect = tracker.calls[0] if tracker.calls else None
        self._forget(tracker)
        if self._error:  # the build ends with it
            return
        name = tracker.where or "which was not loaded yet"
        said = f"a tracker was lost ({name}): {why}; its shards go to the others, and another one is started"
        self._events.note(
            "tracker lost", said, notable=True, where=tracker.where, reason=why, trackers=self.live
        )
        self.tend(now=True)

    def _retire(self) -> None:
        """Stops the tracker with the least to do."""
        tracker = min(
            reversed(self._trackers),
            key=lambda tracker: (tracker.live_since is not None, len(tracker.calls)),
        )
        self._forget(tracker)
        if tracker.live_since:
            said = f"the cluster has become smaller: a tracker was stopped ({tracker.where}), {self.size} remain"
            self._events.note(
                "tracker stopped", said, notable=True, where=tracker.where, trackers=self.live
            )

    def _forget(self, tracker: _Tracker) -> None:
        if tracker.live_since:
            self._seconds_of_lost += time.monotonic() - tracker.live_since
        tracker.lost = True
        self._trackers.remove(tracker)
        ray.kill(tracker.actor)

    def _complain_of_waiting(self, cluster: Cluster) -> None:
        """Says every now and then that shards wait and nobody tracks."""
        now = time.monotonic()
        waiting = sum(not place.done() for place in self._queue)
        if self.live or not waiting:
            self._idle_since = now
        elif now - self._idle_since > PATIENCE_S:
            self._idle_since = now
            needs = f"{_cores(self._settings.ray, cluster):g} cores and {self._settings.ray.tracker_gpus:g} GPUs"
            said = (
                f"{waiting} shards wait for a tracker, and none has answered for {PATIENCE_S:.0f} s: one needs {needs} of a node, "
                f"the cluster has {cluster.cpus} cores and {cluster.gpus} GPUs; the build goes on when one has its place"
            )
            self._events.note(
                "waiting for a tracker",
                said,
                notable=True,
                waiting=waiting,
                cpus=cluster.cpus,
                gpus=cluster.gpus,
            )


def _why(error: RayError) -> str:
    """The reason in Ray's long message: "its worker process has died"."""
    found = re.search(r"is dead because (.*?)(\.|$)", str(error), re.MULTILINE)
    return found[1] if found else first_line(error)


def check_trackers(wanted: RaySettings, cluster: Cluster) -> None:
    """Raises PretrackError if the cluster can hold no tracker, or not as many as asked for."""
    if wanted.tracker_gpus > cluster.gpus:
        raise PretrackError(
            f"ray.tracker_gpus is {wanted.tracker_gpus}, and this cluster has {cluster.gpus} GPUs"
        )
    most = _trackers_possible(wanted, cluster)
    if most < 1 or (wanted.trackers or 1) > most:
        raise PretrackError(
            f"{wanted.trackers or 1} trackers of {_cores(wanted, cluster):g} cores (ray.trackers, ray.tracker_cpus) "
            f"leave none of the {cluster.cpus} cores to decode with"
        )


def tracker_count(wanted: RaySettings, cluster: Cluster) -> int:
    """How many trackers there should be now; one at least, which then waits for its place."""
    return max(1, min(_trackers_asked(wanted, cluster), _trackers_possible(wanted, cluster)))


def _trackers_asked(wanted: RaySettings, cluster: Cluster) -> int:
    """As many as the settings say, or one a GPU, or one for every two cores; never more than there are GPUs for."""
    on_gpus = int(cluster.gpus / wanted.tracker_gpus) if wanted.tracker_gpus else None
    asked = wanted.trackers or (max(1, cluster.cpus // 2) if on_gpus is None else on_gpus)
    return asked if on_gpus is None else min(asked, on_gpus)


def _trackers_possible(wanted: RaySettings, cluster: Cluster) -> int:
    """As many as leave a core to decode with."""
    cores = _cores(wanted, cluster)
    return int((cluster.cpus - 1) / cores) if cores else cluster.cpus


def _cores(wanted: RaySettings, cluster: Cluster) -> float:
    """Cores a tracker holds: a single core is shared with decoding."""
    return 0.0 if cluster.cpus == 1 else wanted.tracker_cpus
