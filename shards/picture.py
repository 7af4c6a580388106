"""Draw a clip for notebooks: some frames with tracks over them, in one self-contained HTML text."""

from __future__ import annotations

import base64
import colorsys
import html
from collections.abc import Sequence
from math import isqrt

import numpy as np

from shards.clip import VISIBLE_THRESHOLD, ClipInfo, Tracks

_FRAMES = 4
_MOST_POINTS = 100
_TAIL = 6
_SHOWN_SHORT_SIDE = 160


def clip_html(info: ClipInfo, tracks: Tracks, jpegs: Sequence[bytes], anchor: int = 0) -> str:
    """Draw up to four frames of a clip with the tracks of its `anchor`-th anchor.

    The tracks are SVG over the stored JPEGs. A filled dot is a visible point with a tail of its
    last positions; a ring is a hidden point. A dense grid is thinned to every second, third … row
    and column. Raises IndexError if there is no such anchor.
    """
    shown_frames = min(_FRAMES, info.frames)
    times = sorted(set(np.linspace(0, info.frames - 1, shown_frames).round().astype(int).tolist()))
    a, _, n = tracks.visibility.shape
    caption = (
        f"{info.source} · {info.split} · {info.video_id} · "
        f"{info.frames} frames of {info.width}x{info.height} · "
        f"{a} x {n} points, shown from frame {tracks.anchors[anchor]}"
    )
    pictures = "".join(_frame_svg(info, tracks, jpegs[t], anchor=anchor, t=t) for t in times)
    return (
        f'<figure style="margin:0"><figcaption><b>{html.escape(info.key)}</b><br>'
        f"{html.escape(caption)}</figcaption>"
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin-top:6px">{pictures}</div></figure>'
    )


def _frame_svg(info: ClipInfo, tracks: Tracks, picture: bytes, *, anchor: int, t: int) -> str:
    """Draw frame `t` and the points in it."""
    # SVG has the corner of the top-left pixel at (0, 0); tracks have its centre there.
    positions = tracks.positions[anchor] + 0.5
    visible = tracks.visibility[anchor] >= VISIBLE_THRESHOLD
    scale = _SHOWN_SHORT_SIDE / min(info.width, info.height)
    radius = 2.5 / scale
    shapes = []
    shown = thin_grid(positions.shape[1], _MOST_POINTS)
    for number, n in enumerate(shown):
        red, green, blue = (
            round(255 * part) for part in colorsys.hsv_to_rgb(0.9 * number / len(shown), 0.85, 1.0)
        )
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        x, y = positions[t, n]
        if visible[t, n]:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions[max(0, t - _TAIL) : t + 1, n])
            shapes.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" '
                f'stroke-width="{radius / 2:.2f}"/>'
            )
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{colour}"/>')
        else:
            ring = f'fill="none" stroke="{colour}" stroke-width="{radius / 3:.2f}"'
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius * 0.8:.2f}" {ring}/>')
    data = base64.b64encode(picture).decode()
    return (
        f'<svg viewBox="0 0 {info.width} {info.height}" width="{info.width * scale:.0f}" '
        f'role="img" aria-label="frame {t}">'
        f'<image width="{info.width}" height="{info.height}" '
        f'href="data:image/jpeg;base64,{data}"/>{"".join(shapes)}</svg>'
    )


def thin_grid(points: int, most: int) -> list[int]:
    """Choose at most `most` points of a square grid, as indices in row-major order.

    All points, or those of every second, third … row and column. If `points` is not a square
    number, the grid is taken to lack its last points.
    """
    side = isqrt(max(points, 1) - 1) + 1
    step = 1
    while (-(-side // step)) ** 2 > most:
        step += 1
    kept = range(0, side, step)
    indices = (row * side + column for row in kept for column in kept)
    return [index for index in indices if index < points]
