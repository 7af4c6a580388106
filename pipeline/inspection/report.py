"""The page of `pretrack report`: what a snapshot holds, to decide whether to train on it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import groupby
from string import Template

from manifests import charts
from manifests.charts import Bar, Chart
from manifests.snapshot import Snapshot
from manifests.terms import Terms
from manifests.wording import duration, pluralise, size
from pipeline.inspection.geometry_figures import GeometryFigures
from pipeline.inspection.report_figures import (
    GOOD,
    SAMPLED,
    SEED,
    Histogram,
    SnapshotFigures,
    SourceFigures,
    StageSpeed,
    measure,
)
from shards.files import Location, atomic_write
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule

_SHOWN_FAILURES = 12


def write_report(
    snapshot: Snapshot, folder: Location, rule: SampleRule = TRAINER_DEFAULTS
) -> tuple[SnapshotFigures, list[Location]]:
    """Measure a snapshot; write `index.html`, which needs no other file, and each chart as a PNG.

    rule: how training takes samples, to name tracks that it cannot use

    Returns the figures and the files. Raises PretrackError if a table cannot be read.
    """
    figures = measure(snapshot, rule)
    drawn = charts_of(figures)
    written = [folder / "index.html", *(folder / f"{name}.png" for name in drawn)]
    for name, chart in drawn.items():
        atomic_write(folder / f"{name}.png", charts.png(chart))
    atomic_write(folder / "index.html", page(figures, drawn).encode())
    return figures, written


def charts_of(figures: SnapshotFigures) -> dict[str, Chart]:
    """Draw the charts by name; leave out those without data."""
    bytes_by_part = [Bar(name, (part,), size(part)) for name, part in figures.bytes.items()]
    time_by_stage = [Bar(it.stage, (it.seconds,), _speed(it)) for it in figures.stages]
    drawn = {
        "clips": _clips_chart(figures),
        "lengths": _lengths_chart(figures.lengths),
        "visible": _fractions_chart(
            "Clips by visibility", figures.visible, "mean visibility of a clip's points"
        ),
        "motion": _fractions_chart(
            "Clips by motion",
            figures.motion,
            "fraction of the frame's diagonal; the last bar includes larger values",
        ),
        "bytes": charts.bars("Size by part", bytes_by_part),
        "stages": charts.bars("Worker time by build stage", time_by_stage),
    }
    if any(source.since_anchor for source in figures.sources):
        drawn["since_anchor"] = _since_anchor_chart(figures)
    drawn |= _inlier_charts(figures.geometry)
    if figures.failures:
        rows = [
            Bar(reason, (count,), f"{count:,} at {stage}")
            for stage, reason, count in figures.failures[:_SHOWN_FAILURES]
        ]
        drawn["failures"] = charts.bars("Left out or incomplete, by reason", rows)
    return drawn


def page(figures: SnapshotFigures, drawn: dict[str, Chart]) -> str:
    """Return the page. Names of sources and reasons are escaped: they are only ever text in it."""
    tracks = [
        f"{name} {figures.tracks[name]}"
        for name in ("tracker", "grid", "anchors")
        if name in figures.tracks
    ]
    return fill_template(
        title=f"Snapshot {figures.snapshot} of {figures.out}",
        heading=f"Snapshot {figures.snapshot}",
        about=" · ".join([figures.out, *tracks]),
        numbers=_numbers(figures),
        sections=_sections(figures, drawn),
    )


def fill_template(
    *,
    title: str,
    heading: str,
    about: str,
    numbers: Iterable[tuple[str, str]],
    sections: Iterable[str],
) -> str:
    """Return a page that needs no other file.

    numbers:  the figures at the top, as (name, value)
    sections: cards, as HTML (`section`); everything else is text, and is escaped
    """
    template = files("pipeline.inspection").joinpath("report.html").read_text("utf-8")
    colours = [
        f"--{role}: light-dark({charts.LIGHT[role]}, {charts.DARK[role]});" for role in charts.LIGHT
    ]
    tiles = [
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in numbers
    ]
    return Template(template).substitute(
        title=html.escape(title),
        variables=" ".join(colours),
        heading=html.escape(heading),
        about=html.escape(about),
        numbers="".join(tiles),
        sections="".join(sections),
    )


def _numbers(figures: SnapshotFigures) -> Iterator[tuple[str, str]]:
    """Yield the figures at the top of the page, as (name, value)."""
    yield "clips", f"{figures.clips:,}"
    yield "videos with clips", f"{sum(group.videos for group in figures.groups):,}"
    yield "frames", f"{figures.frames:,}"
    yield f"in {pluralise(figures.shards, 'shard')}", size(sum(figures.bytes.values()))
    if figures.clips:
        visible = sum(group.visible_fraction * group.clips for group in figures.groups)
        yield "mean visibility", f"{visible / figures.clips:.0%}"
        evaluation = sum(group.clips for group in figures.groups if group.split == "eval")
        yield "of clips for evaluation", f"{evaluation / figures.clips:.1%}"


def _sections(figures: SnapshotFigures, drawn: dict[str, Chart]) -> Iterator[str]:
    """Yield the page's sections as HTML, in their order."""
    if concerns := [*figures.concerns, *figures.unused_tracks]:
        items = "".join(f"<li>{html.escape(concern)}</li>" for concern in concerns)
        yield section("Before you train on this", f"<ul>{items}</ul>", wide=True)
    yield section("Sources", _sources_table(figures.groups), wide=True)
    yield section("Terms", _terms_table(figures.terms), f"Together: {figures.terms.sentence()}.")
    sampled = (
        f"From the tracks of {sum(it.clips for it in figures.sources):,} clips: "
        f"at most {SAMPLED}, picked with seed {SEED}."
    )
    spent = duration(sum(it.seconds for it in figures.stages))
    notes = {
        "clips": "",
        "lengths": "",
        "visible": f'data.where: "{GOOD}" keeps {figures.good:,} of {figures.clips:,} clips.',
        "motion": "How far the median point gets from its anchor while it is visible.",
        "since_anchor": f"Far from the anchor frame there are fewer clips. {sampled}",
        "cycles": sampled,
        "geometry": 'data.where: "epipolar_inliers > 0.9 and turn > 20" chooses by these columns.',
        "inliers_by_gap": f"Of clips with poses. {sampled}",
        "inliers_by_angle": "A tracker loses points and drifts as the camera turns.",
        "bytes": _mean_sizes(figures),
        "stages": f"{spent} in total; frames/s per worker. Re-tracked shards kept their frames.",
        "failures": "'pretrack status' names every one.",
    }
    for name, note in notes.items():
        if name == "cycles":
            yield section("Forward-backward error", _cycles_table(figures), note)
        elif name == "geometry":
            if any(source.scored for source in figures.geometry.sources):
                body = _geometry_tables(figures.geometry)
                yield section("Tracks checked by cameras", body, note, wide=True)
        elif name in drawn:
            chart = drawn[name]
            yield section(chart.title, charts.svg(chart), note, wide=name == "failures")


