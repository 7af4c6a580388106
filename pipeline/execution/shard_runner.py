"""Makes shards as a Ray job.

One shard is one chain: decode (or load stored frames) on any core → track on a worker of the tracker pool → write. A bounded number
of shards is in flight, so memory does not grow with the dataset. A shard that fails leaves nothing behind and does not stop the
others; the next run takes it up again.

Workers and nodes may go at any time, and their shards are tried again. A shard that was there twice when a worker died may be the
cause: its clips are then decoded or tracked one at a time, and one that kills a worker by itself becomes a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from manifests.receipt import Receipt
from manifests.rows import Failure, FailureStage
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.execution import shard_stages as stages
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.tracker_pool import TrackerLost, TrackerPool
from pipeline.failures import Reason
from pipeline.monitoring.event_log import EventLog
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import BuildState, StateFile
from pipeline.planning.plan import Plan, PlannedShard
from pipeline.ray_cluster import connect, decoder_of_this_worker, resources
from shards.errors import PretrackError, ShardError, first_line
from shards.files import is_permanent_error

_DEATHS = 2
"""How often a shard's worker may die before its clips are done one at a time."""
_STARTS = 5
"""How often a shard is begun again because its decoded frames went away with a node."""

Names = tuple[tuple[str, str, str], ...]
"""(key, source, video_id) of clips."""
_WORKER_LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError)


def make_shards(
    todo: list[PlannedShard], plan: Plan, settings: BuildSettings, progress: Progress
) -> dict[str, str]:
    """Runs the chains; returns the shards' names by their groups. Raises PretrackError at the end if a shard failed, at once if the
    disk is full."""
    connect(settings.ray)
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop already
        started = partial(asyncio.run, _make_shards(todo, plan, settings, progress))
        return thread.submit(started).result() if _in_event_loop() else started()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _make_shards(
    todo: list[PlannedShard], plan: Plan, settings: BuildSettings, progress: Progress
) -> dict[str, str]:
    events = EventLog(settings.out, progress)
    pool = TrackerPool(settings, events)
    clips, kept = sum(shard.count for shard in todo), len(plan.shards) - len(todo)
    state = StateFile(settings.out, BuildState.started(len(todo), clips, settings.ray.tracker_gpus))
    said = f"the build of {pluralise(len(todo), 'shard')} with {pluralise(clips, 'clip')} began; {kept:,} are kept"
    events.note("build started", said, shards=len(todo), clips=clips, kept=kept)
    broken: dict[str, str] = {}
    made: dict[str, str] = {}
    try:
        with progress.task("making shards", total=clips, noun="clip") as stage:
            news = BuildMonitor(events, state, stage)
            async with aclosing(_chains(todo, plan, settings, pool, events, news)) as results:
                async for shard, result in results:
                    if isinstance(result, Exception):
                        news.broken(shard, result)
                        broken[shard.group] = first_line(result)
                        _stop_if_hopeless(result, settings)
                    else:
                        made[shard.group] = result.shard.shard
                        news.made(shard, result)
        if broken:
            raise PretrackError(_complaint(broken, len(todo)))
    except BaseException as error:
        state.end("failed" if isinstance(error, Exception) else "stopped")
        why = first_line(error) if isinstance(error, Exception) else "it was interrupted"
        events.note("build stopped", f"the build stopped: {why}", reason=why)
        raise
    finally:
        pool.close()
    state.end("finished")
    return made


