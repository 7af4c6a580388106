"""The build: does what the plan says, and publishes a snapshot when everything is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.snapshot import Snapshot, publish_snapshot, remove_unfinished_snapshots
from manifests.tables import VIDEOS, read_table
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.execution.lock import Lock, build_lock
from pipeline.execution.shard_runner import make_shards
from pipeline.monitoring.event_log import EventLog
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog, stored_catalog
from pipeline.planning.plan import Plan, make_plan
from shards.errors import PretrackError
from shards.files import TEMPORARY, Location

_OF_FRAMES = ("image_files", "frame_numbers", "timestamps", "cameras")
"""The large columns of the videos table."""
_NAMES = ["source", "video_id"]
"""What tells one video from all others."""


@dataclass(frozen=True)
class BuildResult:
    """What a build did: how many shards it made, kept and could not make; and the snapshot that is now current."""

    made: int
    kept: int
    snapshot: Snapshot


def build(
    settings: BuildSettings, progress: Progress, stored: bool = False, retry_failed: bool = False
) -> BuildResult:
    """Catalogues, plans, makes the shards that are missing or out of date, and publishes a snapshot if anything changed.

    With `stored` the videos are taken from the current snapshot, and the sources need not be there. With `retry_failed` whatever
    failed is tried again.

    Raises PretrackError if too many videos fail, if a shard cannot be made, or if another build is at work on the same folder; the
    shards made until then are kept.
    """
    with build_lock(settings.out) as lock:
        remove_temporary_files(settings.out)
        catalog = (
            stored_catalog(settings) if stored else make_catalog(settings, progress, retry_failed)
        )
        plan = make_plan(settings, catalog, retry_failed, stored)
        if not plan.shards:
            raise PretrackError(_nothing_to_build(plan))
        names = plan.catalog.videos.select(_NAMES)  # `take` copies every column, and some are large
        _check_failures(plan.failures, plan, settings, names.take(pc.unique(plan.clips["video"])))
        if stored and (
            anew := next((shard for shard in plan.shards if shard.action == "build"), None)
        ):
            raise PretrackError(
                f"{anew.group} has to be built from its source ({anew.reason}), which '--stored' does without: leave it out"
            )
        return execute_plan(plan, settings, progress, lock)


def execute_plan(
    plan: Plan, settings: BuildSettings, progress: Progress, lock: Lock
) -> BuildResult:
    """Makes the shards of a plan that are to be made, and publishes, for who holds the folder's lock. Raises PretrackError."""
    todo = [shard for shard in plan.shards if shard.action != "keep"]
    made = make_shards(todo, plan, settings, progress) if todo else {}
    lock.check()
    snapshot = _publish(plan, made, settings)
    built = BuildResult(len(todo), len(plan.shards) - len(todo), snapshot)
    if published := snapshot is not plan.known.current:
        _note_published(snapshot, EventLog(settings.out, progress))
    if todo or published:
        _note_end(built, EventLog(settings.out, progress))
    return built


def remove_temporary_files(out: Location) -> None:
    """Removes what a killed build was writing. Nothing else writes there: the lock is held (`catalog/` is left out: commands
    without the lock write there)."""
    remove_unfinished_snapshots(out)
    if isinstance(out, Path):
        for folder in ("", "shards", "receipts"):
            for path in (out / folder).glob(f"{TEMPORARY}*"):
                path.unlink()


def _publish(plan: Plan, made: dict[str, str], settings: BuildSettings) -> Snapshot:
    """The snapshot that holds just the shards of the plan: the current one if it does already, or a new one. `made` are the names
    of the shards just made, by group."""
    shards = [made.get(shard.group, shard.shard) for shard in plan.shards]
    if plan.known.current and _holds(plan.known.current, shards, list(made.values()), plan):
        return plan.known.current
    kept = {shard.shard for shard in plan.shards} - set(made.values())
    known = [shard for shard in plan.known.shards if shard.row.shard in kept]
    names = pa.array(shards, pa.string())
    tables = {
        table: _in_order(rows, names)
        for table, rows in plan.known.rows(known, list(made.values())).items()
    }
    tables["videos"] = plan.catalog.videos
    tables["failures"] = pa.concat_tables([plan.failures, tables["failures"]])
    _check_failures(tables["failures"], plan, settings, tables["clips"])
    return publish_snapshot(settings.out, tables, settings.model_dump(mode="json"))


