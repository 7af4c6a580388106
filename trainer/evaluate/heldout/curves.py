"""Plot a metric from 0 to 1 over named positions, a curve per model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from trainer.evaluate.heldout.canvas import INK, SUBPIXELS, Picture, font, subpixel

_COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 70), (148, 60, 160), (140, 86, 75))
_GREYS = ((110, 110, 110), (175, 175, 175))
_GRID = (230, 230, 230)
_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)
_LEFT, _RIGHT, _BOTTOM = 56, 24, 52  # margins in pixels; the top one depends on the legend
_ACROSS, _DOWN = 560, 272  # size of the axes
_LINE = 20  # height of a line of the legend

_Style = tuple[tuple[int, int, int], int]  # colour and thickness


def plot(
    title: str,
    labels: Sequence[str],
    curves: dict[str, list[float]],
    baselines: Sequence[str] = (),
) -> Image.Image:
    """Plot curves over labelled positions; NaN is a gap. `baselines` are thin and grey."""
    legend = _legend(list(curves), _ACROSS)
    lines = 1 + max(line for _, line in legend.values())
    top = 56 + _LINE * lines
    width, height = _LEFT + _ACROSS + _RIGHT, top + _DOWN + _BOTTOM
    xs = [_LEFT + _ACROSS * (i + 0.5) / len(labels) for i in range(len(labels))]
    ticks = {tick: round(top + _DOWN * (1 - tick)) for tick in _TICKS}
    styles = _styles(curves, baselines)

    canvas = np.full((height, width, 3), 255, np.uint8)
    for tick, y in ticks.items():
        cv2.line(canvas, (_LEFT, y), (_LEFT + _ACROSS, y), _GRID if tick else INK, 1)
    for name, values in curves.items():
        points = [
            subpixel(x, top + _DOWN * (1 - value)) if math.isfinite(value) else None
            for x, value in zip(xs, values, strict=True)
        ]
        _curve(canvas, points, styles[name])

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    draw.text((_LEFT, 12), title, INK, font(16))
    for tick, y in ticks.items():
        draw.text((_LEFT - 8, y), f"{tick:.1f}", INK, font(13), anchor="rm")
    for x, label in zip(xs, labels, strict=True):
        draw.text((x, height - _BOTTOM + 8), label, INK, font(13), anchor="ma")
    for name, (offset, line) in legend.items():
        x, y = _LEFT + offset, 50 + _LINE * line
        draw.rectangle((x, y - 2, x + 16, y + 1), styles[name][0])
        draw.text((x + 22, y), name, INK, font(13), anchor="lm")
    return picture


def _styles(names: Iterable[str], baselines: Sequence[str]) -> dict[str, _Style]:
    """A colour and a thickness per curve, in the order of the curves."""
    colours, greys = itertools.cycle(_COLOURS), itertools.cycle(_GREYS)
    return {name: (next(greys), 1) if name in baselines else (next(colours), 2) for name in names}


def _curve(canvas: Picture, points: Sequence[tuple[int, int] | None], style: _Style) -> None:
    """Draw a curve with a dot at each point; None is a gap."""
    colour, thickness = style
    for start, end in itertools.pairwise(points):
        if start and end:
            cv2.line(canvas, start, end, colour, thickness, cv2.LINE_AA, shift=4)
    for point in filter(None, points):
        radius = (2 * thickness + 1) * SUBPIXELS
        cv2.circle(canvas, point, radius, colour, -1, cv2.LINE_AA, shift=4)


def _legend(names: Sequence[str], across: float) -> dict[str, tuple[float, int]]:
    """Lay out the legend within `across` pixels: name → (offset in pixels, line)."""
    draw, entries = ImageDraw.Draw(Image.new("RGB", (1, 1))), {}
    x, line = 0.0, 0
    for name in names:
        width = 22 + draw.textlength(name, font(13))
        if x and x + width > across:
            x, line = 0.0, line + 1
        entries[name] = (x, line)
        x += width + 22
    return entries
