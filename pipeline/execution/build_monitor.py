"""Report a running build: the one place that writes its events, state, metrics and progress.

The rest of the build calls the methods of `BuildMonitor` with facts; the sentences are here.
Programs read the names and fields of events in `OUT/build.log`, so these do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from manifests.receipt import Receipt
from manifests.rows import Failure
from manifests.snapshot import Snapshot
from manifests.wording import pluralise, size
from pipeline.monitoring.event_log import EventLog
from pipeline.monitoring.metrics import BuildMetrics
from pipeline.monitoring.progress import Progress, ProgressTask
from pipeline.monitoring.status import STAGES, BuildState, StateFile, TrackerUsage
from pipeline.planning.plan import PlannedShard
from pipeline.ray_cluster import Cluster
from shards.errors import first_line
from shards.files import Location

_DOING = {"decode": "decoding", "track": "tracking"}


class BuildMonitor:
    """Own the event log, `OUT/build.json`, Ray's metrics and the progress task of a build.

    `shard_made`, `shard_failed` and `shards_in_flight` may only be called while `running`.
    """

    _state: StateFile
    _metrics: BuildMetrics
    _task: ProgressTask

    def __init__(self, out: Location, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._log = EventLog(out, progress).log
        self._gpu_refused = False

    @contextmanager
    def running(
        self, *, shards: int, clips: int, kept_shards: int, tracker_gpus: float
    ) -> Iterator[None]:
        """Report that shards are made while the block runs, and how it ends.

        An exception from the block ends the build as "failed"; an interrupt, as "stopped".
        """
        self._state = StateFile(self._out, BuildState.started(shards, clips, tracker_gpus))
        self._metrics = BuildMetrics()
        self._log(
            "build started",
            f"the build of {pluralise(shards, 'shard')} with {pluralise(clips, 'clip')} started; "
            f"{kept_shards:,} are kept",
            shards=shards,
            clips=clips,
            kept=kept_shards,
        )
        with self._reporting_end():
            yield

    @contextmanager
    def _reporting_end(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # Ctrl-C and SystemExit are no Exceptions: they interrupt a build that did not fail.
            if isinstance(error, Exception):
                state, reason = "failed", first_line(error)
            else:
                state, reason = "stopped", "it was interrupted"
            self._state.end(state)
            self._log("build stopped", f"the build stopped: {reason}", reason=reason)
            raise
        self._state.end("finished")

    @contextmanager
    def progress_task(self, clips: int) -> Iterator[None]:
        """Show how many of the clips are done while the block runs."""
        with self._progress.task("making shards", total=clips, noun="clip") as self._task:
            yield

    def shards_in_flight(self, shards: int, trackers: TrackerUsage) -> None:
        """Report how many shards are in flight, and how busy the trackers are."""
        self._state.in_flight(shards, trackers)
        self._metrics.trackers(trackers.live, trackers.busy)

    def shard_made(self, shard: PlannedShard, receipt: Receipt) -> None:
        """Report a shard that was written."""
        row, failures = receipt.shard, len(receipt.failures)
        seconds = {stage: round(getattr(row, f"{stage}_seconds"), 3) for stage in STAGES}
        stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        self._log(
            "shard made",
            f"{row.shard}: {pluralise(row.clips, 'clip')}, {pluralise(failures, 'failure')}, "
            f"{size(row.bytes)}; {stages}",
            shard=row.shard,
            clips=row.clips,
            failures=failures,
            bytes=row.bytes,
            seconds=seconds,
        )
        self._state.shard_made(receipt, shard.count)
        self._metrics.shard_made(receipt)
        self._task.advance(shard.count)

    @contextmanager
    def scoring(self, *, shards: int, clips: int) -> Iterator[ProgressTask]:
        """Report that stored tracks are scored while the block runs, and how it ends.

        It ends as `running` does. Shards that must be built follow in a report of their own.
        """
        self._state = StateFile(self._out, BuildState.started(shards, clips, tracker_gpus=0))
        with (
            self._reporting_end(),
            self._progress.task("scoring tracks", total=shards, noun="shard") as task,
        ):
            yield task

    def shard_scored(self, receipt: Receipt) -> None:
        """Report a shard whose stored tracks were scored."""
        row = receipt.shard
        self._log(
            "shard scored",
            f"{row.shard}: the tracks of {pluralise(row.clips, 'clip')} were scored",
            shard=row.shard,
            clips=row.clips,
            notes=sum(failure.stage == "score" for failure in receipt.failures),
        )
        self._state.shard_scored(receipt)

    def shard_failed(self, shard: PlannedShard, error: Exception) -> None:
        """Report a shard that could not be made."""
        reason = first_line(error)
        self._log(
            "shard failed",
            f"{shard.group} could not be made: {reason}",
            notable=True,
            shard=shard.group,
            reason=reason,
        )
        # Its clips count as done, so that rate and time left stay right.
        self._state.shard_failed(shard.count)
        self._metrics.shard_failed()
        self._task.advance(shard.count)

    def shard_restarted(self, group: str, error: Exception) -> None:
        """Report a shard that starts again because a node was lost with its decoded frames."""
        self._log(
            "shard restarted",
            f"frames of {group} were lost with their node: the shard starts again",
            notable=True,
            shard=group,
            reason=first_line(error),
        )

    def stored_frames_damaged(self, group: str, previous: str, reason: str) -> None:
        """Report a re-track or scoring that becomes a build: shard `previous` is damaged."""
        self._log(
            "stored frames damaged",
            f"{group} is built, not re-tracked or scored: {reason}",
            notable=True,
            shard=previous,
            reason=reason,
        )

    def shard_isolated(self, group: str, stage: str, deaths: int) -> None:
        """Report a shard that killed workers: its clips go through the stage one at a time."""
        self._log(
            "shard isolated",
            f"{_DOING[stage]} {group} has killed {deaths} workers: its clips are done one at a "
            "time",
            notable=True,
            shard=group,
        )

    def clip_left_out(self, group: str, failure: Failure) -> None:
        """Report a clip that killed its worker even when processed alone."""
        self._log(
            "clip left out",
            f"{failure.clip} was left out: {failure.detail}",
            notable=True,
            clip=failure.clip,
            shard=group,
            stage=failure.stage,
        )

    def decoder_lost(self, group: str, error: Exception) -> None:
        """Report that the worker that decoded a shard died."""
        self._log(
            "decoder lost",
            f"a decoder's worker was lost while it decoded {group}, which is retried: "
            f"{first_line(error)}",
            notable=True,
            shard=group,
            reason=first_line(error),
        )

    def gpu_refused(self, group: str, reasons: Sequence[str]) -> None:
        """Report clips that the CPU decoded although `frames.device` is cuda; each with its reason.

        Only the first report is notable: a source may have many such clips.
        """
        if not reasons:
            return
        self._log(
            "decoded on the CPU",
            f"the GPU refused {pluralise(len(reasons), 'clip')} of {group}, which the CPU decoded "
            f"({reasons[0]}); further ones are only logged",
            notable=not self._gpu_refused,
            shard=group,
            clips=len(reasons),
            reason=reasons[0],
        )
        self._gpu_refused = True

    def tracker_ready(self, location: str, live: int) -> None:
        """Report that a tracker was loaded; `live` is the number of loaded trackers."""
        self._log("tracker ready", f"a tracker is ready: {location}", where=location, trackers=live)

    def tracker_lost(self, location: str, reason: str, live: int) -> None:
        """Report that a tracker died; `location` is "" if it was not loaded yet."""
        self._log(
            "tracker lost",
            f"a tracker was lost ({location or 'not loaded yet'}): {reason}; its shards go to the "
            "others, and another tracker is started",
            notable=True,
            where=location,
            reason=reason,
            trackers=live,
        )

    def tracker_stopped(self, location: str, remaining: int, live: int) -> None:
        """Report that a tracker was stopped because the cluster shrank."""
        self._log(
            "tracker stopped",
            f"the cluster shrank: a tracker was stopped ({location}), {remaining} remain",
            notable=True,
            where=location,
            trackers=live,
        )

    def waiting_for_tracker(
        self, waiting: int, *, seconds: float, cores: float, gpus: float, cluster: Cluster
    ) -> None:
        """Report that shards wait and no tracker is loaded; one needs `cores` and `gpus`."""
        self._log(
            "waiting for a tracker",
            f"{waiting} shards wait for a tracker, and none has been ready for {seconds:.0f} s: a "
            f"tracker needs {cores:g} cores and {gpus:g} GPUs of one node, the cluster has "
            f"{cluster.cpus} cores and {cluster.gpus} GPUs; the build continues when one is ready",
            notable=True,
            waiting=waiting,
            cpus=cluster.cpus,
            gpus=cluster.gpus,
        )

    def snapshot_published(self, snapshot: Snapshot) -> None:
        """Report that a new snapshot was published."""
        clips, shards, failures = (
            table.num_rows for table in (snapshot.clips, snapshot.shards, snapshot.failures)
        )
        self._log(
            "snapshot published",
            f"snapshot {snapshot.name} is published: {pluralise(clips, 'clip')} in "
            f"{pluralise(shards, 'shard')}, {pluralise(failures, 'failure')}",
            snapshot=snapshot.name,
            clips=clips,
            shards=shards,
            failures=failures,
        )

    def build_finished(self, made: int, kept: int, snapshot: Snapshot) -> None:
        """Report the end of a build that made shards or published a snapshot."""
        self._log(
            "build finished",
            f"the build is finished: {pluralise(made, 'shard')} made, {kept:,} kept",
            made=made,
            kept=kept,
            snapshot=snapshot.name,
        )
