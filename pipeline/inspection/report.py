"""A page that says what a snapshot holds, for whoever is to decide whether to train on it: `pretrack report`."""

from __future__ import annotations

import html
from collections.abc import Iterator
from itertools import groupby

from manifests.snapshot import Snapshot
from manifests.wording import duration, size
from pipeline.inspection import charts
from pipeline.inspection.charts import Bar, Chart
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

_SHOWN_FAILURES = 12

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; {variables} --page: light-dark(#f6f7f9, #101215);
 font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }}
:root[data-theme=light] {{ color-scheme: light }} :root[data-theme=dark] {{ color-scheme: dark }}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; max-width: 68rem; padding: 1.2rem clamp(1rem, 3vw, 2rem) 3rem; background: var(--page); color: var(--ink) }}
header {{ display: flex; gap: 1rem; align-items: start; justify-content: space-between }}
h1 {{ margin: 0; font-size: 1.4rem; letter-spacing: -.01em; overflow-wrap: anywhere }}
h2 {{ margin: 0 0 .6rem; font-size: 1rem }}
p {{ margin: 0 }} .soft {{ color: var(--soft) }} .small {{ font-size: .85rem; margin-top: .5rem }}
button {{ width: 2.4rem; height: 2.4rem; flex: none; border: 1px solid var(--line); border-radius: 50%; background: var(--ground);
 color: inherit; font: inherit; cursor: pointer }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 }}
.figures div, section {{ background: var(--ground); border: 1px solid var(--line); border-radius: .8rem; padding: .9rem 1.1rem }}
.figures b {{ display: block; font-size: 1.45rem; font-weight: 600; letter-spacing: -.02em; font-variant-numeric: tabular-nums }}
.figures span {{ color: var(--soft); font-size: .85rem }}
main {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem }}
section {{ min-width: 0 }} .wide {{ grid-column: 1 / -1 }}
svg {{ display: block; overflow: visible; width: 100%; max-width: 34rem; height: auto; font-family: inherit }}
ul {{ margin: 0; padding-left: 1.1rem }} li + li {{ margin-top: .3rem }}
.scroll {{ overflow-x: auto; background: linear-gradient(to left, var(--ground) 1.5rem, transparent) right / 3rem 100% local,
 linear-gradient(to left, var(--line), transparent) right / 1rem 100%; background-repeat: no-repeat }}
