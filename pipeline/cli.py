"""The `pretrack` command line. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manifests.wording import counted, duration, size
from shards.errors import PretrackError, disk_sentence

if TYPE_CHECKING:
    from manifests.snapshot import Snapshot
    from pipeline.config import BuildSettings
    from pipeline.estimate import Estimate
    from pipeline.plan import Plan
    from pipeline.stats import Answer
    from shards.files import Location

app = typer.Typer(
    help="Turn video datasets into shards of frames and point tracks, once; then train on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="A YAML config, such as configs/demo.yaml.")]
ConfigOrOut = Annotated[str, typer.Argument(help="A YAML config, or an output folder or its URL.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: key=value, such as tracks.grid=24.")]
Stored = Annotated[
    bool, typer.Option("--stored", help="Take the videos from the current snapshot: to track again without the sources.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again whatever failed, for whatever reason: after files were repaired in place.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")]
SnapshotName = Annotated[str | None, typer.Option("--snapshot", help="A snapshot, such as 000001; by default the current one.")]
JsonLogs = Annotated[
    bool, typer.Option("--json-logs", help="Log every event as a line of JSON on standard error, instead of progress.")
]


_SHOWN_FAILURES = 50
_SHOWN_ROWS = 200


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that a user can act on become one sentence and exit status 1; Ctrl-C says what is kept."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PretrackError as error:
            print(f"pretrack: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            print(f"pretrack: {disk_sentence(error)}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("pretrack: stopped. What is done is kept; the same command goes on from there.", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


@app.command()
@_clear_errors
def catalog(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the videos found, and what cannot be used and why."""
    from pipeline.catalog import make_catalog
    from pipeline.progress import Progress

    settings = _settings(config, overrides)
    found = make_catalog(settings, Progress())
    if as_json:
        videos = found.videos.select(["source", "video_id", "split", "frames", "width", "height", "terms"])
        _print_json({"videos": videos.to_pylist(), "failures": found.failures.to_pylist()})
        return
    by_source = found.videos.group_by(["source", "split", "terms"]).aggregate([("video_id", "count"), ("frames", "sum")])
    table = Table("source", "split", "videos", "frames", "terms", title="Videos")
    for row in by_source.sort_by([("source", "ascending"), ("split", "descending")]).to_pylist():
        table.add_row(row["source"], row["split"], f"{row['video_id_count']:,}", f"{row['frames_sum']:,}", row["terms"])
    _console().print(table)
    if found.failures.num_rows:
        _print_failures(found.failures.to_pylist(), "catalog")