def section(title: str, body: str, note: str = "", *, wide: bool = False) -> str:
    """Return a card: a title, a body of HTML and a note; it spans both columns if `wide`."""
    below = f'<p class="soft small">{html.escape(note)}</p>' if note else ""
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h2>{html.escape(title)}</h2>{body}{below}</section>"


def _sources_table(groups: tuple[SourceFigures, ...]) -> str:
    """Return a table with a row per source and split."""
    heads = ["source", "dataset", "split", "videos", "clips", "frames", "visible", "motion"]
    rows = [
        [
            *(group.source, group.dataset, group.split),
            *(f"{number:,}" for number in (group.videos, group.clips, group.frames)),
            *(f"{group.visible_fraction:.0%}", f"{group.motion:.1%}"),
        ]
        for group in groups
    ]
    return table(heads, rows, text_columns=3)


def _terms_table(terms: Terms) -> str:
    """Return a table with a row per licence."""
    answers = {True: "yes", False: "no", None: "not stated"}
    covered = [("frames", licence) for licence in terms.frames]
    covered += [("tracks", terms.tracks)] if terms.tracks else []
    rows = [
        [what, licence.id, answers[licence.commercial], answers[licence.redistribution]]
        for what, licence in covered
    ]
    return table(["of", "licence", "commercial use", "redistribution"], rows, text_columns=4)


def _cycles_table(figures: SnapshotFigures) -> str:
    """Return a table of forward-backward errors by source, or why there are none."""
    measured = [source for source in figures.sources if source.cycle_median is not None]
    if not measured:
        why = (
            "No point could be followed forward and backward: that takes two anchors, and points "
            "that stay visible between them."
        )
        return f"<p>{why}</p>"
    rows = [
        [it.source, f"{it.cycles:,}", f"{it.cycle_median:.2f} px", f"{it.cycle_p90:.2f} px"]
        for it in measured
    ]
    explained = (
        "Distance between a point and where it arrives after it is followed from one anchor to "
        "another and back, along the tracks around it; in pixels of the stored frames."
    )
    heads = ["source", "points", "median", "90th percentile"]
    return f"<p>{explained}</p>{table(heads, rows, text_columns=1)}"