p + .scroll {{ margin-top: .6rem }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
th {{ font-weight: 500; color: var(--soft); font-size: .85rem; text-align: right }} td {{ text-align: right }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }}
tr:last-child td {{ border-bottom: 0 }} .text {{ text-align: left; padding-left: 0 }} code {{ overflow-wrap: anywhere }}
@media (max-width: 760px) {{
 main {{ grid-template-columns: minmax(0, 1fr) }} table, th {{ font-size: .82rem }} th, td {{ padding: .3rem .4rem }}
}}
</style></head><body>
<header><div><h1>{heading}</h1><p class="soft">{about}</p></div>
<button type="button" aria-label="Dark or light" title="Dark or light">◐</button></header>
<div class="figures">{numbers}</div>
<main>{sections}</main>
<script>
document.querySelector("button").addEventListener("click", () => {{
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}});
</script></body></html>
"""


def write_report(snapshot: Snapshot, folder: Location) -> tuple[SnapshotFigures, list[Location]]:
    """Measures a snapshot and writes `index.html`, which needs no other file, and every chart as a PNG. Returns the files.

    Raises PretrackError if a table cannot be read.
    """
    figures = measure(snapshot)
    drawn = charts_of(figures)
    files = [folder / "index.html", *(folder / f"{name}.png" for name in drawn)]
    for name, chart in drawn.items():
        atomic_write(folder / f"{name}.png", charts.png(chart))
    atomic_write(folder / "index.html", page(figures, drawn).encode())
    return figures, files


def charts_of(figures: SnapshotFigures) -> dict[str, Chart]:
    """The charts by name; those with nothing to show are not there."""
    drawn = {
        "clips": _clips(figures),
        "lengths": _lengths(figures.lengths),
        "visible": _shares(
            "Clips by visible part", figures.visible, "mean visibility of a clip's points"
        ),
        "motion": _shares(
            "Clips by motion",
            figures.motion,
            "part of the frame's diagonal; the last column has what is beyond",
        ),
        "bytes": charts.bars(
            "What takes the room",
            [Bar(name, (part,), size(part)) for name, part in figures.bytes.items()],
        ),
        "stages": charts.bars(
            "What the build's workers spent",
            [Bar(it.stage, (it.seconds,), _spent(it)) for it in figures.stages],
        ),
    }
    since = {
        source.source: source.since_anchor for source in figures.sources if source.since_anchor
    }
    if since:
        largest = sorted(
            since,
            key=lambda name: -sum(group.clips for group in figures.groups if group.source == name),
        )
        shown = {name: since[name] for name in largest[: len(charts.SERIES)]}
        drawn["since_anchor"] = charts.lines(
            "Visible since the anchor", shown, "frames since the anchor"
        )
    if figures.failures:
        rows = [
            Bar(reason, (count,), f"{count:,} at {stage}")
            for stage, reason, count in figures.failures[:_SHOWN_FAILURES]
        ]
        drawn["failures"] = charts.bars("Left out, and why", rows)
    return drawn


def page(figures: SnapshotFigures, drawn: dict[str, Chart]) -> str:
    """The page, in one piece. Names of sources and reasons are only ever text in it."""
    roles = [
        f"--{role}: light-dark({charts.LIGHT[role]}, {charts.DARK[role]});" for role in charts.LIGHT
    ]
    tracks = [
        f"{name} {figures.tracks[name]}"
        for name in ("tracker", "grid", "anchors")
        if name in figures.tracks
    ]
    return _PAGE.format(
        title=_text(f"Snapshot {figures.snapshot} of {figures.out}"),
        variables=" ".join(roles),
        heading=_text(f"Snapshot {figures.snapshot}"),
        about=_text(" · ".join([figures.out, *tracks])),
        numbers="".join(
            f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>"
            for name, value in _numbers(figures)
        ),
        sections="".join(_sections(figures, drawn)),
    )


def _numbers(figures: SnapshotFigures) -> Iterator[tuple[str, str]]:
    yield "clips", f"{figures.clips:,}"
    yield "videos with clips", f"{sum(group.videos for group in figures.groups):,}"
    yield "frames", f"{figures.frames:,}"
    yield f"in {figures.shards:,} shards", size(sum(figures.bytes.values()))
    if figures.clips:
        visible = (
            sum(group.visible_fraction * group.clips for group in figures.groups) / figures.clips
        )
        yield "visible on average", f"{visible:.0%}"
        evaluation = (
            sum(group.clips for group in figures.groups if group.split == "eval") / figures.clips
        )
        yield "kept for evaluation", f"{evaluation:.1%}"


def _sections(figures: SnapshotFigures, drawn: dict[str, Chart]) -> Iterator[str]:
    if figures.concerns:
        items = "".join(f"<li>{_text(concern)}</li>" for concern in figures.concerns)
        yield f'<section class="wide"><h2>Before you train on it</h2><ul>{items}</ul></section>'
    yield f'<section class="wide"><h2>Sources</h2>{_sources_table(figures.groups)}</section>'
    sampled = f"From the tracks of {sum(it.clips for it in figures.sources):,} clips: at most {SAMPLED}, picked with seed {SEED}."
    spent = duration(sum(it.seconds for it in figures.stages))
    for name, note in (
        ("clips", ""),
        ("lengths", ""),
        ("visible", f'data.where: "{GOOD}" keeps {figures.good:,} of {figures.clips:,} clips.'),
        ("motion", "How far the median point gets from its anchor while it is visible."),
        ("since_anchor", f"Mean visibility; far from the anchor there are fewer clips. {sampled}"),
        ("cycles", sampled),
        ("bytes", _each(figures)),
        (
            "stages",
            f"{spent} in all; frames a second of one worker. Re-tracked shards kept their frames.",
        ),
        ("failures", "'pretrack status' names every one."),
    ):
        if name == "cycles":
            yield _section("There and back", _cycles_table(figures), note)
        elif name in drawn:
            yield _section(
                drawn[name].title, charts.svg(drawn[name]), note, wide=name == "failures"
            )


def _section(title: str, body: str, note: str, wide: bool = False) -> str:
    said = f'<p class="soft small">{_text(note)}</p>' if note else ""
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h2>{_text(title)}</h2>{body}{said}</section>"


def _sources_table(groups: tuple[SourceFigures, ...]) -> str:
    rows = [
        [
            *(group.source, group.dataset, group.split),
            *(f"{number:,}" for number in (group.videos, group.clips, group.frames)),
            *(f"{group.visible_fraction:.0%}", f"{group.motion:.1%}"),
        ]
        for group in groups
    ]
    return _table(
        ["source", "dataset", "split", "videos", "clips", "frames", "visible", "motion"], rows, 3
    )


def _cycles_table(figures: SnapshotFigures) -> str:
    """Forward-backward errors, or why there are none."""
    known = [source for source in figures.sources if source.cycle_median is not None]
    if not known:
        why = "Points cannot be followed there and back: that takes two anchors, and points that stay visible between them."
        return f"<p>{why}</p>"
    rows = [
        [it.source, f"{it.cycles:,}", f"{it.cycle_median:.2f} px", f"{it.cycle_p90:.2f} px"]
        for it in known
    ]
    explained = (
        "How far points come home from where they started, followed from one anchor to another and back along the tracks "
        "around them; pixels of the stored frames."
    )
    return f"<p>{explained}</p>" + _table(["source", "points", "median", "a tenth above"], rows, 1)


def _table(heads: list[str], rows: list[list[str]], texts: int) -> str:
    """A table whose first columns are text and whose others are numbers."""

    def line(cells: list[str], tag: str) -> str:
        marks = [' class="text"' if number < texts else "" for number in range(len(cells))]
        return (
            "<tr>"
            + "".join(
                f"<{tag}{mark}>{_text(cell)}</{tag}>"
                for mark, cell in zip(marks, cells, strict=True)
            )
            + "</tr>"
        )

    return f'<div class="scroll"><table>{line(heads, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def _clips(figures: SnapshotFigures) -> Chart:
    """Clips of each source, by split."""
    splits = sorted({group.split for group in figures.groups}, reverse=True)
    rows = []
    for source, groups in groupby(figures.groups, key=lambda group: group.source):
        counts = {group.split: group.clips for group in groups}
        rows.append(
            Bar(
                source, tuple(counts.get(split, 0) for split in splits), f"{sum(counts.values()):,}"
            )
        )
    return charts.bars("Clips by source and split", rows, splits)


def _lengths(lengths: Histogram) -> Chart:
    shown = [index for index, count in enumerate(lengths.counts) if count]
    first, last = (min(shown), max(shown)) if shown else (0, 0)
    ticks = {(lengths.edges[index] + lengths.edges[index + 1]) / 2 for index in (first, last)}
    return charts.columns(
        "Clips by length",
        lengths.edges,
        lengths.counts,
        [(tick, f"{tick:.0f}") for tick in sorted(ticks)],
        "stored frames",
    )


def _shares(title: str, histogram: Histogram, unit: str) -> Chart:
    most = histogram.edges[-1]
    ticks = [
        (0.0, "0"),
        *(
            (most * part, f"{most * part:.0%}" if most >= 0.2 else f"{most * part:.1%}")
            for part in (0.5, 1)
        ),
    ]
    return charts.columns(title, histogram.edges, histogram.counts, ticks, unit)


def _spent(stage: StageSpeed) -> str:
    speed = "" if stage.frames_per_second is None else f", {stage.frames_per_second:,.0f} frames/s"
    return duration(stage.seconds) + speed


def _each(figures: SnapshotFigures) -> str:
    """What a frame and a clip's tracks take."""
    if not figures.clips:
        return ""
    frame, tracks = (
        figures.bytes["frames"] // max(1, figures.frames),
        figures.bytes["tracks"] // figures.clips,
    )
    return f"{size(frame)} a frame; {size(tracks)} of tracks a clip."


def _text(text: str) -> str:
    return html.escape(text)
