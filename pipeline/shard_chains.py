"""Makes shards as a Ray job.

One shard is one chain: decode (or load stored frames) on any core → track on a tracker worker → write. A bounded number of shards
is in flight, so memory does not grow with the dataset. A shard that fails leaves nothing behind and does not stop the others; the
next run takes it up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from manifests.receipt import Receipt
from pipeline import stages
from pipeline.cluster import Cluster, connect, ray_task, worker_decoder
from pipeline.config import BuildSettings
from pipeline.plan import Plan, PlannedShard
from pipeline.progress import Progress
from pipeline.status import BuildState, write_state
from shards.errors import PretrackError
from shards.files import failed_for_good


def make_shards(todo: list[PlannedShard], plan: Plan, settings: BuildSettings, progress: Progress) -> None:
    """Runs the chains. Raises PretrackError at the end if a shard failed, at once if the disk is full."""
    cluster = connect(settings.ray)
    trackers = _start_trackers(settings, cluster)
    state = BuildState.started(settings.out, len(todo), sum(len(shard.clips) for shard in todo))
    broken: dict[str, str] = {}
    clips_done = failures = 0
    try:
        with progress.stage("making shards", total=state.clips_total, unit="clips") as stage:
            for shard, result in _chains(todo, plan, settings, trackers, limit=len(trackers) + max(2, cluster.cpus // 2)):
                if isinstance(result, Exception):
                    _stop_if_hopeless(result, settings)
                    broken[shard.shard] = _first_line(result)
                else:
                    failures += len(result.failures)
                clips_done += len(shard.clips)
                stage.advance(len(shard.clips))
                state = state.advanced(clips_done, failures, len(broken))
                write_state(settings.out, state)
    except BaseException:
        write_state(settings.out, state.ended("stopped"))
        raise
    write_state(settings.out, state.ended("failed" if broken else "finished"))
    if broken:
        name, reason = next(iter(broken.items()))
        raise PretrackError(
            f"{len(broken)} of {len(todo)} shards could not be made, the first being {name} ({reason}); "
            "the others are kept, no snapshot was published: run the same build again to retry"
        )


class TrackerWorker:
    """Holds a loaded tracker on a worker."""

    def __init__(self, settings: BuildSettings) -> None:
        import cv2

        cv2.setNumThreads(max(1, int(settings.ray.tracker_cpus)))
        self._settings = settings
        self._tracker = settings.tracks.load()

    def track(self, decoded: stages.DecodedShard) -> stages.TrackedShard:
        """See `stages.track_shard`."""
        return stages.track_shard(decoded, self._tracker, self._settings)


def _start_trackers(settings: BuildSettings, cluster: Cluster) -> list[Any]:
    """The tracker workers. A worker that dies is started again, and what it was at is tried again."""
    wanted = settings.ray
    if wanted.tracker_gpus > cluster.gpus:
        raise PretrackError(f"ray.tracker_gpus is {wanted.tracker_gpus}, and this cluster has {cluster.gpus} GPUs")
    cores = wanted.tracker_cpus if cluster.cpus > 1 else 0.0  # a single core is shared with decoding
    most = int((cluster.cpus - 1) / cores) if cores else cluster.cpus
    by_default = int(cluster.gpus / wanted.tracker_gpus) if wanted.tracker_gpus else max(1, cluster.cpus // 2)
    count = wanted.trackers or min(by_default, most)
    if not 1 <= count <= most:
        raise PretrackError(
            f"{max(count, 1)} trackers of {cores:g} cores (ray.trackers, ray.tracker_cpus) leave none of the {cluster.cpus} cores "
            "to decode with"
        )
    actor = ray.remote(num_cpus=cores, num_gpus=wanted.tracker_gpus, max_restarts=3, max_task_retries=3)(TrackerWorker)
    return [actor.remote(settings) for _ in range(count)]


def _chains(
    todo: list[PlannedShard], plan: Plan, settings: BuildSettings, trackers: list[Any], limit: int
) -> Iterator[tuple[PlannedShard, Receipt | Exception]]:
    """Every shard with its receipt, or with what went wrong, in the order they are done."""
    decode, load, write = ray_task(_decode), ray_task(stages.load_shard), ray.remote(num_cpus=0, max_retries=3)(stages.write_shard)
    load_of = [0] * len(trackers)
    waiting: dict[Any, tuple[PlannedShard, int]] = {}

    def finish_one() -> tuple[PlannedShard, Receipt | Exception]:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        shard, worker = waiting.pop(done)
        load_of[worker] -= 1
        try:
            return shard, ray.get(done)
        except ray.exceptions.RayTaskError as error:
            return shard, error.cause if isinstance(error.cause, Exception) else error
        except ray.exceptions.RayError as error:
            return shard, error

    for shard in todo:
        if len(waiting) >= limit:
            yield finish_one()
        task = ray.put(_task(shard, plan, settings))
        worker = load_of.index(min(load_of))
        load_of[worker] += 1
        decoded = load.remote(task) if shard.action == "retrack" else decode.remote(task)
        waiting[write.remote(task, decoded, trackers[worker].track.remote(decoded))] = (shard, worker)
    while waiting:
        yield finish_one()


def _decode(task: stages.ShardTask) -> stages.DecodedShard:
    """Runs on a worker."""
    return stages.decode_shard(task, worker_decoder(task.settings.frames.decode_timeout_s))


def _task(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> stages.ShardTask:
    numbers = sorted({clip.video for clip in shard.clips})
    rows = plan.catalog.videos.take(pa.array(numbers)).to_pylist() if shard.action == "build" else []
    return stages.ShardTask(shard, dict(zip(numbers, rows, strict=False)), settings)


def _stop_if_hopeless(error: Exception, settings: BuildSettings) -> None:
    """A full or read-only disk fails every shard: stops at the first."""
    if isinstance(error, OSError) and failed_for_good(error):
        raise PretrackError(
            f"a shard could not be written to {settings.out} ({error.strerror}): make room and run the same build again, "
            "what is done is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
