"""The commands that make things: `catalog`, `plan`, `build`, `verify` and `gc`."""

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
    out_of,
    settings_of,
)
from pipeline.cli.output import print_failures, print_json, print_table

if TYPE_CHECKING:
    from pipeline.planning.cost import Estimate
    from pipeline.planning.plan import Plan


def catalog(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the videos found, and what cannot be used and why."""
    from pipeline.monitoring.progress import Progress
    from pipeline.planning.catalog import make_catalog

    settings = settings_of(config, overrides)
    found = make_catalog(settings, Progress())
    if as_json:
        videos = found.videos.select(
            ["source", "video_id", "split", "frames", "width", "height", "terms"]
        )
        print_json({"videos": videos.to_pylist(), "failures": found.failures.to_pylist()})
        return
    by_source = found.videos.group_by(["source", "split", "terms"]).aggregate(
        [("video_id", "count"), ("frames", "sum")]
    )
    table = Table("source", "split", "videos", "frames", "terms", title="Videos")
    for row in by_source.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist():
        table.add_row(
            row["source"],
            row["split"],
            f"{row['video_id_count']:,}",
            f"{row['frames_sum']:,}",
            row["terms"],
        )
    print_table(table)
    if found.failures.num_rows:
        print_failures(found.failures.to_pylist(), "catalog")


def plan(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Say for every shard whether a build keeps, re-tracks or builds it, why, and what that costs. Makes no shard."""
    from pipeline.monitoring.progress import Progress
    from pipeline.planning.catalog import make_catalog, stored_catalog
    from pipeline.planning.cost import estimate
    from pipeline.planning.plan import make_plan

    settings = settings_of(config, overrides)
    found = stored_catalog(settings) if stored else make_catalog(settings, Progress(), retry_failed)
    planned = make_plan(settings, found, retry_failed, stored)
    costs = estimate(planned)
    if as_json:
        print_json(_plan_as_json(planned, costs, str(settings.out)))
        return
    table = Table(
        "action", "why", "shards", "clips", "size", "worker time", title=f"Plan for {settings.out}"
    )
    for line in costs.lines:
        time = "" if line.action == "keep" else duration(line.seconds)
        table.add_row(
            line.action, line.reason, f"{line.shards:,}", f"{line.clips:,}", size(line.bytes), time
        )
    if planned.dropped:
        table.add_row("drop", "nothing asks for it any more", f"{planned.dropped:,}", "", "", "")
    print_table(table)
    if costs.total.shards:
        wall = (
            f"; about {duration(costs.wall_seconds)} with {costs.parallel:.1f} at work"
            if costs.wall_seconds is not None
            else ""
        )
        print(f"worker time in all: {duration(costs.total.seconds)}{wall}")
    if notes := planned.failures.num_rows:
        print(
            f"{pluralise(notes, 'note')} on what is left out or incomplete: 'pretrack catalog' lists them"
        )


def _plan_as_json(planned: Plan, costs: Estimate, out: str) -> dict[str, Any]:
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
        "costs": [asdict(line) for line in costs.lines],
        "worker_seconds": costs.total.seconds,
        "parallel": costs.parallel,
        "wall_seconds": costs.wall_seconds,
        "failures": planned.failures.to_pylist(),
    }


def build(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    json_logs: Annotated[
        bool,
        typer.Option(
            "--json-logs",
            help="Log every event as a line of JSON on standard error, instead of progress.",
        ),
    ] = False,
) -> None:
    """Make the shards that are missing or out of date, and publish a snapshot."""
    import pyarrow.compute as pc

    from pipeline.execution.build import build as run
    from pipeline.monitoring.progress import Progress

    settings = settings_of(config, overrides)
    built = run(settings, Progress(json_lines=json_logs), stored, retry_failed)
    clips, failures = (
        pc.sum(built.snapshot.shards["clips"]).as_py(),
        built.snapshot.failures.num_rows,
    )
    kept = f"{pluralise(built.kept, 'shard')} kept"
    did = (
        f"{pluralise(built.made, 'shard')} made, {built.kept:,} kept"
        if built.made
        else f"nothing to do, {kept}"
    )
    notes = (
        f"; {pluralise(failures, 'note')} on what is left out or incomplete ('pretrack status')"
        if failures
        else ""
    )
    print(
        f"{settings.out}: {did}; snapshot {built.snapshot.name} has {pluralise(clips, 'clip')}{notes}"
    )


def verify(
    where: ConfigOrOut,
    overrides: Overrides = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Make damaged shards again: what is still good in them is kept."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the current snapshot: sizes, checksums, images, tracks, and what its tables say. Exits with 1 if anything is wrong."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.verify import verify_snapshot
    from pipeline.monitoring.progress import Progress

    out = out_of(where, overrides)
    snapshot = open_snapshot(out)
    problems, lost_clips = verify_snapshot(snapshot, Progress()), False
    if problems and repair:
        from pipeline.execution.repair import repair as mend

        for problem in problems:
            print(problem, file=sys.stderr)
        repaired = mend(snapshot, problems, Progress())
        print(f"{pluralise(repaired.built.made, 'shard')} made again", file=sys.stderr)
        if lost_clips := bool(repaired.lost):
            first = f"the first being {repaired.lost[0]}: {repaired.reason}"
            print(
                f"{pluralise(len(repaired.lost), 'clip')} could not be had again and are left out, {first}",
                file=sys.stderr,
            )
        snapshot = repaired.built.snapshot
        problems = verify_snapshot(snapshot, Progress())
    shards, clips = snapshot.shards.num_rows, snapshot.clips.num_rows
    if as_json:
        said = [str(problem) for problem in problems]
        print_json({"snapshot": snapshot.name, "shards": shards, "clips": clips, "problems": said})
    else:
        for problem in problems:
            print(problem)
        holds = f"{pluralise(shards, 'shard')}, {pluralise(clips, 'clip')}"
        print(f"snapshot {snapshot.name}: {holds}, {pluralise(len(problems), 'problem')}")
        if problems:
            print(f"to make damaged shards again: pretrack verify {out} --repair")
    if problems or lost_clips:
        raise typer.Exit(1)


def gc(
    where: ConfigOrOut,
    overrides: Overrides = None,
    keep: Annotated[
        int,
        typer.Option(help="How many of the newest snapshots stay; the current one always does."),
    ] = 2,
    keep_snapshot: Annotated[
        list[str] | None, typer.Option(help="A snapshot that stays, too; may be given again.")
    ] = None,
    unpublished: Annotated[
        bool, typer.Option("--unpublished", help="Also remove an interrupted build's work so far.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, and the shards that only they name. Trainers that read them would fail: keep those in use."""
    from pipeline.execution.garbage_collection import collect_garbage

    garbage = collect_garbage(
        out_of(where, overrides), keep, keep_snapshot or (), unpublished, dry_run
    )
    if as_json:
        print_json({**asdict(garbage), "dry_run": dry_run})
        return
    did = "would remove" if dry_run else "removed"
    old = ", ".join(garbage.snapshots) or "no snapshot"
    print(
        f"kept snapshots {', '.join(garbage.kept)}; {did} {old}, {pluralise(len(garbage.shards), 'shard')}, {size(garbage.bytes)}"
    )
    if garbage.unpublished:
        left = pluralise(garbage.unpublished, "shard")
        print(
            f"left for the next build: {left} of one that did not end ('--unpublished' removes them)"
        )