async def _chains(
    todo: list[PlannedShard],
    plan: Plan,
    settings: BuildSettings,
    pool: TrackerPool,
    events: EventLog,
    news: BuildMonitor,
) -> AsyncGenerator[tuple[PlannedShard, Receipt | Exception]]:
    """Every shard with its receipt, or with what went wrong, in the order they are done."""
    waiting = iter(todo)
    running: dict[asyncio.Task[Receipt], PlannedShard] = {}
    try:
        while True:
            pool.tend()
            limit = pool.size + max(2, resources().cpus // 2)
            while len(running) < limit and (shard := next(waiting, None)):
                chain = _Chain(
                    _task(shard, plan, settings),
                    partial(_from_source, shard, plan, settings),
                    pool,
                    events,
                )
                running[asyncio.create_task(chain.run())] = shard
            news.under_way(len(running), pool)
            if not running:
                return
            done, _ = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                shard, error = running.pop(task), task.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield shard, _cause(error) if error else task.result()
    finally:
        for task in running:
            task.cancel()


@dataclass(frozen=True)
class _Decoded:
    """Decoded frames (a Ray reference: they stay where they are), and the names of their clips."""

    frames: Any
    clips: Names


class _Chain:
    """One shard on its way."""

    def __init__(
        self,
        task: stages.ShardTask,
        from_source: Callable[[], stages.ShardTask],
        pool: TrackerPool,
        events: EventLog,
    ) -> None:
        self._task = task
        self._at = ray.put(task)
        self._from_source = from_source
        self._pool = pool
        self._events = events

    async def run(self) -> Receipt:
        """Decodes, tracks and writes. Raises what a stage raised."""
        for start in range(_STARTS):
            try:
                decoded = await self._decode()
                tracked = await self._track(decoded)
                return await _WRITE.remote(self._at, decoded.frames, *tracked)
            except (ObjectLostError, RayTaskError) as error:
                if start + 1 == _STARTS or not isinstance(_cause(error), ObjectLostError):
                    raise
                said = (
                    f"frames of {self._task.shard.group} were lost with their node: it begins again"
                )
                self._events.note(
                    "shard restarted",
                    said,
                    notable=True,
                    shard=self._task.shard.group,
                    reason=first_line(error),
                )
        raise AssertionError("unreachable")

    async def _decode(self) -> _Decoded:
        if self._task.shard.action == "retrack":
            try:
                return await _decoded(*_LOAD.remote(self._at))
            except RayTaskError as error:
                if not isinstance(_cause(error), ShardError):
                    raise
                self._do_without_stored_frames(first_line(_cause(error)))
        for _ in range(_DEATHS):
            try:
                return await _decoded(*_DECODE.remote(self._at))
            except _WORKER_LOST as error:
                self._say_lost("decoder", error)
        self._say_isolated("decoding")
        parts = []
        for clip in self._task.clips:
            alone = replace(self._task, clips=(clip,))
            try:
                frames, clips = _DECODE.remote(alone)
                await clips
            except _WORKER_LOST as error:
                video = self._task.videos[clip.video]
                failure = self._crashed(
                    clip.key, video["source"], video["video_id"], "decode", error
                )
                frames = stages.DecodedShard((), (failure,), 0.0)
            parts.append(frames)
        return await _decoded(*_JOIN.remote(*parts))

    def _do_without_stored_frames(self, reason: str) -> None:
        """The shard whose frames were to be taken is damaged: its good clips are, and the others come from their source."""
        said = f"{self._task.shard.group} is built and not re-tracked: {reason}"
        self._events.note(
            "stored frames damaged",
            said,
            notable=True,
            shard=self._task.shard.previous,
            reason=reason,
        )
        self._task = self._from_source()
        self._at = ray.put(self._task)

    async def _track(self, decoded: _Decoded) -> list[Any]:
        """Parts of a tracked shard, or references to them."""
        deaths = 0
        while deaths < _DEATHS:
            try:
                return [await self._pool.track(decoded.frames)]
            except TrackerLost as lost:
                deaths += lost.suspect
        self._say_isolated("tracking")
        return [await self._track_alone(decoded, *clip) for clip in decoded.clips]

    async def _track_alone(self, decoded: _Decoded, key: str, source: str, video_id: str) -> Any:
        while True:
            try:
                return await self._pool.track(decoded.frames, only=key)
            except TrackerLost as lost:
                if lost.suspect and lost.__cause__:
                    return stages.TrackedShard(
                        (), (self._crashed(key, source, video_id, "track", lost.__cause__),), 0.0
                    )

    def _crashed(
        self, key: str, source: str, video_id: str, stage: FailureStage, error: BaseException
    ) -> Failure:
        """The failure of a clip that killed its worker by itself."""
        what = {"decode": "decoder", "track": "tracker"}[stage]
        detail = f"the {what}'s worker died of it, twice with others of its shard and once alone: {first_line(error)}"
        self._events.note(
            "clip left out",
            f"{key} was left out: {detail}",
            notable=True,
            clip=key,
            shard=self._task.shard.group,
            stage=stage,
        )
        reason = Reason.DECODER_CRASHED if stage == "decode" else Reason.TRACKER_CRASHED
        return Failure(
            source=source,
            video_id=video_id,
            clip=key,
            stage=stage,
            reason=reason,
            detail=detail,
        )

    def _say_lost(self, what: str, error: Exception) -> None:
        said = f"a {what}'s worker was lost at {self._task.shard.group}, which is tried again: {first_line(error)}"
        self._events.note(
            f"{what} lost",
            said,
            notable=True,
            shard=self._task.shard.group,
            reason=first_line(error),
        )

    def _say_isolated(self, what: str) -> None:
        said = f"{what} {self._task.shard.group} has killed {_DEATHS} workers: its clips are done one at a time"
        self._events.note("shard isolated", said, notable=True, shard=self._task.shard.group)


def _decode(task: stages.ShardTask) -> tuple[stages.DecodedShard, Names]:
    return _named(
        stages.decode_shard(task, decoder_of_this_worker(task.settings.frames.decode_timeout_s))
    )


def _load(task: stages.ShardTask) -> tuple[stages.DecodedShard, Names]:
    return _named(stages.load_shard(task))


def _join(*parts: stages.DecodedShard) -> tuple[stages.DecodedShard, Names]:
    clips = tuple(clip for part in parts for clip in part.clips)
    failures = tuple(failure for part in parts for failure in part.failures)
    return _named(stages.DecodedShard(clips, failures, sum(part.seconds for part in parts)))


def _write(
    task: stages.ShardTask, decoded: stages.DecodedShard, *parts: stages.TrackedShard
) -> Receipt:
    clips = tuple(clip for part in parts for clip in part.clips)
    failures = tuple(failure for part in parts for failure in part.failures)
    return stages.write_shard(
        task, decoded, stages.TrackedShard(clips, failures, sum(part.seconds for part in parts))
    )


_DECODE = ray.remote(num_cpus=1, max_retries=0, num_returns=2)(
    _decode
)  # tried again by its chain, which counts
_LOAD = ray.remote(num_cpus=1, max_retries=3, num_returns=2)(_load)
_JOIN = ray.remote(num_cpus=0, max_retries=3, num_returns=2)(_join)
_WRITE = ray.remote(num_cpus=0, max_retries=3)(_write)


def _named(decoded: stages.DecodedShard) -> tuple[stages.DecodedShard, Names]:
    return decoded, tuple(
        (clip.info.key, clip.info.source, clip.info.video_id) for clip in decoded.clips
    )


async def _decoded(frames: Any, clips: Awaitable[Names]) -> _Decoded:
    """Waits for the names alone, so that the frames do not come to this machine."""
    return _Decoded(frames, await clips)


def _task(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> stages.ShardTask:
    clips = plan.clips_of(shard)
    numbers = sorted({clip.video for clip in clips}) if shard.action == "build" else []
    videos = {
        n: plan.catalog.videos.slice(n, 1).to_pylist()[0] for n in numbers
    }  # `take` joins all chunks first, at every call
    failures = plan.known.failures_of(shard.previous or shard.reuse)
    good = plan.known.members_of(shard.reuse) if shard.reuse else {}
    return stages.ShardTask(shard, clips, videos, failures, good, settings)


def _from_source(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> stages.ShardTask:
    """What a re-track becomes where the stored frames are damaged. Raises PretrackError if the sources need not be there."""
    if plan.stored:
        raise PretrackError(
            f"the frames of {shard.previous} are damaged: build without '--stored', from the source"
        )
    return _task(replace(shard, action="build", previous="", reuse=shard.previous), plan, settings)


def _complaint(broken: dict[str, str], shards: int) -> str:
    name, reason = next(iter(broken.items()))
    return (
        f"{len(broken)} of {pluralise(shards, 'shard')} could not be made, the first being {name} ({reason}); "
        "the others are kept, no snapshot was published: run the same build again to retry"
    )


def _cause(error: Exception) -> Exception:
    """What a worker raised, without Ray's wrapping."""
    return (
        error.cause
        if isinstance(error, RayTaskError) and isinstance(error.cause, Exception)
        else error
    )


def _stop_if_hopeless(error: Exception, settings: BuildSettings) -> None:
    """A full or read-only disk fails every shard: stops at the first."""
    if isinstance(error, OSError) and is_permanent_error(error):
        raise PretrackError(
            f"a shard could not be written to {settings.out} ({error.strerror}): make room and run the same build again, "
            "what is done is kept"
        ) from error
