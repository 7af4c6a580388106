"""The build: does what the plan says, as a Ray job, and publishes a snapshot when everything is there.

One shard is one chain: decode (or load stored frames) on any core → track on a tracker worker → write. A bounded number of shards
is in flight, so memory does not grow with the dataset. A shard that fails leaves nothing behind and does not stop the others; the
next run takes it up again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from manifests.receipt import Receipt, read_receipt
from manifests.snapshot import Snapshot, current_snapshot, open_snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, table_of
from pipeline import stages
from pipeline.catalog import make_catalog, stored_catalog
from pipeline.cluster import Cluster, connect, ray_task, worker_decoder
from pipeline.config import BuildSettings
from pipeline.plan import Plan, PlannedShard, make_plan
from pipeline.progress import Progress
from pipeline.status import BuildState, write_state
from shards.errors import PretrackError
from shards.files import TEMPORARY


@dataclass(frozen=True)
class Built:
    """What a build did: how many shards it made, kept and could not make; and the snapshot that is now current."""

    made: int
    kept: int
    snapshot: Snapshot


def build(settings: BuildSettings, progress: Progress, stored: bool = False) -> Built:
    """Catalogues, plans, makes the shards that are missing or out of date, and publishes a snapshot if anything changed.

    With `stored` the videos are taken from the current snapshot, and the sources need not be there.

    Raises PretrackError if too many videos fail, if a shard cannot be made, or if another build is at work on the same folder; the
    shards made until then are kept.
    """
    with _only_build(settings):
        _sweep(settings)
        plan = make_plan(settings, stored_catalog(settings) if stored else make_catalog(settings, progress))
        if not plan.shards:
            raise PretrackError(_nothing_to_build(plan))
        _check_failures(plan.failures, plan, settings)
        todo = [shard for shard in plan.shards if shard.action != "keep"]
        if stored and (anew := next((shard for shard in todo if shard.action == "build"), None)):
            raise PretrackError(
                f"{anew.shard} has to be built from its source ({anew.reason}), which '--stored' does without: leave it out"
            )
        if todo:
            _make_shards(todo, plan, settings, progress)
        snapshot = _publish(plan, settings)
        return Built(len(todo), len(plan.shards) - len(todo), snapshot)


@contextmanager
def _only_build(settings: BuildSettings) -> Iterator[None]:
    """Holds the output folder's lock."""
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        lock = os.open(settings.out / "build.lock", os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        raise PretrackError(f"the output folder {settings.out} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise PretrackError(f"another build is at work on {settings.out}: wait for it or stop it") from error
    finally:
        os.close(lock)


def _sweep(settings: BuildSettings) -> None:
    """Removes what a killed build was writing. Nothing else writes there: the lock is held (`catalog/` is left out: commands
    without the lock write there)."""
    for folder in ("", "shards", "receipts", "snapshots"):
        for path in (settings.out / folder).glob(f"{TEMPORARY}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_shards(todo: list[PlannedShard], plan: Plan, settings: BuildSettings, progress: Progress) -> None:
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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        raise PretrackError(
            f"a shard could not be written to {settings.out} ({error.strerror}): make room and run the same build again, "
            "what is done is kept"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _publish(plan: Plan, settings: BuildSettings) -> Snapshot:
    """The snapshot that holds just the shards of the plan: the current one if it does already, or a new one."""
    receipts = [read_receipt(settings.out, shard.shard) for shard in plan.shards]
    clips = table_of((row for receipt in receipts for row in receipt.clips), CLIPS)
    shards = table_of((receipt.shard for receipt in receipts), SHARDS)
    built = table_of((row for receipt in receipts for row in receipt.failures), FAILURES)
    failures = pa.concat_tables([plan.failures, built])
    tables = {"videos": plan.catalog.videos, "clips": clips, "shards": shards, "failures": failures}
    name = current_snapshot(settings.out)
    if name is not None:
        current = open_snapshot(settings.out, name)
        if current.clips.equals(clips) and current.failures.equals(failures) and current.videos.equals(plan.catalog.videos):
            return current
    _check_failures(failures, plan, settings, clips)
    return publish_snapshot(settings.out, tables, settings.model_dump(mode="json"))


def _check_failures(failures: pa.Table, plan: Plan, settings: BuildSettings, clips: pa.Table | None = None) -> None:
    """Raises PretrackError if too many videos yield nothing. Before the build, every planned clip counts as there."""
    if clips is None:
        videos = plan.catalog.videos
        used = pa.array(sorted({clip.video for shard in plan.shards for clip in shard.clips}), pa.int64())
        clips = videos.take(used)
    good = (
        pc.count_distinct(pc.binary_join_element_wise(clips.column("source"), clips.column("video_id"), "/")).as_py()
        if len(clips)
        else 0
    )
    bad = plan.catalog.found - good
    if bad > settings.max_failed_videos * plan.catalog.found:
        counts = failures.group_by("reason").aggregate([("reason", "count")]).sort_by([("reason_count", "descending")]).to_pylist()
        reasons = ", ".join(f"{row['reason_count']} x {row['reason']}" for row in counts[:4])
        first = next((f"{row['video_id']}: {row['detail']}" for row in failures.to_pylist() if row["video_id"]), "none is named")
        raise PretrackError(
            f"{bad} of {plan.catalog.found} videos yield no clip ({reasons}), "
            f"more than max_failed_videos={settings.max_failed_videos} allows; the first: {first}"
        )


def _nothing_to_build(plan: Plan) -> str:
    reasons = sorted(set(plan.failures.column("reason").to_pylist()))
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"none of the {plan.catalog.found} videos found yields a clip{why}: 'pretrack catalog' lists them"