def _note_published(snapshot: Snapshot, events: EventLog) -> None:
    clips, shards, failures = (
        rows.num_rows for rows in (snapshot.clips, snapshot.shards, snapshot.failures)
    )
    holds = f"{pluralise(clips, 'clip')} in {pluralise(shards, 'shard')}, {pluralise(failures, 'failure')}"
    said = f"snapshot {snapshot.name} is published: {holds}"
    events.note(
        "snapshot published",
        said,
        snapshot=snapshot.name,
        clips=clips,
        shards=shards,
        failures=failures,
    )


def _note_end(built: BuildResult, events: EventLog) -> None:
    said = f"the build is finished: {pluralise(built.made, 'shard')} made, {built.kept:,} kept"
    events.note(
        "build finished", said, made=built.made, kept=built.kept, snapshot=built.snapshot.name
    )


def _holds(snapshot: Snapshot, shards: list[str], made: list[str], plan: Plan) -> bool:
    """Whether a snapshot has just these shards, and the plan's videos and failures. A shard's name stands for its clips, a video's
    identity for what is known of each of its frames; how often a shard was tried, its receipt says. Of shards that were made again
    and came out the same, the rows are compared: what was damaged may have been the table."""
    if shards != snapshot.shards["shard"].to_pylist():
        return False
    failures = snapshot.failures.filter(pc.equal(snapshot.failures["shard"], ""))
    columns = [name for name in VIDEOS.names if name not in _OF_FRAMES]
    videos = read_table(snapshot.folder / "videos.parquet", columns)
    if not (failures.equals(plan.failures) and videos.equals(plan.catalog.videos.select(columns))):
        return False
    if not made:  # nothing takes the clips table then, which is large
        return True
    clips = snapshot.clips.filter(
        pc.is_in(snapshot.clips["shard"], value_set=pa.array(made, pa.string()))
    ).sort_by("key")
    return bool(clips.equals(plan.known.rows((), made)["clips"].sort_by("key")))


def _in_order(rows: pa.Table, names: pa.Array) -> pa.Table:
    """Rows in the order of their shards."""
    place = pc.index_in(rows["shard"], value_set=names).to_numpy()
    return (
        rows
        if (np.diff(place) >= 0).all()
        else rows.take(pa.array(np.argsort(place, kind="stable")))
    )


def _check_failures(
    failures: pa.Table, plan: Plan, settings: BuildSettings, good: pa.Table
) -> None:
    """Raises PretrackError if too many videos yield nothing: all but those in the rows `good`."""
    good = good.select(_NAMES).group_by(_NAMES).aggregate([])
    bad = plan.catalog.videos_found - good.num_rows
    if bad > settings.max_failed_videos * plan.catalog.videos_found:
        lost = (
            failures.filter(pc.not_equal(failures["video_id"], ""))
            .join(good, _NAMES, join_type="left anti")
            .sort_by("video_id")
        )
        counts = (
            lost.group_by("reason")
            .aggregate([("reason", "count")])
            .sort_by([("reason_count", "descending")])
            .to_pylist()
        )
        reasons = ", ".join(f"{row['reason_count']} x {row['reason']}" for row in counts[:4])
        named = lost.slice(0, 1).to_pylist()
        first = f"{named[0]['video_id']}: {named[0]['detail']}" if named else "none is named"
        raise PretrackError(
            f"{bad} of {pluralise(plan.catalog.videos_found, 'video')} yield no clip ({reasons}), "
            f"more than max_failed_videos={settings.max_failed_videos} allows; the first: {first}"
        )


def _nothing_to_build(plan: Plan) -> str:
    reasons = sorted(set(plan.failures.column("reason").to_pylist()))
    why = f" ({', '.join(reasons)})" if reasons else ""
    return f"none of the {pluralise(plan.catalog.videos_found, 'video')} found yields a clip{why}: 'pretrack catalog' lists them"
