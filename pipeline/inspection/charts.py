"""Small charts: shapes with roles instead of colours, as SVG for a page (dark and light) and as PNG for everything else."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
"""The roles of what is compared, in order."""

LIGHT = {
    "ground": "#ffffff",
    "ink": "#16191d",
    "soft": "#5c6570",
    "line": "#e1e4e9",
    "s0": "#0b63ce",
    "s1": "#e07b00",
    "s2": "#138a5b",
    "s3": "#b83280",
    "s4": "#7a5af0",
    "s5": "#8a7a00",
}
DARK = {
    "ground": "#191c21",
    "ink": "#e9ebee",
    "soft": "#9aa3ae",
    "line": "#2b3037",
    "s0": "#6cb0ff",
    "s1": "#ffb14d",
    "s2": "#4fd1a1",
    "s3": "#f28cc4",
    "s4": "#ac98ff",
    "s5": "#d6c74b",
}

WIDTH = 440
_SIZE = 12
_LETTER = 7.0
_PLOT = (44.0, 12.0, WIDTH - 20.0, 168.0)
_FINE = 3


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    role: str


@dataclass(frozen=True)
class Words:
    """A line of text. `x` is where it starts, ends or has its middle, `y` its baseline."""

    x: float
    y: float
    text: str
    role: str = "soft"
    place: str = "start"


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    role: str
    width: float = 1.0


@dataclass(frozen=True)
class Chart:
    """What is drawn, in units of about a pixel; `title` says what it shows."""

    title: str
    height: float
    marks: tuple[Box | Words | Stroke, ...]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: its parts from left to right, and what is said behind it."""

    label: str
    parts: tuple[float, ...]
    said: str


def bars(title: str, rows: Sequence[Bar], parts: Sequence[str] = ()) -> Chart:
    """Horizontal bars, one a row, all to one scale; `parts` names their parts where there are several."""
    longest = max((sum(row.parts) for row in rows), default=0) or 1
    labels = min(200.0, 16 + _LETTER * max((len(row.label) for row in rows), default=0))
    room = WIDTH - labels - 10 - _LETTER * max((len(row.said) for row in rows), default=0)
    marks = _legend(parts, 18) if parts else []
    top = 32.0 if parts else 8.0
    for number, row in enumerate(rows):
        y = top + 24 * number
        marks.append(
            Words(labels - 8, y + 13, _cut(row.label, int((labels - 16) / _LETTER)), "ink", "end")
        )
        x = labels
        for part, role in zip(row.parts, SERIES, strict=False):
            width = room * part / longest
            marks.append(Box(x, y + 2, max(width, 0.75 if part else 0), 14, role))
            x += width
        marks.append(Words(x + 6, y + 13, row.said))
    return Chart(title, top + 24 * len(rows) + 4, tuple(marks))


def columns(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    unit: str,
) -> Chart:
    """A histogram: counts [bins] between edges [bins + 1]; `ticks` are values and what they are called."""
    left, top, right, bottom = _PLOT
    most = max([*counts, 1])
    first, last = edges[0], edges[-1]
    marks = _frame([(0, "0"), (most, f"{most:,}")], most)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, end = (left + (right - left) * (edge - first) / (last - first) for edge in (low, high))
        height = (bottom - top) * count / most
        marks.append(Box(x + 0.5, bottom - height, max(end - x - 1, 0.5), height, "s0"))
    marks += [
        Words(
            left + (right - left) * (value - first) / (last - first),
            bottom + 16,
            said,
            place="middle",
        )
        for value, said in ticks
    ]
    marks.append(Words(right, bottom + 34, unit, place="end"))
    return Chart(title, bottom + 40, tuple(marks))


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> Chart:
    """Lines through (x, y), y from 0 to 1 and shown as a percentage; x are whole numbers."""
    left, top, right, bottom = _PLOT
    xs = [x for points in series.values() for x, _ in points] or [0.0]
    first, last = min(xs), max(*xs, min(xs) + 1)
    marks = _frame([(part, f"{part:.0%}") for part in (0, 0.25, 0.5, 0.75, 1)], 1)
    for points, role in zip(series.values(), SERIES, strict=False):
        path = tuple(
            (left + (right - left) * (x - first) / (last - first), bottom - (bottom - top) * y)
            for x, y in points
        )
        marks.append(Stroke(path, role, 2))
    for x in sorted({first, 0.0, last}):
        marks.append(
            Words(
                left + (right - left) * (x - first) / (last - first),
                bottom + 16,
                f"{x:+.0f}" if x else "0",
                place="middle",
            )
        )
    marks.append(Words(right, bottom + 34, unit, place="end"))
    legend = _legend(list(series)[: len(SERIES)], bottom + 54) if len(series) > 1 else []
    end = max((mark.y for mark in legend if isinstance(mark, Words)), default=bottom + 34)
    return Chart(title, end + 8, (*marks, *legend))


