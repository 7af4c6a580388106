"""Build: plan, make the shards of the plan, and publish a snapshot once all of them exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.receipt import RECEIPT_FOLDERS
from manifests.snapshot import Snapshot, publish_snapshot, remove_unfinished_snapshots
from manifests.tables import VIDEOS, read_table, video_identifiers
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.lock import Lock, build_lock
from pipeline.execution.shard_runner import make_shards
from pipeline.execution.shard_scoring import score_shards
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog, stored_catalog
from pipeline.planning.plan import Plan, make_plan
from shards.errors import PretrackError
from shards.files import TEMPORARY, Location

_PER_FRAME_COLUMNS = (
    *("image_files", "frame_numbers", "timestamps", "cameras", "depth", "mask_files"),
)
"""The large columns of the videos table."""
_COLUMNS_OF_VIDEOS = ("viewpoint_quality", "parts")
"""Columns of the clips table that are those of each clip's video."""
_VIDEO_KEY = ["source", "video_id"]
"""The columns that identify a video."""


@dataclass(frozen=True)
class BuildResult:
    """How many shards a build made and kept, and the snapshot that is now current."""

    made: int
    kept: int
    snapshot: Snapshot


def build(
    settings: BuildSettings,
    progress: Progress,
    stored: bool = False,
    retry_failed: bool = False,
    *,
    allow_fewer: bool = False,
) -> BuildResult:
    """Make the shards that are missing or out of date; publish a snapshot if anything changed.

    stored:       take the videos from the current snapshot; the sources are not needed
    retry_failed: retry everything that failed
    allow_fewer:  publish even if a source finds far fewer videos than the current snapshot has

    Raises PretrackError if too many videos fail or are missing, if a shard cannot be made, or if
    another build is at work on the same folder; the shards made until then are kept.
    """
    with build_lock(settings.out) as lock:
        remove_temporary_files(settings.out)
        catalog = (
            stored_catalog(settings) if stored else make_catalog(settings, progress, retry_failed)
        )
        plan = make_plan(settings, catalog, retry_failed, stored)
        if plan.missing and not allow_fewer:
            raise PretrackError(
                f"{plan.missing[0]}, or use --allow-fewer if that is meant "
                f"(max_missing_videos={settings.max_missing_videos:g})"
            )
        if not plan.shards:
            raise PretrackError(_nothing_to_build(plan))
        # `take` copies every column, and some are large: select first.
        names = plan.catalog.videos.select(_VIDEO_KEY)
        _check_failures(
            plan.failures, plan, settings, usable=names.take(pc.unique(plan.clips["video"]))
        )
        if stored:
            _check_no_source_needed(plan)
        return execute_plan(plan, settings, progress, lock)


def execute_plan(
    plan: Plan, settings: BuildSettings, progress: Progress, lock: Lock
) -> BuildResult:
    """Make the shards of a plan that are not kept, and publish the snapshot.

    The caller holds `lock`. Raises PretrackError.
    """
    monitor = BuildMonitor(settings.out, progress)
    todo = [shard for shard in plan.shards if shard.action != "keep"]
    made, damaged = score_shards(
        [shard for shard in todo if shard.action == "score"], plan, settings, monitor
    )
    if others := [*(shard for shard in todo if shard.action != "score"), *damaged]:
        made |= make_shards(others, plan, settings, monitor)
    lock.check()  # a build whose lease was taken over must not publish
    snapshot = _publish(plan, made, settings)
    result = BuildResult(made=len(todo), kept=len(plan.shards) - len(todo), snapshot=snapshot)
    published = snapshot is not plan.existing.current
    if published:
        monitor.snapshot_published(snapshot)
    if todo or published:
        monitor.build_finished(result.made, result.kept, snapshot)
    return result


def remove_temporary_files(out: Location) -> None:
    """Remove what a killed build left half-written. The caller holds the folder's lock.

    `catalog/` is not touched: commands that do not hold the lock write there.
    """
    remove_unfinished_snapshots(out)
    if isinstance(out, Path):
        for folder in ("", "shards", *RECEIPT_FOLDERS):
            for path in (out / folder).glob(f"{TEMPORARY}*"):
                if not path.is_dir():  # folders are those of exports
                    path.unlink()


def _publish(plan: Plan, made: dict[str, str], settings: BuildSettings) -> Snapshot:
    """Return the snapshot of exactly the plan's shards: the current one if it is, else a new one.

    `made` has the names of the shards just made, by group.
    """
    shards = [made.get(shard.group, shard.shard) for shard in plan.shards]
    current = plan.existing.current
    if current and _holds(current, shards, list(made.values()), plan):
        return current
    # Rows of kept shards come from their snapshots, those of shards just made from receipts.
    kept_names = {shard.shard for shard in plan.shards} - set(made.values())
    kept = [shard for shard in plan.existing.shards if shard.row.shard in kept_names]
    # Tables list shards in the order of the plan, so equal plans give equal tables.
    names = pa.array(shards, pa.string())
    tables = {
        table: _in_order(rows, names)
        for table, rows in plan.existing.rows(kept, list(made.values())).items()
    }
    tables["videos"] = plan.catalog.videos
    tables["clips"] = _with_columns_of_videos(tables["clips"], plan.catalog.videos)
    tables["failures"] = pa.concat_tables([plan.failures, tables["failures"]])
    _check_failures(tables["failures"], plan, settings, usable=tables["clips"])
    return publish_snapshot(settings.out, tables, settings.model_dump(mode="json"))