@app.command()
@_clear_errors
def plan(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Say for every shard whether a build keeps, re-tracks or builds it, why, and what that costs. Makes no shard."""
    from pipeline.catalog import make_catalog, stored_catalog
    from pipeline.estimate import estimate
    from pipeline.plan import make_plan
    from pipeline.progress import Progress

    settings = _settings(config, overrides)
    found = stored_catalog(settings) if stored else make_catalog(settings, Progress(), retry_failed)
    planned = make_plan(settings, found, retry_failed, stored)
    costs = estimate(planned)
    if as_json:
        _print_json(_plan_as_json(planned, costs, str(settings.out)))
        return
    table = Table("action", "why", "shards", "clips", "size", "worker time", title=f"Plan for {settings.out}")
    for line in costs.lines:
        time = "" if line.action == "keep" else duration(line.seconds)
        table.add_row(line.action, line.reason, f"{line.shards:,}", f"{line.clips:,}", size(line.bytes), time)
    if planned.dropped:
        table.add_row("drop", "nothing asks for it any more", f"{planned.dropped:,}", "", "", "")
    _console().print(table)
    if costs.total.shards:
        wall = f"; about {duration(costs.wall_seconds)} with {costs.parallel:.1f} at work" if costs.wall_seconds is not None else ""
        print(f"worker time in all: {duration(costs.total.seconds)}{wall}")
    if notes := planned.failures.num_rows:
        print(f"{counted(notes, 'note')} on what is left out: 'pretrack catalog' lists them")


def _plan_as_json(planned: Plan, costs: Estimate, out: str) -> dict[str, Any]:
    frames = planned.clips["frames"].to_numpy().cumsum()
    shards = [
        {
            "shard": shard.shard,
            "group": shard.group,
            "action": shard.action,
            "reason": shard.reason,
            "clips": shard.count,
            "frames": int(frames[shard.first + shard.count - 1] - (frames[shard.first - 1] if shard.first else 0)),
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


@app.command()
@_clear_errors
def build(
    config: Config,
    overrides: Overrides = None,
    stored: Stored = False,
    retry_failed: RetryFailed = False,
    json_logs: JsonLogs = False,
) -> None:
    """Make the shards that are missing or out of date, and publish a snapshot."""
    import pyarrow.compute as pc

    from pipeline.build import build as run
    from pipeline.progress import Progress

    settings = _settings(config, overrides)
    built = run(settings, Progress(json_lines=json_logs), stored, retry_failed)
    clips, failures = pc.sum(built.snapshot.shards["clips"]).as_py(), built.snapshot.failures.num_rows
    kept = f"{counted(built.kept, 'shard')} kept"
    did = f"{counted(built.made, 'shard')} made, {built.kept:,} kept" if built.made else f"nothing to do, {kept}"
    notes = f"; {counted(failures, 'note')} on what was left out ('pretrack status')" if failures else ""
    print(f"{settings.out}: {did}; snapshot {built.snapshot.name} has {counted(clips, 'clip')}{notes}")


@app.command()
@_clear_errors
def status(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show where a build stands, and what the current snapshot holds."""
    from pipeline.status import status as read

    shown = read(_out(where, overrides))
    if as_json:
        _print_json(shown)
        return
    if state := shown["build"]:
        _print_build(state)
    if not (snapshot := shown["snapshot"]):
        print("no snapshot yet")
        return
    clips, videos, shards = (counted(snapshot[f"{noun}s"], noun) for noun in ("clip", "video", "shard"))
    print(f"snapshot {snapshot['name']}: {clips} of {videos}, {shards}, {size(snapshot['bytes'])}")
    table = Table("source", "split", "clips", "frames", "visible")
    for row in snapshot["sources"]:
        table.add_row(row["source"], row["split"], f"{row['clips']:,}", f"{row['frames']:,}", f"{row['visible_fraction']:.0%}")
    _console().print(table)
    if snapshot["failures"]:
        table = Table("stage", "reason", "count", title="Left out")
        for row in snapshot["failures"]:
            table.add_row(row["stage"], row["reason"], f"{row['count']:,}")
        _console().print(table)
        print("to try just those again: pretrack build CONFIG --retry-failed")
        _print_failures(snapshot["left_out"], "status")


@app.command()
@_clear_errors
def diff(
    where: ConfigOrOut,
    old: Annotated[str, typer.Argument(help="A snapshot, such as 000001.")],
    new: Annotated[str, typer.Argument(help="Another snapshot.")],
    as_json: AsJson = False,
) -> None:
    """Show what differs between two snapshots: settings, videos, clips, failures and shards."""
    from manifests.diff import compare
    from manifests.snapshot import open_snapshot

    out = _out(where, None)
    found = compare(open_snapshot(out, old), open_snapshot(out, new))
    if as_json:
        _print_json({"out": str(out), "old": old, "new": new, **asdict(found)})
        return
    print(f"{out}: snapshot {old} → {new}")
    for change in found.settings:
        print(f"  {change}")
    videos, clips, shards = found.videos, found.clips, found.shards
    print(f"{counted(videos.added, 'video')} added, {videos.removed:,} removed, {videos.replaced:,} replaced")
    print(
        f"{counted(clips.added, 'clip')} added, {clips.removed:,} removed, {clips.retracked:,} re-tracked over the same frames, "
        f"{clips.other_frames:,} with other frames, {clips.same:,} the same"
    )
    for failure in found.failures:
        print(f"left out at stage {failure.stage}, {failure.reason}: {failure.old:,} → {failure.new:,}")
    print(
        f"{counted(shards.shared, 'shard')} in both ({size(shards.shared_bytes)}), "
        f"{shards.added:,} added ({size(shards.added_bytes)}), {shards.removed:,} removed ({size(shards.removed_bytes)})"
    )


@app.command()
@_clear_errors
def verify(
    where: ConfigOrOut,
    overrides: Overrides = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged shards again: what is still good in them is kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every shard of the current snapshot: sizes, checksums, offsets, images, tracks. Exits with 1 if anything is wrong."""
    from manifests.snapshot import open_snapshot
    from pipeline.progress import Progress
    from pipeline.verify import verify_snapshot

    out = _out(where, overrides)
    snapshot = open_snapshot(out)
    problems, lost_clips = verify_snapshot(snapshot, Progress()), False
    if problems and repair:
        from pipeline.repair import repair as mend

        for problem in problems:
            print(problem, file=sys.stderr)
        repaired = mend(snapshot, problems, Progress())
        print(f"{counted(repaired.built.made, 'shard')} made again", file=sys.stderr)
        if lost_clips := bool(repaired.lost):
            first = f"the first being {repaired.lost[0]}: {repaired.why}"
            print(f"{counted(len(repaired.lost), 'clip')} could not be had again and are left out, {first}", file=sys.stderr)
        snapshot = repaired.built.snapshot
        problems = verify_snapshot(snapshot, Progress())
    shards, clips = snapshot.shards.num_rows, snapshot.clips.num_rows
    if as_json:
        said = [str(problem) for problem in problems]
        _print_json({"snapshot": snapshot.name, "shards": shards, "clips": clips, "problems": said})
    else:
        for problem in problems:
            print(problem)
        holds = f"{counted(shards, 'shard')}, {counted(clips, 'clip')}"
        print(f"snapshot {snapshot.name}: {holds}, {counted(len(problems), 'problem')}")
        if problems:
            print(f"to make damaged shards again: pretrack verify {out} --repair")
    if problems or lost_clips:
        raise typer.Exit(1)


@app.command()
@_clear_errors
def snapshots(where: ConfigOrOut, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the snapshots of an output folder: when each was published, what it holds, and which settings changed."""
    from dataclasses import asdict

    from pipeline.snapshots import summaries

    listed = summaries(_out(where, overrides))
    if as_json:
        _print_json([{**asdict(summary), "published": summary.published.isoformat()} for summary in listed])
        return
    table = Table("snapshot", "published", "clips", "shards", "MB", "settings")
    for summary in listed:
        mark = " (current)" if summary.current else ""
        published = summary.published.astimezone().strftime("%Y-%m-%d %H:%M")
        sizes = (f"{summary.clips:,}", f"{summary.shards:,}", f"{summary.bytes / 1e6:,.1f}")
        table.add_row(summary.name + mark, published, *sizes, "\n".join(summary.settings))
    _console().print(table)


@app.command()
@_clear_errors
def gc(
    where: ConfigOrOut,
    overrides: Overrides = None,
    keep: Annotated[int, typer.Option(help="How many of the newest snapshots stay; the current one always does.")] = 2,
    keep_snapshot: Annotated[list[str] | None, typer.Option(help="A snapshot that stays, too; may be given again.")] = None,
    unpublished: Annotated[bool, typer.Option("--unpublished", help="Also remove an interrupted build's work so far.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old snapshots, and the shards that only they name. Trainers that read them would fail: keep those in use."""
    from dataclasses import asdict

    from pipeline.gc import collect

    garbage = collect(_out(where, overrides), keep, keep_snapshot or (), unpublished, dry_run)
    if as_json:
        _print_json({**asdict(garbage), "dry_run": dry_run})
        return
    did = "would remove" if dry_run else "removed"
    old = ", ".join(garbage.snapshots) or "no snapshot"
    print(f"kept snapshots {', '.join(garbage.kept)}; {did} {old}, {len(garbage.shards):,} shards, {garbage.bytes / 1e6:,.1f} MB")
    if garbage.unpublished:
        print(f"{garbage.unpublished:,} shards of an unfinished build are left for the next one ('--unpublished' removes them)")


@app.command()
@_clear_errors
def show(
    where: ConfigOrOut,
    overrides: Overrides = None,
    clip: Annotated[list[str] | None, typer.Option(help="A clip's key, or part of one; may be given again.")] = None,
    count: Annotated[
        int | None, typer.Option(help="Without --clip: how many clips of each source; one, and with --open all.", min=1)
    ] = None,
    anchor: Annotated[int, typer.Option(help="Which of a clip's anchors to draw, from 0.", min=0)] = 0,
    opened: Annotated[
        bool, typer.Option("--open", help="Make a gallery of the clips, and open it in a browser if there is one.")
    ] = False,
    snapshot: SnapshotName = None,
    against: Annotated[
        str | None, typer.Option(help="With --open: another snapshot, to see each clip in both side by side.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Folder for the pictures; by default OUT/pictures, or pictures/. A gallery's may be a URL.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw tracks over frames: a contact sheet (PNG) and a video (MP4) for each clip; with --open a gallery to look through."""
    from manifests.snapshot import open_snapshot
    from shards.files import location

    out = _out(where, overrides)
    shown = open_snapshot(out, snapshot)
    if opened:
        other = open_snapshot(out, against) if against else None
        _show_gallery(shown, other, clip or [], count, anchor, location(to) if to else _pictures(out) / "gallery", as_json)
        return
    folder = location(to) if to else _pictures(out)
    if against:
        raise PretrackError(f"--against {against} compares snapshots in a gallery: add --open")
    if not isinstance(folder, Path):
        raise PretrackError(f"videos cannot be written to {folder}: name a folder of this machine, or make a gallery with --open")
    from pipeline.show import show_clips

    made = show_clips(shown, clip or [], count or 1, anchor, folder)
    if as_json:
        _print_json({"pictures": [str(path) for path in made]})
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
    from pipeline.gallery.write import open_in_browser, write_gallery
    from pipeline.progress import Progress

    made = write_gallery(snapshot, folder, Progress(), wanted=clips, count=count, anchor=anchor, against=against)
    if as_json:
        _print_json({**asdict(made), "page": str(made.page)})
        return
    for problem in made.damaged:
        print(problem, file=sys.stderr)
    more = f"; {made.left_out:,} more are left out (--clip or --count choose others)" if made.left_out else ""
    print(f"{counted(made.clips, 'clip')}{more}: {made.page}")
    open_in_browser(made.page)


@app.command()
@_clear_errors
def report(
    where: ConfigOrOut,
    overrides: Overrides = None,
    snapshot: SnapshotName = None,
    to: Annotated[str | None, typer.Option(help="Folder for it; by default OUT/pictures/report, or pictures/report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say on a page what a snapshot holds, to decide whether to train on it: counts, motion, tracks, failures, sizes, speed."""
    from manifests.snapshot import open_snapshot
    from pipeline.snapshot_report import write_report
    from shards.files import location

    out = _out(where, overrides)
    figures, files = write_report(open_snapshot(out, snapshot), location(to) if to else _pictures(out) / "report")
    if as_json:
        _print_json({**asdict(figures), "files": [str(file) for file in files]})
        return
    for concern in figures.concerns:
        print(concern)
    print(files[0])


def _pictures(out: Location) -> Path:
    """Where pictures of an output folder go: beside its shards, or here if it is on a bucket."""
    return (out if isinstance(out, Path) else Path()) / "pictures"


@app.command()
@_clear_errors
def export(
    where: ConfigOrOut,
    clip: Annotated[str, typer.Argument(help="A clip's key, or a part of it that no other has.")],
    overrides: Overrides = None,
    to: Annotated[
        str, typer.Option(help="mp4: a video with tracks drawn; rerun: a recording for Rerun; tapvid: TAP-Vid's arrays.")
    ] = "mp4",
    file: Annotated[Path | None, typer.Option(help="The file to write; by default KEY.mp4, KEY.rrd or KEY.npz here.")] = None,
    anchor: Annotated[int | None, typer.Option(help="Only this anchor's tracks, counted from 0; a video has one's always.")] = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Write one clip for other programs: as a video, a Rerun recording or TAP-Vid's arrays."""
    from manifests.snapshot import open_snapshot
    from pipeline.export import export_clip

    written = export_clip(open_snapshot(_out(where, overrides), snapshot), clip, to, file, anchor)
    if as_json:
        _print_json({"file": str(written)})
    else:
        print(written)


@app.command()
@_clear_errors
def stats(
    where: ConfigOrOut,
    overrides: Overrides = None,
    sql: Annotated[str | None, typer.Option("--sql", help="A query over the tables videos, clips, shards and failures.")] = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the answer to --sql as CSV.")] = False,
) -> None:
    """Show figures of a snapshot, or answer a question about it in SQL (DuckDB's)."""
    from manifests.snapshot import open_snapshot
    from pipeline.stats import Questions

    if as_csv and (sql is None or as_json):
        raise PretrackError("--csv goes with --sql, and not with --json")
    questions = Questions(open_snapshot(_out(where, overrides), snapshot))
    answers = dict(questions.figures()) if sql is None else {"": questions.ask(sql)}
    if as_csv:
        answer = answers[""]
        csv.writer(sys.stdout, lineterminator="\n").writerows([answer.columns, *answer.rows])
    elif as_json:
        listed = {title: [dict(zip(answer.columns, row, strict=True)) for row in answer.rows] for title, answer in answers.items()}
        _print_json(listed if sql is None else listed[""])
    else:
        for title, answer in answers.items():
            _print_answer(title, answer)


def _print_answer(title: str, answer: Answer) -> None:
    """The first rows of an answer."""
    table = Table(*map(escape, answer.columns), title=title or None)
    for row in answer.rows[:_SHOWN_ROWS]:
        table.add_row(*(escape(_cell(value)) for value in row))
    _console().print(table)
    if len(answer.rows) > _SHOWN_ROWS:
        print(f"… and {len(answer.rows) - _SHOWN_ROWS:,} more rows: --csv or --json has them all")


def _cell(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "" if value is None else str(value)


def _print_build(state: dict[str, Any]) -> None:
    """The latest build: how far it is, how fast, what is slow, and what failed."""
    rate = f", {state['clips_per_s']:.1f} clips/s" if "clips_per_s" in state else ""
    left = f", {state['seconds_left']:.0f} s left" if "seconds_left" in state else ""
    print(f"build: {state['state']}, {state['clips_done']:,} of {state['clips_total']:,} clips{rate}{left}")
    counts = f"{state['shards_done']:,} done, {state['shards_running']:,} running, {state['shards_broken']:,} failed"
    print(f"shards: {counts}, {state['shards_left']:,} left")
    if "trackers_busy" in state:
        kind = "GPU trackers" if state["tracker_gpus"] else "trackers"
        print(f"{kind}: {state['trackers']}, busy {state['trackers_busy']:.0%} of the time")
    if "slowest_stage" in state:
        seconds = ", ".join(f"{stage} {spent:,.1f} s" for stage, spent in state["stage_seconds"].items())
        print(f"workers spent: {seconds}; the slowest stage is {state['slowest_stage']}")
    if state["state"] != "finished" and state["reasons"]:
        print("left out so far: " + ", ".join(f"{row['count']:,} x {row['reason']} ({row['stage']})" for row in state["reasons"]))


def _print_failures(failures: list[dict[str, Any]], command: str) -> None:
    """The first failures one by one."""
    table = Table("source", "video or clip", "reason", "detail", title="Left out")
    for row in failures[:_SHOWN_FAILURES]:
        table.add_row(row["source"], row["clip"] or row["video_id"], row["reason"], row["detail"])
    _console().print(table)
    if len(failures) > _SHOWN_FAILURES:
        print(f"… and {len(failures) - _SHOWN_FAILURES:,} more: 'pretrack {command} --json' lists them all")


def _settings(config: Path, overrides: list[str] | None) -> BuildSettings:
    from manifests.settings import load_settings
    from pipeline.config import BuildSettings

    return load_settings(BuildSettings, config, overrides or [])


def _out(where: str, overrides: list[str] | None) -> Location:
    """The output folder meant by a config or by itself."""
    from shards.files import location

    place = location(where)
    if isinstance(place, Path) and not place.is_dir():
        return _settings(place, overrides).out
    if overrides:
        raise PretrackError(f"overrides ({' '.join(overrides)}) need a config, and {where} is a folder")
    return place


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _console() -> Console:
    """Tables as wide as the terminal; in a log, wide enough not to break lines."""
    return Console() if sys.stdout.isatty() else Console(width=160)
