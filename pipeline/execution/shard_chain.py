"""Take one shard through its stages on Ray: decode (or load), track, write.

Decode and write are Ray tasks on any core; tracking runs on a worker of the tracker pool. Frames
and tracks stay in Ray's object store: the driver only handles references to them.

Workers and nodes may die at any time, and their stage is retried. A clip may be the cause: after
two deaths a shard's clips are decoded or tracked one at a time, and a clip that kills a worker on
its own becomes a failure.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
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
from pipeline.execution import shard_stages as stages
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.shard_task import ShardTask
from pipeline.execution.tracker_pool import TrackerLost, TrackerPool
from pipeline.execution.tracker_sizing import check_decoders
from pipeline.failures import Reason
from pipeline.ray_cluster import cause_of, decoder_of_this_worker, resources
from shards.errors import ShardError, first_line

_DEATHS = 2  # messages say "twice"
"""How often a shard's worker may die before its clips are processed one at a time."""
_STARTS = 5
"""How often a shard is started, counting restarts after its frames were lost with a node."""
_WORKER_LOST = (WorkerCrashedError, OutOfMemoryError, NodeDiedError)


@dataclass(frozen=True)
class ClipName:
    """The identity of a decoded clip, without its frames; `gpu_refused` as in `DecodedClip`."""

    key: str
    source: str
    video_id: str
    gpu_refused: str = ""


@dataclass(frozen=True)
class _DecodedRef:
    """Decoded frames (a Ray reference to a `DecodedShard`), and the names of their clips."""

    frames: Any
    clips: tuple[ClipName, ...]


class ShardChain:
    """Make one shard.

    from_source: returns the task that builds the shard from its source, for a re-track whose
                 stored frames turn out to be damaged
    """

    def __init__(
        self,
        task: ShardTask,
        from_source: Callable[[], ShardTask],
        pool: TrackerPool,
        monitor: BuildMonitor,
    ) -> None:
        self._set_task(task)
        self._from_source = from_source
        self._pool = pool
        self._monitor = monitor

    async def run(self) -> Receipt:
        """Decode, track and write the shard; start again if its frames were lost with a node.

        Raises what a stage raised.
        """
        for start in range(_STARTS):
            try:
                decoded = await self._decode()
                self._monitor.gpu_refused(
                    self._group, [clip.gpu_refused for clip in decoded.clips if clip.gpu_refused]
                )
                tracked = await self._track(decoded)
                return await _WRITE.remote(self._task_ref, decoded.frames, *tracked)
            except (ObjectLostError, RayTaskError) as error:
                # A lost object also surfaces as the error of the task that needed it.
                if start + 1 == _STARTS or not isinstance(cause_of(error), ObjectLostError):
                    raise
                self._monitor.shard_restarted(self._group, error)
        raise AssertionError("unreachable")

    def _set_task(self, task: ShardTask) -> None:
        self._task = task
        self._group = task.shard.group
        self._task_ref = ray.put(task)  # stored once, for all stages
        from_files = any(video.file for video in task.videos.values())  # images need no GPU
        self._decoder_gpus = task.settings.decoder_gpus if from_files else 0.0
        # Without a GPU the task as it is: Ray gives a task with options new workers, whose decoder
        # starts cold.
        gpus = self._decoder_gpus
        self._decode_task = _DECODE.options(num_gpus=gpus) if gpus else _DECODE

    async def _decode(self) -> _DecodedRef:
        """Load stored frames for a re-track, decode the source otherwise."""
        if self._task.shard.action == "retrack":
            try:
                return await _decoded_ref(*_LOAD.remote(self._task_ref))
            except RayTaskError as error:
                damage = cause_of(error)
                if not isinstance(damage, ShardError):
                    raise
                self._monitor.stored_frames_damaged(
                    self._group, self._task.shard.previous, first_line(damage)
                )
                self._set_task(self._from_source())
        check_decoders(resources(), self._decoder_gpus)
        for _ in range(_DEATHS):
            try:
                return await _decoded_ref(*self._decode_task.remote(self._task_ref))
            except _WORKER_LOST as error:
                self._monitor.decoder_lost(self._group, error)
        return await self._decode_one_at_a_time()

    async def _decode_one_at_a_time(self) -> _DecodedRef:
        """Decode each clip in a task of its own; a clip whose worker dies becomes a failure."""
        self._monitor.shard_isolated(self._group, "decode", _DEATHS)
        parts = []  # decoded shards of one clip each, mostly as Ray references
        for clip in self._task.clips:
            try:
                frames, names = self._decode_task.remote(replace(self._task, clips=(clip,)))
                await names
            except _WORKER_LOST as error:
                video = self._task.videos[clip.video]
                name = ClipName(clip.key, video.source, video.video_id)
                frames = stages.DecodedShard((), (self._crash(name, "decode", error),), 0.0)
            parts.append(frames)
        return await _decoded_ref(*_JOIN.remote(*parts))

    async def _track(self, decoded: _DecodedRef) -> list[Any]:
        """Track the shard; return its parts: tracked shards, or Ray references to them."""
        # Trackers hold several calls: only the death of the one at work on this shard counts.
        deaths = 0
        while deaths < _DEATHS:
            try:
                return [await self._pool.track(decoded.frames)]
            except TrackerLost as lost:
                deaths += lost.suspect
        self._monitor.shard_isolated(self._group, "track", _DEATHS)
        return [await self._track_alone(decoded, name) for name in decoded.clips]

    async def _track_alone(self, decoded: _DecodedRef, name: ClipName) -> Any:
        """Track one clip; retry while trackers are lost for reasons other than this clip."""
        while True:
            try:
                return await self._pool.track(decoded.frames, only=name.key)
            except TrackerLost as lost:
                if lost.suspect and lost.__cause__:
                    failure = self._crash(name, "track", lost.__cause__)
                    return stages.TrackedShard((), (failure,), 0.0)

    def _crash(self, name: ClipName, stage: FailureStage, error: BaseException) -> Failure:
        """Make and report the failure of a clip that killed its worker on its own."""
        worker, reason = {
            "decode": ("decoder", Reason.DECODER_CRASHED),
            "track": ("tracker", Reason.TRACKER_CRASHED),
        }[stage]
        failure = Failure(
            source=name.source,
            video_id=name.video_id,
            clip=name.key,
            stage=stage,
            reason=reason,
            detail=f"the {worker}'s worker died twice with other clips of its shard and once with "
            f"this clip alone: {first_line(error)}",
        )
        self._monitor.clip_left_out(self._group, failure)
        return failure


