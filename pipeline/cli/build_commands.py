"""The commands that build: `catalog`, `plan`, `build`, `verify` and `gc`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from manifests.wording import duration, pluralise, size
from pipeline.cli.options import (
    AsJson,
    Config,
    ConfigOrOut,
    Overrides,
    RetryFailed,
    Stored,
    TrainFrames,
    TrainStep,
    out_of,
    settings_of,
)
from pipeline.cli.output import print_failures, print_json, print_table
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manifests.snapshot import Snapshot
    from pipeline.inspection.verify import Problem
    from pipeline.planning.anchor_use import AnchorUse
    from pipeline.planning.cost import Estimate
    from pipeline.planning.plan import Plan


def catalog(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the videos of all sources, and which cannot be used and why."""
    from pipeline.monitoring.progress import Progress
    from pipeline.planning.catalog import make_catalog

    listed = make_catalog(settings_of(config, overrides), Progress())
    if as_json:
        columns = ["source", "video_id", "split", "frames", "width", "height", "terms"]
        videos = listed.videos.select(columns).to_pylist()
        print_json({"videos": videos, "failures": listed.failures.to_pylist()})
        return
    sums = listed.videos.group_by(["source", "split", "terms"]).aggregate(
        [("video_id", "count"), ("frames", "sum")]
    )
    table = Table("source", "split", "videos", "frames", "terms", title="Videos")
    for row in sums.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist():
        videos, frames = f"{row['video_id_count']:,}", f"{row['frames_sum']:,}"
        table.add_row(row["source"], row["split"], videos, frames, row["terms"])
    print_table(table)
    if listed.failures.num_rows:
        print_failures(listed.failures.to_pylist(), "catalog")


def plan(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    train_frames: TrainFrames = TRAINER_DEFAULTS.frames,
    train_step: TrainStep = TRAINER_DEFAULTS.step,
    as_json: AsJson = False,
) -> None:
    """Show which shards a build would keep, score, re-track or build, why, and at what cost."""
    from manifests.terms import terms_of
    from pipeline.monitoring.progress import Progress
    from pipeline.planning.anchor_use import measure_use, planned_lengths
    from pipeline.planning.catalog import make_catalog, stored_catalog
    from pipeline.planning.cost import estimate
    from pipeline.planning.plan import make_plan

    settings = settings_of(config, overrides)
    if stored:
        videos = stored_catalog(settings)
    else:
        videos = make_catalog(settings, Progress(), retry_failed)
    planned = make_plan(settings, videos, retry_failed, stored)
    costs = estimate(planned)
    use = measure_use(
        planned_lengths(planned.clips, settings),
        SampleRule(train_frames, train_step),
        settings.tracks.directions,
    )
    terms = terms_of(videos.videos, settings.tracks.model_dump())
    if as_json:
        print_json(_plan_as_json(planned, costs, use, str(settings.out)) | {"terms": asdict(terms)})
        return
    _print_plan(planned, costs, str(settings.out))
    print(f"terms: {terms.sentence()}")
    if sentences := " ".join(use.sentences()):
        print(sentences)


def _print_plan(planned: Plan, costs: Estimate, out: str) -> None:
    """Print a plan as a table with a row per action and reason, and the worker time of all."""
    heads = ("action", "why", "shards", "clips", "size", "worker time")
    table = Table(*heads, title=f"Plan for {out}")
    for line in costs.lines:
        time = "" if line.action == "keep" else duration(line.seconds)
        counts = (f"{line.shards:,}", f"{line.clips:,}")
        table.add_row(line.action, line.reason, *counts, size(line.bytes), time)
    if planned.dropped:
        table.add_row("drop", "no longer part of the config", f"{planned.dropped:,}", "", "", "")
    print_table(table)
    if costs.total.shards:
        wall = ""
        if costs.wall_seconds is not None:
            wall = f"; about {duration(costs.wall_seconds)} with {costs.parallel:.1f} workers"
        print(f"worker time in all: {duration(costs.total.seconds)}{wall}")
    for missing in planned.missing:
        print(f"{missing}; 'pretrack build' asks for --allow-fewer")
    if notes := planned.failures.num_rows:
        left_out = f"{pluralise(notes, 'note')} on what is left out or incomplete"
        print(f"{left_out}: 'pretrack catalog' lists them")


def _plan_as_json(planned: Plan, costs: Estimate, use: AnchorUse, out: str) -> dict[str, Any]:
    """Return a plan as plain data, with the frames of each shard and what training uses."""
    frames = planned.clips["frames"].to_numpy().cumsum()
    shards = [
        {
            "shard": shard.shard,
            "group": shard.group,
            "action": shard.action,
            "reason": shard.reason,
            "clips": shard.count,
            "frames": int(
                frames[shard.first + shard.count - 1]
                - (frames[shard.first - 1] if shard.first else 0)
            ),
        }
        for shard in planned.shards
    ]
    return {
        "out": out,
        "shards": shards,
        "dropped": planned.dropped,
        "missing_videos": [asdict(missing) for missing in planned.missing],
        "costs": [asdict(line) for line in costs.lines],
        "worker_seconds": costs.total.seconds,
        "parallel": costs.parallel,
        "wall_seconds": costs.wall_seconds,
        "failures": planned.failures.to_pylist(),
        "training": {
            "frames": use.rule.frames,
            "step": use.rule.step,
            "unreachable_anchors": use.unreachable,
            "unused_clips": use.clips - use.clips_used,
            "used_fraction": use.used_fraction,
        },
    }


