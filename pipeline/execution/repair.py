"""Repair the current snapshot: make its damaged shards again, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.fingerprint import canonical_json
from manifests.settings import check_settings
from manifests.snapshot import Snapshot, current_snapshot
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.execution.build import BuildResult, execute_plan, remove_temporary_files
from pipeline.execution.lock import build_lock
from pipeline.inspection.verify import Problem
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import changed_videos, stored_catalog
from pipeline.planning.plan import make_plan
from pipeline.planning.reasons import describe_settings_change
from shards.errors import PretrackError


@dataclass(frozen=True)
class RepairResult:
    """The result of a repair.

    built:  the build that made the damaged shards again
    lost:   keys of the clips that could not be recovered
    reason: why the first of them could not, "" if none is lost
    """

    built: BuildResult
    lost: tuple[str, ...]
    reason: str


def repair(snapshot: Snapshot, problems: Sequence[Problem], progress: Progress) -> RepairResult:
    """Make the shards with problems again, as they were.

    Copies the intact clips of these shards and decodes the others from their source.

    Raises PretrackError if the tables are damaged, if the snapshot is not the current one any more,
    or if a video or a setting that is needed has changed since: it would yield other clips.
    """
    if tables := [problem for problem in problems if not problem.shard]:
        raise PretrackError(str(tables[0]))
    damaged = {problem.shard for problem in problems}
    settings = check_settings(
        BuildSettings, snapshot.settings, f"the settings of snapshot {snapshot.name}"
    )
    settings = settings.model_copy(update={"out": snapshot.out})
    with build_lock(snapshot.out) as lock:
        if current_snapshot(snapshot.out) != snapshot.name:
            raise PretrackError(
                f"a newer snapshot than {snapshot.name} was published meanwhile: run 'pretrack "
                "verify' again"
            )
        remove_temporary_files(snapshot.out)
        _check_settings(snapshot, damaged, settings)
        _check_videos(snapshot, damaged, settings, progress)
        plan = make_plan(settings, stored_catalog(settings), stored=True, damaged=damaged)
        built = execute_plan(plan, settings, progress, lock)
    lost = sorted(
        set(snapshot.clips["key"].to_pylist()) - set(built.snapshot.clips["key"].to_pylist())
    )
    failures = built.snapshot.failures
    reasons = failures.filter(pc.is_in(failures["clip"], value_set=pa.array(lost, pa.string())))[
        "detail"
    ].to_pylist()
    return RepairResult(built, tuple(lost), reasons[0] if reasons else "")


def _check_settings(snapshot: Snapshot, damaged: Collection[str], settings: BuildSettings) -> None:
    """Raise PretrackError if the settings now give other results, such as by other weights."""
    settings_now = {
        "frames": canonical_json(settings.frames.of_content()),
        "tracks": canonical_json(settings.tracks.of_content()),
    }
    for row in snapshot.shards.filter(
        pc.is_in(snapshot.shards["shard"], value_set=pa.array(list(damaged)))
    ).to_pylist():
        for part, text in settings_now.items():
            if changed := describe_settings_change(part, row[f"{part}_settings"], text):
                raise PretrackError(
                    f"{row['shard']} cannot be made again as it was ({changed}): run 'pretrack "
                    "build'"
                )


def _check_videos(
    snapshot: Snapshot, damaged: Collection[str], settings: BuildSettings, progress: Progress
) -> None:
    """Raise PretrackError if a video of the damaged shards has changed since they were built."""
    needed = set()
    for table in (snapshot.clips, snapshot.failures):
        rows = table.filter(pc.is_in(table["shard"], value_set=pa.array(list(damaged))))
        needed |= set(zip(rows["source"].to_pylist(), rows["video_id"].to_pylist(), strict=True))
    if changed := changed_videos(settings, snapshot.videos, needed, progress):
        raise PretrackError(
            f"{pluralise(len(changed), 'video')} of the damaged shards changed since they were "
            f"built (the first: {changed[0]}): run 'pretrack build', which makes their clips again"
        )