def _decode(task: ShardTask) -> tuple[stages.DecodedShard, tuple[ClipName, ...]]:
    settings = task.settings.frames
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if settings.device == "cuda" else ""
    decoder = decoder_of_this_worker(settings.decode_timeout_s, gpus=gpus)
    return _with_names(stages.decode_shard(task, decoder))


def _load(task: ShardTask) -> tuple[stages.DecodedShard, tuple[ClipName, ...]]:
    return _with_names(stages.load_shard(task))


def _join(*parts: stages.DecodedShard) -> tuple[stages.DecodedShard, tuple[ClipName, ...]]:
    return _with_names(stages.join_decoded(parts))


def _write(task: ShardTask, decoded: stages.DecodedShard, *parts: stages.TrackedShard) -> Receipt:
    return stages.write_shard(task, decoded, stages.join_tracked(parts))


# Ray does not retry decoding: the chain does, and counts the deaths.
_DECODE = ray.remote(num_cpus=1, max_retries=0, num_returns=2)(_decode)
_LOAD = ray.remote(num_cpus=1, max_retries=3, num_returns=2)(_load)
_JOIN = ray.remote(num_cpus=0, max_retries=3, num_returns=2)(_join)
_WRITE = ray.remote(num_cpus=0, max_retries=3)(_write)


def _with_names(
    decoded: stages.DecodedShard,
) -> tuple[stages.DecodedShard, tuple[ClipName, ...]]:
    return decoded, tuple(
        ClipName(clip.info.key, clip.info.source, clip.info.video_id, clip.gpu_refused)
        for clip in decoded.clips
    )


async def _decoded_ref(frames: Any, names: Awaitable[tuple[ClipName, ...]]) -> _DecodedRef:
    """Wait for the names alone, so that the frames do not come to the driver."""
    return _DecodedRef(frames, await names)