def build(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    allow_fewer: Annotated[
        bool,
        typer.Option(
            "--allow-fewer",
            help="Publish even if a source finds less than half of its videos in the current "
            "snapshot (max_missing_videos).",
        ),
    ] = False,
    json_logs: Annotated[
        bool,
        typer.Option(
            "--json-logs",
            help="Log every event as a line of JSON on standard error, instead of progress.",
        ),
    ] = False,
) -> None:
    """Build the shards that are missing or out of date, and publish a snapshot."""
    import pyarrow.compute as pc

    from pipeline.execution.build import build as run
    from pipeline.monitoring.progress import Progress

    settings = settings_of(config, overrides)
    built = run(
        settings,
        Progress(json_lines=json_logs),
        stored=stored,
        retry_failed=retry_failed,
        allow_fewer=allow_fewer,
    )
    snapshot = built.snapshot
    if built.made:
        done = f"{pluralise(built.made, 'shard')} made, {built.kept:,} kept"
    else:
        done = f"nothing to do, {pluralise(built.kept, 'shard')} kept"
    clips = pluralise(pc.sum(snapshot.shards["clips"]).as_py(), "clip")
    notes = ""
    if failures := snapshot.failures.num_rows:
        left_out = f"{pluralise(failures, 'note')} on what is left out or incomplete"
        notes = f"; {left_out} ('pretrack status')"
    print(f"{settings.out}: {done}; snapshot {snapshot.name} has {clips}{notes}")


def verify(
    where: ConfigOrOut,
    overrides: Overrides = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Rebuild damaged shards; intact clips in them are copied."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the current snapshot: file sizes, checksums, images, tracks and tables.

    Ends with status 1 if anything is wrong.
    """
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.verify import verify_snapshot
    from pipeline.monitoring.progress import Progress

    out = out_of(where, overrides)
    snapshot = open_snapshot(out)
    problems, lost_clips = verify_snapshot(snapshot, Progress()), False
    if problems and repair:
        snapshot, lost_clips = _repair(snapshot, problems)
        problems = verify_snapshot(snapshot, Progress())
    shards, clips = snapshot.shards.num_rows, snapshot.clips.num_rows
    if as_json:
        sentences = [str(problem) for problem in problems]
        counts = {"snapshot": snapshot.name, "shards": shards, "clips": clips}
        print_json({**counts, "problems": sentences})
    else:
        for problem in problems:
            print(problem)
        holds = f"{pluralise(shards, 'shard')}, {pluralise(clips, 'clip')}"
        print(f"snapshot {snapshot.name}: {holds}, {pluralise(len(problems), 'problem')}")
        if problems:
            print(f"to rebuild damaged shards: pretrack verify {out} --repair")
    if problems or lost_clips:
        raise typer.Exit(1)


def _repair(snapshot: Snapshot, problems: Sequence[Problem]) -> tuple[Snapshot, bool]:
    """Repair a snapshot; return the new one, and whether clips were lost."""
    from pipeline.execution.repair import repair
    from pipeline.monitoring.progress import Progress

    for problem in problems:
        print(problem, file=sys.stderr)
    repaired = repair(snapshot, problems, Progress())
    print(f"{pluralise(repaired.built.made, 'shard')} made again", file=sys.stderr)
    if repaired.lost:
        lost = f"{pluralise(len(repaired.lost), 'clip')} could not be recovered and are left out"
        print(f"{lost}; the first: {repaired.lost[0]}: {repaired.reason}", file=sys.stderr)
    return repaired.built.snapshot, bool(repaired.lost)


def gc(
    where: ConfigOrOut,
    overrides: Overrides = None,
    keep: Annotated[
        int,
        typer.Option(help="Keep this many of the newest snapshots; the current one always stays."),
    ] = 2,
    keep_snapshot: Annotated[
        list[str] | None, typer.Option(help="Also keep this snapshot; may be given several times.")
    ] = None,
    unpublished: Annotated[
        bool, typer.Option("--unpublished", help="Also remove the shards of an interrupted build.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, and the shards that only they name; keep those that trainers read."""
    from pipeline.execution.garbage_collection import collect_garbage

    out = out_of(where, overrides)
    garbage = collect_garbage(out, keep, keep_snapshot or (), unpublished, dry_run)
    if as_json:
        print_json({**asdict(garbage), "dry_run": dry_run})
        return
    action = "would remove" if dry_run else "removed"
    snapshots = ", ".join(garbage.snapshots) or "no snapshot"
    shards = f"{pluralise(len(garbage.shards), 'shard')}, {size(garbage.bytes)}"
    print(f"kept snapshots {', '.join(garbage.kept)}; {action} {snapshots}, {shards}")
    if garbage.unpublished:
        unused = f"{pluralise(garbage.unpublished, 'shard')} of an interrupted build"
        print(f"kept for the next build: {unused} ('--unpublished' removes them)")
