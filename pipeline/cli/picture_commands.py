"""The commands that draw: `show`, `report` and `export`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manifests.wording import pluralise
from pipeline.cli.options import (
    AsJson,
    ConfigOrOut,
    Overrides,
    SnapshotName,
    TrainFrames,
    TrainStep,
    out_of,
)
from pipeline.cli.output import print_json
from shards.errors import PretrackError
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule

if TYPE_CHECKING:
    from pipeline.inspection.gallery.write import Gallery
    from shards.files import Location

ClipNames = Annotated[
    list[str] | None,
    typer.Option("--clip", help="A clip's key, or part of one; may be given several times."),
]
ClipCount = Annotated[
    int | None,
    typer.Option(
        help="Without --clip: clips per source. By default one, and with --open all.", min=1
    ),
]
Anchor = Annotated[int, typer.Option(help="Index of the anchor whose tracks to draw.", min=0)]
Opened = Annotated[
    bool,
    typer.Option("--open", help="Make a gallery of the clips, and open it in a browser if any."),
]
Against = Annotated[
    str | None,
    typer.Option(help="With --open: another snapshot, to see each clip in both side by side."),
]
PicturesFolder = Annotated[
    str | None,
    typer.Option(
        help="Folder for the pictures; by default OUT/pictures, or pictures/. "
        "A gallery's may be a URL."
    ),
]


def show(
    where: ConfigOrOut,
    overrides: Overrides = None,
    clip: ClipNames = None,
    count: ClipCount = None,
    anchor: Anchor = 0,
    opened: Opened = False,
    snapshot: SnapshotName = None,
    against: Against = None,
    to: PicturesFolder = None,
    as_json: AsJson = False,
) -> None:
    """Draw clips with their tracks: a contact sheet (PNG) and a video (MP4) each, or a gallery."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.contact_sheet import ClipChoice, show_clips

    out = out_of(where, overrides)
    shown = open_snapshot(out, snapshot)
    choice = ClipChoice(tuple(clip or ()), count, anchor)
    if opened:
        from pipeline.inspection.gallery.write import write_gallery
        from pipeline.monitoring.progress import Progress

        other = open_snapshot(out, against) if against else None
        folder = _folder(to, out, "gallery")
        _print_gallery(write_gallery(shown, folder, Progress(), choice, other), as_json=as_json)
        return
    folder = _folder(to, out)
    if against:
        raise PretrackError(f"--against {against} compares snapshots in a gallery: add --open")
    if not isinstance(folder, Path):
        raise PretrackError(
            f"videos cannot be written to {folder}: name a folder of this machine, "
            "or make a gallery with --open"
        )
    files = show_clips(shown, choice, folder)
    if as_json:
        print_json({"pictures": [str(file) for file in files]})
    else:
        print(*files, sep="\n")


def _folder(to: str | None, out: Location, *below: str) -> Location:
    """Return the folder for pictures: `to`, or OUT/pictures, or pictures/ here for a bucket."""
    from shards.files import parse_location

    if to:
        return parse_location(to)
    return (out if isinstance(out, Path) else Path()).joinpath("pictures", *below)


def _print_gallery(gallery: Gallery, *, as_json: bool) -> None:
    """Print where a gallery is and what it lacks, and open it in a browser."""
    from pipeline.inspection.gallery.write import open_in_browser

    if as_json:
        print_json({**asdict(gallery), "page": str(gallery.page)})
        return
    for problem in gallery.damaged:
        print(problem, file=sys.stderr)
    more = ""
    if gallery.left_out:
        more = f"; {gallery.left_out:,} more are left out (--clip or --count choose others)"
    print(f"{pluralise(gallery.clips, 'clip')}{more}: {gallery.page}")
    open_in_browser(gallery.page)


def report(
    where: ConfigOrOut,
    overrides: Overrides = None,
    snapshot: SnapshotName = None,
    to: Annotated[
        str | None,
        typer.Option(help="Folder for it; by default OUT/pictures/report, or pictures/report."),
    ] = None,
    train_frames: TrainFrames = TRAINER_DEFAULTS.frames,
    train_step: TrainStep = TRAINER_DEFAULTS.step,
    as_json: AsJson = False,
) -> None:
    """Write a page on a snapshot: counts, motion, tracks, failures, sizes, speed, and concerns."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.report import write_report

    out = out_of(where, overrides)
    figures, files = write_report(
        open_snapshot(out, snapshot),
        _folder(to, out, "report"),
        SampleRule(train_frames, train_step),
    )
    if as_json:
        print_json({**asdict(figures), "files": [str(file) for file in files]})
        return
    for concern in (*figures.concerns, *figures.unused_tracks):
        print(concern)
    print(f"terms: {figures.terms.sentence()}")
    print(files[0])


def export(
    where: ConfigOrOut,
    clip: Annotated[
        str, typer.Argument(help="A clip's key, or a part of it that no other key has.")
    ],
    overrides: Overrides = None,
    to: Annotated[
        str,
        typer.Option(
            help="mp4: a video with tracks; rerun: a Rerun recording; tapvid: TAP-Vid's arrays; "
            "tapvid3d: TAPVid-3D's arrays; colmap: a folder with a COLMAP model."
        ),
    ] = "mp4",
    file: Annotated[
        Path | None,
        typer.Option(
            help="The file or folder to write; by default KEY.mp4, KEY.rrd, KEY.npz, KEY.3d.npz or "
            "the folder KEY here."
        ),
    ] = None,
    anchor: Annotated[
        int | None,
        typer.Option(help="Index of the only anchor to write. A video always shows one."),
    ] = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """Export one clip for other programs: a video, a recording, arrays or a COLMAP model."""
    from manifests.snapshot import open_snapshot
    from pipeline.inspection.export import export_clip

    shown = open_snapshot(out_of(where, overrides), snapshot)
    exported = export_clip(shown, clip, to, file, anchor)
    if as_json:
        notes = {"notes": exported.notes} if exported.notes else {}
        print_json({"file": str(exported.file), **notes})
        return
    for note in exported.notes:
        print(note)
    print(exported.file)
