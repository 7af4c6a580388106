"""The build: does what the plan says, and publishes a snapshot when everything is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from manifests.receipt import read_receipt
from manifests.snapshot import Snapshot, current_snapshot, drop_unfinished, open_snapshot, publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, table_of
from pipeline.catalog import make_catalog, stored_catalog
from pipeline.config import BuildSettings
from pipeline.events import Events
from pipeline.lock import only_build
from pipeline.plan import Plan, make_plan
from pipeline.progress import Progress
from pipeline.shard_chains import make_shards
from shards.errors import PretrackError
from shards.files import TEMPORARY, Location


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
    with only_build(settings.out):
        _sweep(settings.out)
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
            make_shards(todo, plan, settings, progress)
        before = current_snapshot(settings.out)
        snapshot = _publish(plan, settings)
        built = Built(len(todo), len(plan.shards) - len(todo), snapshot)
        if todo or snapshot.name != before:
            _note_end(built, snapshot.name != before, Events(settings.out, progress))
        return built


def _sweep(out: Location) -> None:
    """Removes what a killed build was writing. Nothing else writes there: the lock is held (`catalog/` is left out: commands
    without the lock write there)."""
    drop_unfinished(out)
    if isinstance(out, Path):
        for folder in ("", "shards", "receipts"):
            for path in (out / folder).glob(f"{TEMPORARY}*"):
                path.unlink()


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


def _note_end(built: Built, published: bool, events: Events) -> None:
    snapshot = built.snapshot
    if published:
        clips, shards, failures = len(snapshot.clips), len(snapshot.shards), len(snapshot.failures)
        said = f"snapshot {snapshot.name} is published: {clips} clips in {shards} shards, {failures} failures"
        events.note("snapshot published", said, snapshot=snapshot.name, clips=clips, shards=shards, failures=failures)
    said = f"the build is finished: {built.made} shards made, {built.kept} kept"
    events.note("build finished", said, made=built.made, kept=built.kept, snapshot=snapshot.name)


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