def _holds(snapshot: Snapshot, shards: list[str], made: list[str], plan: Plan) -> bool:
    """Tell whether a snapshot has exactly these shards, and the plan's videos and failures.

    A shard's name stands for its clips, and a video's identity for the columns about each frame.
    The number of tries is not compared: receipts hold it. The rows of shards that were made again
    with the same content are compared too, since the damage may have been in the table, and so are
    the versions of their scores: another version may have other notes on poses.
    """
    if shards != snapshot.shards["shard"].to_pylist():
        return False
    failures = snapshot.failures.filter(pc.equal(snapshot.failures["shard"], ""))
    columns = [name for name in VIDEOS.names if name not in _PER_FRAME_COLUMNS]
    videos = read_table(snapshot.folder / "videos.parquet", columns)
    if not (failures.equals(plan.failures) and videos.equals(plan.catalog.videos.select(columns))):
        return False
    if not made:  # no need to read the clips table, which is large
        return True
    names, rows = pa.array(made, pa.string()), plan.existing.rows((), made)
    earlier = snapshot.shards.filter(pc.is_in(snapshot.shards["shard"], value_set=names))
    versions = [
        table.select(["shard", "scores"]).sort_by("shard") for table in (earlier, rows["shards"])
    ]
    if not versions[0].equals(versions[1]):
        return False
    clips = snapshot.clips.filter(pc.is_in(snapshot.clips["shard"], value_set=names))
    clips_made = _with_columns_of_videos(rows["clips"].sort_by("key"), plan.catalog.videos)
    return bool(clips.sort_by("key").equals(clips_made))


def _with_columns_of_videos(clips: pa.Table, videos: pa.Table) -> pa.Table:
    """Fill in what sources say of each clip's video; shards do not depend on it."""
    rows = pc.index_in(video_identifiers(clips), value_set=video_identifiers(videos))
    for name in _COLUMNS_OF_VIDEOS:
        index = clips.column_names.index(name)
        clips = clips.set_column(index, clips.schema.field(index), videos[name].take(rows))
    return clips


def _in_order(rows: pa.Table, names: pa.Array) -> pa.Table:
    """Sort rows by their shards, in the order of `names`."""
    rank = pc.index_in(rows["shard"], value_set=names).to_numpy()
    if (np.diff(rank) >= 0).all():
        return rows
    return rows.take(pa.array(np.argsort(rank, kind="stable")))


def _check_failures(
    failures: pa.Table, plan: Plan, settings: BuildSettings, *, usable: pa.Table
) -> None:
    """Raise PretrackError if too many videos yield no clip: those without a row in `usable`."""
    usable = usable.select(_VIDEO_KEY).group_by(_VIDEO_KEY).aggregate([])
    total = plan.catalog.videos_found
    without_clip = total - usable.num_rows
    if without_clip <= settings.max_failed_videos * total:
        return
    # The sentence names the most frequent reasons, and the first video as an example.
    causes = (
        failures.filter(pc.not_equal(failures["video_id"], ""))
        .join(usable, _VIDEO_KEY, join_type="left anti")
        .sort_by("video_id")
    )
    counts = (
        causes.group_by("reason")
        .aggregate([("reason", "count")])
        .sort_by([("reason_count", "descending")])
        .to_pylist()
    )
    reasons = ", ".join(f"{row['reason_count']} x {row['reason']}" for row in counts[:4])
    first = causes.slice(0, 1).to_pylist()
    example = f"{first[0]['video_id']}: {first[0]['detail']}" if first else "none is named"
    raise PretrackError(
        f"{without_clip} of {pluralise(total, 'video')} yield no clip ({reasons}), "
        f"more than max_failed_videos={settings.max_failed_videos} allows; the first: {example}"
    )


def _check_no_source_needed(plan: Plan) -> None:
    """Raise PretrackError if a shard must be built from its source."""
    shard = next((shard for shard in plan.shards if shard.action == "build"), None)
    if shard:
        raise PretrackError(
            f"{shard.group} must be built from its source ({shard.reason}), and '--stored' reads "
            "no sources: run the build without '--stored'"
        )


def _nothing_to_build(plan: Plan) -> str:
    reasons = sorted(set(plan.failures.column("reason").to_pylist()))
    why = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"none of the {pluralise(plan.catalog.videos_found, 'video')} found yields a clip{why}: "
        "'pretrack catalog' lists them"
    )
