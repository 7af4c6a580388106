"""The commands that look: `status`, `snapshots`, `diff`, `show`, `report`, `stats` and `export`."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from manifests.wording import duration, pluralise, size
from pipeline.cli.options import AsJson, ConfigOrOut, Overrides, SnapshotName, out_of
from pipeline.cli.output import print_failures, print_json, print_table
from shards.errors import PretrackError

if TYPE_CHECKING:
    from manifests.snapshot import Snapshot
    from pipeline.inspection.sql import QueryResult
    from shards.files import Location

_SHOWN_ROWS = 200


def status(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show where a build stands, and what the current snapshot holds."""
    from pipeline.monitoring.status import status as read

    shown = read(out_of(where, overrides))
    if as_json:
        print_json(shown)
        return
    if state := shown["build"]:
        _print_build(state)
    if not (snapshot := shown["snapshot"]):
        print("no snapshot yet")
        return
    clips, videos, shards = (
        pluralise(snapshot[f"{noun}s"], noun) for noun in ("clip", "video", "shard")
    )
    print(f"snapshot {snapshot['name']}: {clips} of {videos}, {shards}, {size(snapshot['bytes'])}")
    table = Table("source", "split", "clips", "frames", "visible")
    for row in snapshot["sources"]:
        table.add_row(
            row["source"],
            row["split"],
            f"{row['clips']:,}",
            f"{row['frames']:,}",
            f"{row['visible_fraction']:.0%}",
        )
    print_table(table)
    if snapshot["failures"]:
        table = Table("stage", "reason", "count", title="Left out or incomplete")
        for row in snapshot["failures"]:
            table.add_row(row["stage"], row["reason"], f"{row['count']:,}")
        print_table(table)
        print("to try just those again: pretrack build CONFIG --retry-failed")
        print_failures(snapshot["left_out"], "status")


def _print_build(state: dict[str, Any]) -> None:
    """The latest build: how far it is, how fast, what is slow, and what failed."""
    rate = f", {state['clips_per_s']:.1f} clips/s" if "clips_per_s" in state else ""
    left = f", {duration(state['seconds_left'])} left" if "seconds_left" in state else ""
    print(
        f"build: {state['state']}, {state['clips_done']:,} of {state['clips_total']:,} clips{rate}{left}"
    )
    counts = f"{state['shards_done']:,} done, {state['shards_running']:,} running, {state['shards_broken']:,} failed"
    print(f"shards: {counts}, {state['shards_left']:,} left")
    if "trackers_busy" in state:
        kind = "GPU trackers" if state["tracker_gpus"] else "trackers"
        print(f"{kind}: {state['trackers']}, busy {state['trackers_busy']:.0%} of the time")
    if "slowest_stage" in state:
        seconds = ", ".join(
            f"{stage} {spent:,.1f} s" for stage, spent in state["stage_seconds"].items()
        )
        print(f"workers spent: {seconds}; the slowest stage is {state['slowest_stage']}")
    if state["state"] != "finished" and state["reasons"]:
        print(
            "left out or incomplete so far: "
            + ", ".join(
                f"{row['count']:,} x {row['reason']} ({row['stage']})" for row in state["reasons"]
            )
        )