def _geometry_tables(geometry: GeometryFigures) -> str:
    """Return a table of scores by source, and of the videos with the fewest inliers."""
    explained = (
        "Medians over clips, in pixels of the stored frames; inliers are within 2 px of their "
        "anchor's epipolar line. Moving objects leave their lines, too."
    )
    heads = ["source", "clips", "posed", "turn", "baseline", "epipolar", "inliers"]
    rows = [
        [
            *(it.source, f"{it.clips:,}", f"{it.posed:,}"),
            *(_shown(it.turn, ".0f", "°"), _shown(it.baseline, ".2f")),
            *(_shown(it.epipolar_px, ".2f", " px"), _shown(it.epipolar_inliers, ".0%")),
            *(_shown(it.reprojection_px, ".2f", " px"), _shown(it.cycle_px, ".2f", " px")),
        ]
        for it in geometry.sources
    ]
    body = f"<p>{explained}</p>{table([*heads, 'reprojection', 'cycle'], rows, text_columns=1)}"
    if geometry.suspicious:
        listed = [
            [
                *(it.source, it.video_id, f"{it.clips:,}", f"{it.epipolar_inliers:.0%}"),
                _shown(it.epipolar_px, ".2f", " px"),
            ]
            for it in geometry.suspicious
        ]
        heads = ["source", "video", "clips", "inliers", "epipolar"]
        body += "<p>Videos whose tracks and poses disagree, the worst first:</p>"
        body += table(heads, listed, text_columns=2)
    return body


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _inlier_charts(geometry: GeometryFigures) -> dict[str, Chart]:
    """Draw the part of inliers by frames from the anchor, and by angle; leave out empty ones."""
    charted = {
        "inliers_by_gap": ("Epipolar inliers by frames from the anchor", geometry.by_gap, ""),
        "inliers_by_angle": ("Epipolar inliers by angle of the camera", geometry.by_angle, "°"),
    }
    drawn = {}
    for name, (title, bins, unit) in charted.items():
        # A bin of whole frames ends before the next begins.
        rows = [
            Bar(
                f"{it.low:.0f} to {it.high - (not unit):.0f}{unit}",
                (it.inliers,),
                f"{it.inliers:.0%} of {it.points:,} points",
            )
            for it in bins
        ]
        if rows:
            drawn[name] = charts.bars(title, rows)
    return drawn


def table(heads: list[str], rows: list[list[str]], text_columns: int) -> str:
    """Return a table; its first columns are text, the others numbers."""

    def line(cells: list[str], tag: str) -> str:
        marks = [' class="text"' if number < text_columns else "" for number in range(len(cells))]
        written = (
            f"<{tag}{mark}>{html.escape(cell)}</{tag}>"
            for mark, cell in zip(marks, cells, strict=True)
        )
        return f"<tr>{''.join(written)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(heads, "th")}{body}</table></div>'


def _clips_chart(figures: SnapshotFigures) -> Chart:
    """Draw the clips of each source, by split."""
    splits = sorted({group.split for group in figures.groups}, reverse=True)
    rows = []
    for source, groups in groupby(figures.groups, key=lambda group: group.source):
        counts = {group.split: group.clips for group in groups}
        parts = tuple(counts.get(split, 0) for split in splits)
        rows.append(Bar(source, parts, f"{sum(parts):,}"))
    return charts.bars("Clips by source and split", rows, splits)


def _lengths_chart(lengths: Histogram) -> Chart:
    """Draw how many clips have how many frames, with ticks at the shortest and the longest."""
    filled = [index for index, count in enumerate(lengths.counts) if count] or [0]
    middles = {(lengths.edges[i] + lengths.edges[i + 1]) / 2 for i in (filled[0], filled[-1])}
    ticks = [(middle, f"{middle:.0f}") for middle in sorted(middles)]
    return charts.columns(
        "Clips by length", lengths.edges, lengths.counts, ticks, "stored frames per clip"
    )


def _fractions_chart(title: str, histogram: Histogram, unit: str) -> Chart:
    """Draw a histogram of fractions, with ticks in percent at the middle and the end."""
    end = histogram.edges[-1]
    digits = 0 if end >= 0.2 else 1
    ticks = [(0.0, "0"), *((end * part, f"{end * part:.{digits}%}") for part in (0.5, 1))]
    return charts.columns(title, histogram.edges, histogram.counts, ticks, unit)


def _since_anchor_chart(figures: SnapshotFigures) -> Chart:
    """Draw the mean visibility over time of the largest sources, as many as there are colours."""
    clips = {source.source: 0 for source in figures.sources if source.since_anchor}
    for group in figures.groups:
        if group.source in clips:
            clips[group.source] += group.clips
    largest = sorted(clips, key=lambda name: -clips[name])[: len(charts.SERIES)]
    since = {source.source: source.since_anchor for source in figures.sources}
    series = {name: since[name] for name in largest}
    offsets = [offset for points in series.values() for offset, _ in points]
    ticks: dict[float, str] = {
        offset: f"{offset:+d}" if offset else "0" for offset in (min(offsets), 0, max(offsets))
    }
    return charts.lines(
        "Visibility around the anchor", series, "frames from the anchor", ticks=ticks
    )


def _speed(stage: StageSpeed) -> str:
    """Describe how long a stage took, and how many frames it made per second."""
    speed = "" if stage.frames_per_second is None else f", {stage.frames_per_second:,.0f} frames/s"
    return duration(stage.seconds) + speed


def _mean_sizes(figures: SnapshotFigures) -> str:
    """Describe the mean bytes of a frame and of a clip's tracks; "" without clips."""
    if not figures.clips:
        return ""
    frame = figures.bytes["frames"] // max(1, figures.frames)
    tracks = figures.bytes["tracks"] // figures.clips
    return f"{size(frame)} per frame; {size(tracks)} of tracks per clip."
