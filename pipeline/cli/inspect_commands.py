"""The commands that print figures: `status`, `snapshots`, `diff` and `stats`."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from manifests.wording import duration, pluralise, size
from pipeline.cli.options import AsJson, ConfigOrOut, Overrides, SnapshotName, out_of
from pipeline.cli.output import print_failures, print_json, print_table
from shards.errors import PretrackError

if TYPE_CHECKING:
    from pipeline.inspection.sql import QueryResult

_SHOWN_ROWS = 200


def status(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the progress of a build, and what the current snapshot holds."""
    from pipeline.monitoring.status import status as read_status

    state = read_status(out_of(where, overrides))
    if as_json:
        print_json(state)
        return
    if build := state["build"]:
        _print_build(build)
    if snapshot := state["snapshot"]:
        _print_snapshot(snapshot)
    else:
        print("no snapshot yet")


def _print_snapshot(snapshot: dict[str, Any]) -> None:
    """Print what a snapshot holds per source, and what it lacks."""
    clips, videos, shards = (
        pluralise(snapshot[f"{noun}s"], noun) for noun in ("clip", "video", "shard")
    )
    print(f"snapshot {snapshot['name']}: {clips} of {videos}, {shards}, {size(snapshot['bytes'])}")
    table = Table("source", "split", "clips", "frames", "visible")
    for row in snapshot["sources"]:
        counts = (f"{row['clips']:,}", f"{row['frames']:,}", f"{row['visible_fraction']:.0%}")
        table.add_row(row["source"], row["split"], *counts)
    print_table(table)
    if snapshot["failures"]:
        table = Table("stage", "reason", "count", title="Left out or incomplete")
        for row in snapshot["failures"]:
            table.add_row(row["stage"], row["reason"], f"{row['count']:,}")
        print_table(table)
        print("to retry only those: pretrack build CONFIG --retry-failed")
        print_failures(snapshot["left_out"], "status")


def _print_build(state: dict[str, Any]) -> None:
    """Print the latest build: progress, speed, the slowest stage, and failures."""
    clips = f"{state['clips_done']:,} of {state['clips_total']:,} clips"
    rate = f", {state['clips_per_s']:.1f} clips/s" if "clips_per_s" in state else ""
    left = f", {duration(state['seconds_left'])} left" if "seconds_left" in state else ""
    print(f"build: {state['state']}, {clips}{rate}{left}")
    states = {"done": "done", "running": "running", "broken": "failed", "left": "left"}
    counts = (f"{state[f'shards_{key}']:,} {word}" for key, word in states.items())
    print(f"shards: {', '.join(counts)}")
    if "trackers_busy" in state:
        kind = "GPU trackers" if state["tracker_gpus"] else "trackers"
        print(f"{kind}: {state['trackers']}, busy {state['trackers_busy']:.0%} of the time")
    if "slowest_stage" in state:
        stages = state["stage_seconds"].items()
        seconds = ", ".join(f"{stage} {spent:,.1f} s" for stage, spent in stages)
        print(f"workers spent: {seconds}; the slowest stage is {state['slowest_stage']}")
    if state["state"] != "finished" and state["reasons"]:
        reasons = (
            f"{row['count']:,} x {row['reason']} ({row['stage']})" for row in state["reasons"]
        )
        print(f"left out or incomplete so far: {', '.join(reasons)}")


def snapshots(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the snapshots of an output folder, with their dates, sizes and changed settings."""
    from pipeline.inspection.history import summaries

    listed = summaries(out_of(where, overrides))
    if as_json:
        print_json(
            [{**asdict(summary), "published": summary.published.isoformat()} for summary in listed]
        )
        return
    table = Table("snapshot", "published", "clips", "shards", "size", "settings")
    for summary in listed:
        mark = " (current)" if summary.current else ""
        published = summary.published.astimezone().strftime("%Y-%m-%d %H:%M")
        holds = (f"{summary.clips:,}", f"{summary.shards:,}", size(summary.bytes))
        table.add_row(summary.name + mark, published, *holds, "\n".join(summary.settings))
    print_table(table)


def diff(
    where: ConfigOrOut,
    old: Annotated[str, typer.Argument(help="A snapshot, such as 000001.")],
    new: Annotated[str, typer.Argument(help="Another snapshot.")],
    as_json: AsJson = False,
) -> None:
    """Show what differs between two snapshots, from settings and videos to scores of tracks."""
    from manifests.diff import compare
    from manifests.snapshot import open_snapshot

    out = out_of(where)
    change = compare(open_snapshot(out, old), open_snapshot(out, new))
    if as_json:
        print_json({"out": str(out), "old": old, "new": new, **asdict(change)})
        return
    print(f"{out}: snapshot {old} → {new}")
    for setting in change.settings:
        print(f"  {setting}")
    videos, clips, shards = change.videos, change.clips, change.shards
    added, removed = f"{pluralise(videos.added, 'video')} added", f"{videos.removed:,} removed"
    print(f"{added}, {removed}, {videos.replaced:,} replaced")
    print(
        f"{pluralise(clips.added, 'clip')} added, {clips.removed:,} removed, "
        f"{clips.retracked:,} re-tracked over the same frames, "
        f"{clips.other_frames:,} with other frames, {clips.same:,} the same"
    )
    for failure in change.failures:
        counts = f"{failure.old:,} → {failure.new:,}"
        print(f"left out or incomplete at stage {failure.stage}, {failure.reason}: {counts}")
    for score in change.scores:
        over = f"median of {pluralise(score.clips, 'clip')} with both"
        print(f"{score.score}, {over}: {score.old:.3g} → {score.new:.3g}")
    print(
        f"{pluralise(shards.shared, 'shard')} in both ({size(shards.shared_bytes)}), "
        f"{shards.added:,} added ({size(shards.added_bytes)}), "
        f"{shards.removed:,} removed ({size(shards.removed_bytes)})"
    )


def stats(
    where: ConfigOrOut,
    overrides: Overrides = None,
    sql: Annotated[
        str | None,
        typer.Option("--sql", help="A query over the tables videos, clips, shards and failures."),
    ] = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the result of --sql as CSV.")
    ] = False,
) -> None:
    """Show figures of a snapshot, or answer a query in SQL (DuckDB's dialect)."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.sql import SnapshotQueries

    if as_csv and (sql is None or as_json):
        raise PretrackError("--csv needs --sql, and excludes --json")
    queries = SnapshotQueries(open_snapshot(out_of(where, overrides), snapshot))
    answers = dict(queries.figures()) if sql is None else {"": queries.ask(sql)}
    if as_csv:
        answer = answers[""]
        csv.writer(sys.stdout, lineterminator="\n").writerows([answer.columns, *answer.rows])
    elif as_json:
        listed = {
            title: [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
            for title, answer in answers.items()
        }
        print_json(listed if sql is None else listed[""])
    else:
        for title, answer in answers.items():
            _print_answer(title, answer)


def _print_answer(title: str, answer: QueryResult) -> None:
    """Print the first rows of an answer."""
    table = Table(*map(escape, answer.columns), title=title or None)
    for row in answer.rows[:_SHOWN_ROWS]:
        table.add_row(*(escape(_cell(value)) for value in row))
    print_table(table)
    if (more := len(answer.rows) - _SHOWN_ROWS) > 0:
        print(f"… and {more:,} more rows: --csv or --json prints them all")


def _cell(value: Any) -> str:
    """Return a value as a table shows it: numbers with separators, null as nothing."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