def snapshots(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the snapshots of an output folder: when each was published, what it holds, and which settings changed."""
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
    """Show what differs between two snapshots: settings, videos, clips, failures and shards."""
    from manifests.diff import compare
    from manifests.snapshot import open_snapshot

    out = out_of(where)
    found = compare(open_snapshot(out, old), open_snapshot(out, new))
    if as_json:
        print_json({"out": str(out), "old": old, "new": new, **asdict(found)})
        return
    print(f"{out}: snapshot {old} → {new}")
    for change in found.settings:
        print(f"  {change}")
    videos, clips, shards = found.videos, found.clips, found.shards
    print(
        f"{pluralise(videos.added, 'video')} added, {videos.removed:,} removed, {videos.replaced:,} replaced"
    )
    print(
        f"{pluralise(clips.added, 'clip')} added, {clips.removed:,} removed, {clips.retracked:,} re-tracked over the same frames, "
        f"{clips.other_frames:,} with other frames, {clips.same:,} the same"
    )
    for failure in found.failures:
        print(
            f"left out or incomplete at stage {failure.stage}, {failure.reason}: {failure.old:,} → {failure.new:,}"
        )
    print(
        f"{pluralise(shards.shared, 'shard')} in both ({size(shards.shared_bytes)}), "
        f"{shards.added:,} added ({size(shards.added_bytes)}), {shards.removed:,} removed ({size(shards.removed_bytes)})"
    )


def show(
    where: ConfigOrOut,
    overrides: Overrides = None,
    clip: Annotated[
        list[str] | None, typer.Option(help="A clip's key, or part of one; may be given again.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Without --clip: how many clips of each source; one, and with --open all.", min=1
        ),
    ] = None,
    anchor: Annotated[
        int, typer.Option(help="Which of a clip's anchors to draw, from 0.", min=0)
    ] = 0,
    opened: Annotated[
        bool,
        typer.Option(
            "--open", help="Make a gallery of the clips, and open it in a browser if there is one."
        ),
    ] = False,
    snapshot: SnapshotName = None,
    against: Annotated[
        str | None,
        typer.Option(help="With --open: another snapshot, to see each clip in both side by side."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Folder for the pictures; by default OUT/pictures, or pictures/. A gallery's may be a URL."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw tracks over frames: a contact sheet (PNG) and a video (MP4) for each clip; with --open a gallery to look through."""
    from manifests.snapshot import open_snapshot
    from shards.files import parse_location

    out = out_of(where, overrides)
    shown = open_snapshot(out, snapshot)
    if opened:
        other = open_snapshot(out, against) if against else None
        _show_gallery(
            shown,
            other,
            clip or [],
            count,
            anchor,
            parse_location(to) if to else _pictures(out) / "gallery",
            as_json,
        )
        return
    folder = parse_location(to) if to else _pictures(out)
    if against:
        raise PretrackError(f"--against {against} compares snapshots in a gallery: add --open")
    if not isinstance(folder, Path):
        raise PretrackError(
            f"videos cannot be written to {folder}: name a folder of this machine, or make a gallery with --open"
        )
    from pipeline.inspection.contact_sheet import show_clips

    made = show_clips(shown, clip or [], count or 1, anchor, folder)
    if as_json:
        print_json({"pictures": [str(path) for path in made]})
        return
    for path in made:
        print(path)


def _show_gallery(
    snapshot: Snapshot,
    against: Snapshot | None,
    clips: list[str],
    count: int | None,
    anchor: int,
    folder: Location,
    as_json: bool,
) -> None:
    """Writes a gallery, says where it is and what it lacks, and opens it."""
    from pipeline.inspection.gallery.write import open_in_browser, write_gallery
    from pipeline.monitoring.progress import Progress

    made = write_gallery(
        snapshot, folder, Progress(), wanted=clips, count=count, anchor=anchor, against=against
    )
    if as_json:
        print_json({**asdict(made), "page": str(made.page)})
        return
    for problem in made.damaged:
        print(problem, file=sys.stderr)
    more = (
        f"; {made.left_out:,} more are left out (--clip or --count choose others)"
        if made.left_out
        else ""
    )
    print(f"{pluralise(made.clips, 'clip')}{more}: {made.page}")
    open_in_browser(made.page)


def report(
    where: ConfigOrOut,
    overrides: Overrides = None,
    snapshot: SnapshotName = None,
    to: Annotated[
        str | None,
        typer.Option(help="Folder for it; by default OUT/pictures/report, or pictures/report."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say on a page what a snapshot holds, to decide whether to train on it: counts, motion, tracks, failures, sizes, speed."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.report import write_report
    from shards.files import parse_location

    out = out_of(where, overrides)
    figures, files = write_report(
        open_snapshot(out, snapshot), parse_location(to) if to else _pictures(out) / "report"
    )
    if as_json:
        print_json({**asdict(figures), "files": [str(file) for file in files]})
        return
    for concern in figures.concerns:
        print(concern)
    print(files[0])


def _pictures(out: Location) -> Path:
    """Where pictures of an output folder go: beside its shards, or here if it is on a bucket."""
    return (out if isinstance(out, Path) else Path()) / "pictures"


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
        bool, typer.Option("--csv", help="Print the answer to --sql as CSV.")
    ] = False,
) -> None:
    """Show figures of a snapshot, or answer a question about it in SQL (DuckDB's)."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.sql import SnapshotQueries

    if as_csv and (sql is None or as_json):
        raise PretrackError("--csv goes with --sql, and not with --json")
    questions = SnapshotQueries(open_snapshot(out_of(where, overrides), snapshot))
    answers = dict(questions.figures()) if sql is None else {"": questions.ask(sql)}
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
    """The first rows of an answer."""
    table = Table(*map(escape, answer.columns), title=title or None)
    for row in answer.rows[:_SHOWN_ROWS]:
        table.add_row(*(escape(_cell(value)) for value in row))
    print_table(table)
    if len(answer.rows) > _SHOWN_ROWS:
        print(f"… and {len(answer.rows) - _SHOWN_ROWS:,} more rows: --csv or --json has them all")


def _cell(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else ""
        if value is None
        else str(value)
    )


def export(
    where: ConfigOrOut,
    clip: Annotated[str, typer.Argument(help="A clip's key, or a part of it that no other has.")],
    overrides: Overrides = None,
    to: Annotated[
        str,
        typer.Option(
            help="mp4: a video with tracks drawn; rerun: a recording for Rerun; tapvid: TAP-Vid's arrays."
        ),
    ] = "mp4",
    file: Annotated[
        Path | None,
        typer.Option(help="The file to write; by default KEY.mp4, KEY.rrd or KEY.npz here."),
    ] = None,
    anchor: Annotated[
        int | None,
        typer.Option(help="Only this anchor's tracks, counted from 0; a video has one's always."),
    ] = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Write one clip for other programs: as a video, a Rerun recording or TAP-Vid's arrays."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.export import export_clip

    written = export_clip(open_snapshot(out_of(where, overrides), snapshot), clip, to, file, anchor)
    if as_json:
        print_json({"file": str(written)})
    else:
        print(written)
