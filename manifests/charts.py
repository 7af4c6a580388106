"""Small charts, drawn as SVG for a page (dark and light) and as PNG for everything else.

A chart is a list of marks: rectangles, lines and texts, whose colours are named by their role.
`pipeline` and `trainer` draw all charts with this module. Only `png` imports Pillow.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
"""Roles of the series that a chart compares, in order."""
BASELINES = ("b0", "b1")
"""Roles of series that others are measured against; they are drawn thin and grey."""

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
    "b0": "#6e6e6e",
    "b1": "#afafaf",
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
    "b0": "#9a9a9a",
    "b1": "#6a6a6a",
}

WIDTH = 440
"""Width of every chart, in units of about a pixel."""
_FONT_SIZE = 12
_LETTER = 7.0  # width of an average letter at that size
_LEFT, _TOP, _RIGHT, _BOTTOM = 44.0, 12.0, WIDTH - 20.0, 168.0  # of the area between the axes
_SUPERSAMPLED = 3  # Pillow draws without antialiasing: draw larger, then shrink


@dataclass(frozen=True)
class Box:
    """A filled rectangle; (x, y) is its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    role: str


@dataclass(frozen=True)
class Text:
    """A line of text on the baseline `y`; `anchor` says which part of it is at `x`."""

    x: float
    y: float
    text: str
    role: str = "soft"
    anchor: str = "start"


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    role: str
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """A filled circle around (x, y)."""

    x: float
    y: float
    radius: float
    role: str


Mark = Box | Text | Stroke | Dot