def svg(chart: Chart) -> str:
    """The chart as an element of a page, whose style sheet gives `--ROLE` its colour."""
    shapes = "".join(_shape(mark) for mark in chart.marks)
    title = html.escape(chart.title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {chart.height:.0f}" role="img" aria-label="{title}" font-size="{_SIZE}"><title>{title}</title>'
        f"{shapes}</svg>"
    )


def png(chart: Chart, times: int = 2) -> bytes:
    """The chart in light colours under its title, `times` as many pixels as units."""
    fine = times * _FINE
    above = 28
    image = Image.new("RGB", (WIDTH * fine, round(chart.height + above) * fine), LIGHT["ground"])
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_SIZE * fine)
    draw.text(
        (12 * fine, 20 * fine),
        chart.title,
        LIGHT["ink"],
        ImageFont.load_default(14 * fine),
        anchor="ls",
    )
    for mark in chart.marks:
        match mark:
            case Box(x, y, width, height, role):
                box = [
                    x * fine,
                    (y + above) * fine,
                    (x + width) * fine,
                    (y + height + above) * fine,
                ]
                if width and height:
                    draw.rectangle(box, LIGHT[role])
            case Words(x, y, text, role, place):
                draw.text(
                    (x * fine, (y + above) * fine),
                    text,
                    LIGHT[role],
                    font,
                    anchor={"start": "ls", "middle": "ms", "end": "rs"}[place],
                )
            case Stroke(points, role, width):
                path = [(x * fine, (y + above) * fine) for x, y in points]
                draw.line(path, LIGHT[role], round(width * fine), joint="curve")
    data = io.BytesIO()
    image.resize(
        (WIDTH * times, round(chart.height + above) * times), Image.Resampling.LANCZOS
    ).save(data, "PNG", optimize=True)
    return data.getvalue()


def _shape(mark: Box | Words | Stroke) -> str:
    match mark:
        case Box(x, y, width, height, role):
            return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="var(--{role})"/>'
        case Words(x, y, text, role, place):
            return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{place}" fill="var(--{role})">{html.escape(text)}</text>'
        case Stroke(points, role, width):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polyline points="{path}" fill="none" stroke="var(--{role})" stroke-width="{width}" stroke-linejoin="round"/>'


def _frame(heights: Sequence[tuple[float, str]], most: float) -> list[Box | Words | Stroke]:
    """Horizontal lines at some heights of `most`, with what they are called."""
    left, top, right, bottom = _PLOT
    marks: list[Box | Words | Stroke] = []
    for value, said in heights:
        y = bottom - (bottom - top) * value / most
        marks += [
            Stroke(((left, y), (right, y)), "line"),
            Words(left - 6, y + 4, said, place="end"),
        ]
    return marks


def _legend(names: Sequence[str], y: float) -> list[Box | Words | Stroke]:
    """What the colours mean, in as many lines as it takes, the first on the baseline `y`."""
    marks: list[Box | Words | Stroke] = []
    x = 12.0
    for name, role in zip(names, SERIES, strict=False):
        said = _cut(name, 32)
        width = 15 + _LETTER * len(said) + 14
        if x > 12 and x + width > WIDTH:
            x, y = 12.0, y + 18
        marks += [Box(x, y - 9, 10, 10, role), Words(x + 15, y, said)]
        x += width
    return marks


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