@dataclass(frozen=True)
class Chart:
    """The marks of a chart, back to front, and the title that says what it shows."""

    title: str
    height: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: its label, its parts from left to right, and the text after them."""

    label: str
    parts: tuple[float, ...]
    note: str


def bars(title: str, rows: Sequence[Bar], parts: Sequence[str] = ()) -> Chart:
    """Draw horizontal bars, one per row; `parts` names the parts if there are several."""
    longest = max((sum(row.parts) for row in rows), default=0) or 1
    label_width = min(200.0, 16 + _LETTER * max((len(row.label) for row in rows), default=0))
    note_width = _LETTER * max((len(row.note) for row in rows), default=0)
    # the longest bar ends where the widest note still fits behind it
    bar_width = WIDTH - label_width - 10 - note_width
    marks = _legend(dict(zip(parts, SERIES, strict=False)), 18) if parts else []
    top = 32.0 if parts else 8.0
    for number, row in enumerate(rows):
        y = top + 24 * number
        label = _shortened(row.label, int((label_width - 16) / _LETTER))
        marks.append(Text(label_width - 8, y + 13, label, "ink", "end"))
        x = label_width
        for part, role in zip(row.parts, SERIES, strict=False):
            width = bar_width * part / longest
            # a part that is not zero stays visible
            marks.append(Box(x, y + 2, max(width, 0.75 if part else 0), 14, role))
            x += width
        marks.append(Text(x + 6, y + 13, row.note))
    return Chart(title, top + 24 * len(rows) + 4, tuple(marks))


def columns(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    unit: str,
) -> Chart:
    """Draw a histogram: counts [bins] between edges [bins + 1]; `ticks` are labelled values."""
    highest = max([*counts, 1])
    scale = (_RIGHT - _LEFT) / (edges[-1] - edges[0])
    marks = _gridlines({0: "0", highest: f"{highest:,}"}, highest)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, end = (_LEFT + scale * (edge - edges[0]) for edge in (low, high))
        height = (_BOTTOM - _TOP) * count / highest
        # half a unit on either side keeps neighbours apart
        marks.append(Box(x + 0.5, _BOTTOM - height, max(end - x - 1, 0.5), height, "s0"))
    for value, label in ticks:
        x = _LEFT + scale * (value - edges[0])
        marks.append(Text(x, _BOTTOM + 16, label, anchor="middle"))
    marks.append(Text(_RIGHT, _BOTTOM + 34, unit, anchor="end"))
    return Chart(title, _BOTTOM + 40, tuple(marks))


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    unit: str,
    *,
    ticks: Mapping[float, str],
    baselines: Collection[str] = (),
    dots: bool = False,
    highest: float = 1.0,
    form: str = ".0%",
) -> Chart:
    """Draw a line through the points (x, y) of each series, y from 0 to `highest`.

    A y of NaN leaves a gap. `ticks` maps values of x to their labels, `baselines` names the series
    that are thin and grey, `dots` marks every point, and `form` is the format of y's labels.
    """
    xs = [*ticks, *(x for points in series.values() for x, _ in points)] or [0.0]
    first, last = min(xs), max(*xs, min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (_RIGHT - _LEFT) * (x - first) / (
            last - first
        ), _BOTTOM - height * y / highest

    height = _BOTTOM - _TOP
    roles = _roles(series, baselines)
    grid = [highest * part for part in (0, 0.25, 0.5, 0.75, 1)]
    marks = _gridlines({value: format(value, form) for value in grid}, highest)
    # baselines lie below the others
    for name in sorted(series, key=lambda name: name not in baselines):
        role, width = roles[name], 1 if name in baselines else 2
        path = [at(x, y) if math.isfinite(y) else None for x, y in series[name]]
        marks += [Stroke(piece, role, width) for piece in _pieces(path)]
        marks += [Dot(*point, width + 1, role) for point in path if point and dots]
    for x, label in ticks.items():
        marks.append(Text(at(x, 0)[0], _BOTTOM + 16, label, anchor="middle"))
    marks.append(Text(_RIGHT, _BOTTOM + 34, unit, anchor="end"))
    legend = _legend(roles, _BOTTOM + 54) if len(series) > 1 else []
    end = max((mark.y for mark in legend if isinstance(mark, Text)), default=_BOTTOM + 34)
    return Chart(title, end + 8, (*marks, *legend))


def svg(chart: Chart) -> str:
    """Return an SVG element for a page whose style sheet defines `--ROLE` as a colour."""
    shapes = "".join(_svg_shape(mark) for mark in chart.marks)
    title = html.escape(chart.title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {chart.height:.0f}" role="img" aria-label="{title}" '
        f'font-size="{_FONT_SIZE}"><title>{title}</title>{shapes}</svg>'
    )


def png(chart: Chart, pixels_per_unit: int = 2) -> bytes:
    """Return the chart in light colours under its title, as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    scale = pixels_per_unit * _SUPERSAMPLED
    title_height = 28
    height = round(chart.height + title_height)
    image = Image.new("RGB", (WIDTH * scale, height * scale), LIGHT["ground"])
    draw = ImageDraw.Draw(image)
    title_font = ImageFont.load_default((_FONT_SIZE + 2) * scale)
    draw.text((12 * scale, 20 * scale), chart.title, LIGHT["ink"], title_font, anchor="ls")
    font = ImageFont.load_default(_FONT_SIZE * scale)

    def at(x: float, y: float) -> tuple[float, float]:
        return x * scale, (y + title_height) * scale

    for mark in chart.marks:
        colour = LIGHT[mark.role]
        match mark:
            case Box(x, y, width, box_height):
                if width and box_height:
                    draw.rectangle([at(x, y), at(x + width, y + box_height)], colour)
            case Text(x, y, text, _, anchor):
                draw.text(at(x, y), text, colour, font, anchor=f"{_PILLOW_ANCHORS[anchor]}s")
            case Stroke(points, _, width):
                path = [at(x, y) for x, y in points]
                draw.line(path, colour, round(width * scale), joint="curve")
            case Dot(x, y, radius):
                draw.ellipse([at(x - radius, y - radius), at(x + radius, y + radius)], colour)
    file = io.BytesIO()
    size = (WIDTH * pixels_per_unit, height * pixels_per_unit)
    image.resize(size, Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()


_PILLOW_ANCHORS = {"start": "l", "middle": "m", "end": "r"}


def _svg_shape(mark: Mark) -> str:
    """Return a mark as an SVG element."""
    fill = f'fill="var(--{mark.role})"'
    match mark:
        case Box(x, y, width, height):
            size = f'width="{width:.1f}" height="{height:.1f}"'
            return f'<rect x="{x:.1f}" y="{y:.1f}" {size} {fill}/>'
        case Text(x, y, text, _, anchor):
            words = html.escape(text)
            return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {fill}>{words}</text>'
        case Dot(x, y, radius):
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" {fill}/>'
        case Stroke(points, role, width):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return (
                f'<polyline points="{path}" fill="none" stroke="var(--{role})" '
                f'stroke-width="{width}" stroke-linejoin="round"/>'
            )


def _gridlines(labels: Mapping[float, str], highest: float) -> list[Mark]:
    """Draw a horizontal line, with its label, at some values of an axis from 0 to `highest`."""
    marks: list[Mark] = []
    for value, label in labels.items():
        y = _BOTTOM - (_BOTTOM - _TOP) * value / highest
        marks += [
            Stroke(((_LEFT, y), (_RIGHT, y)), "line"),
            Text(_LEFT - 6, y + 4, label, anchor="end"),
        ]
    return marks


def _roles(names: Collection[str], baselines: Collection[str]) -> dict[str, str]:
    """Choose a role per series; roles repeat when there are more series than roles."""
    roles, counts = {}, {SERIES: 0, BASELINES: 0}
    for name in names:
        kind = BASELINES if name in baselines else SERIES
        roles[name] = kind[counts[kind] % len(kind)]
        counts[kind] += 1
    return roles


def _pieces(
    path: Sequence[tuple[float, float] | None],
) -> list[tuple[tuple[float, float], ...]]:
    """Cut a path at its gaps, dropping single points: they make no line."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in path:
        if point:
            pieces[-1].append(point)
        else:
            pieces.append([])
    return [tuple(piece) for piece in pieces if len(piece) > 1]


def _legend(roles: Mapping[str, str], y: float) -> list[Mark]:
    """List names beside their colours, on as many lines as needed, the first at `y`."""
    marks: list[Mark] = []
    x = 12.0
    for name, role in roles.items():
        label = _shortened(name, 32)
        width = 15 + _LETTER * len(label) + 14
        if x > 12 and x + width > WIDTH:
            x, y = 12.0, y + 18
        marks += [Box(x, y - 9, 10, 10, role), Text(x + 15, y, label)]
        x += width
    return marks


def _shortened(text: str, letters: int) -> str:
    """Cut a text to a number of letters, ending in an ellipsis."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
