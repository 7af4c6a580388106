"""What a model sees, drawn: its features as colours, where it finds points again, and how that falls with distance."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.evaluate.heldout.clips import HeldOutClip
from trainer.evaluate.heldout.measures import MOVING, found_at
from trainer.feature_colours import principal_colours

Picture = NDArray[np.uint8]

SIDE, LARGE = 256, 384
"""Of a drawn frame, in pixels: among many, and of two."""
GAP = 8
LINES = 24
"""Points of a pair that are drawn, at most: with more of them nothing can be seen."""
RIGHT, WRONG = (34, 160, 74), (220, 50, 47)
INK, PALE, PAPER = (34, 34, 34), (230, 230, 230), (255, 255, 255)
COLOURS = ((31, 119, 180), (214, 96, 20), (44, 140, 70), (148, 60, 160), (140, 86, 75))
GREYS = ((110, 110, 110), (175, 175, 175))
_FIXED = 16  # OpenCV draws at 1/16 px with shift=4


def feature_maps(clip: HeldOutClip, features: dict[str, Tensor]) -> Image.Image:
    """Frames of a clip, and below them a row a model: its features [T, h, w, D] as colours.

    Red, green and blue are the first three principal components of the anchor frame's features, from their 1st to their 99th
    percentile there; other frames are coloured by the same. A component's sign is that in which it is most like the first model's.
    """
    rows: list[list[Picture]] = [_frames(clip)]
    first: NDArray[np.float64] | None = None
    for maps in features.values():
        colours = principal_colours(maps.double().numpy(), first)
        first = colours if first is None else first
        shown = [np.rint(255 * colour.clip(0, 1)).astype(np.uint8) for colour in colours]
        rows.append(
            [
                cv2.resize(colour, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
                for colour in shown
            ]
        )
    ahead = [number - clip.numbers[0] for number in clip.numbers]
    titles = ["anchor frame", *(f"{frames:+d} frames" for frames in ahead[1:])]
    return _sheet(
        rows,
        ["", *features],
        titles,
        f"{clip.info.key}\nfeatures as colours, chosen on the anchor frame",
    )


def matches(clip: HeldOutClip, features: dict[str, Tensor]) -> Image.Image | None:
    """The anchor frame beside the clip's last frame that shows a point of it, a row a model: points, and where it finds them.

    Green: less than a tenth of the image away from the track; red: not. None if no frame shows one.
    """
    frame = max((t for t in range(1, len(clip.numbers)) if len(clip.points(t)[0])), default=None)
    if frame is None:
        return None
    starts, goals = clip.points(frame)
    chosen = _spread(starts, goals)
    starts, goals = starts[chosen], goals[chosen]
    frames, rows, labels = _frames(clip, LARGE), [], []
    for name, maps in features.items():
        places = found_at(maps[0], maps[frame], starts)
        right = ((places - goals).norm(dim=-1) < MOVING).tolist()
        rows.append([_lines(frames[0], frames[frame], starts, places, right)])
        labels.append(f"{name}\n{sum(right)} of {len(right)}\nfound")
    ahead = clip.numbers[frame] - clip.numbers[0]
    what = f"points of the anchor frame (left), and where they are found {ahead} frames later: right ones green, others red"
    return _sheet(rows, labels, [""], f"{clip.info.key}\n{what}")


def _spread(starts: Tensor, goals: Tensor) -> Tensor:
    """Up to LINES points: moving ones if there are any, evenly from their list."""
    moved = torch.nonzero((goals - starts).norm(dim=-1) > MOVING).flatten()
    pool = moved if len(moved) >= 4 else torch.arange(len(starts))
    return pool[torch.linspace(0, len(pool) - 1, min(LINES, len(pool))).round().long()]


def _lines(
    left: Picture, right: Picture, starts: Tensor, places: Tensor, found: Sequence[bool]
) -> Picture:
    """Two frames side by side, dimmed, with a line from each point to where it is found; the wrong ones lie below the others."""
    side = len(left)
    canvas = np.hstack([left, np.full((side, GAP, 3), 255, np.uint8), right])
    canvas = cv2.addWeighted(canvas, 0.6, np.full_like(canvas, 255), 0.4, 0).astype(np.uint8)
    a, b = starts.numpy() * side - 0.5, places.numpy() * side - 0.5 + (side + GAP, 0)
    for i in sorted(range(len(found)), key=lambda i: found[i]):
        colour = RIGHT if found[i] else WRONG
        p, q = _fixed(*a[i]), _fixed(*b[i])
        cv2.line(canvas, p, q, colour, 1, cv2.LINE_AA, shift=4)
        for end in (p, q):
            cv2.circle(canvas, end, 3 * _FIXED, PAPER, -1, cv2.LINE_AA, shift=4)
            cv2.circle(canvas, end, 2 * _FIXED, colour, -1, cv2.LINE_AA, shift=4)
    return canvas


def plot(
    title: str, labels: Sequence[str], curves: dict[str, list[float]], plain: Sequence[str] = ()
) -> Image.Image:
    """Curves over named places, from 0 to 1; NaN is a gap. Those named in `plain` are thin and grey."""
    left, across, down, bottom = 56, 560, 272, 52
    legend = _legend(list(curves), across)
    top = 56 + 20 * (1 + max(line for _, line in legend.values()))
    width, height = left + across + 24, top + down + bottom
    ends = [left + across * (i + 0.5) / len(labels) for i in range(len(labels))]
    hues, greys = iter(itertools.cycle(COLOURS)), iter(itertools.cycle(GREYS))
    styles = {name: (next(greys), 1) if name in plain else (next(hues), 2) for name in curves}

    canvas = np.full((height, width, 3), 255, np.uint8)
    ticks = {tick: round(top + down * (1 - tick)) for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)}
    for tick, y in ticks.items():
        cv2.line(canvas, (left, y), (left + across, y), INK if tick == 0 else PALE, 1)
    for name, values in curves.items():
        colour, thick = styles[name]
        known = zip(ends, values, strict=True)
        points = [
            _fixed(x, top + down * (1 - value)) if math.isfinite(value) else None
            for x, value in known
        ]
        for p, q in itertools.pairwise(points):
            if p and q:
                cv2.line(canvas, p, q, colour, thick, cv2.LINE_AA, shift=4)
        for p in filter(None, points):
            cv2.circle(canvas, p, (2 * thick + 1) * _FIXED, colour, -1, cv2.LINE_AA, shift=4)

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    draw.text((left, 12), title, INK, _font(16))
    for tick, y in ticks.items():
        draw.text((left - 8, y), f"{tick:.1f}", INK, _font(13), anchor="rm")
    for x, label in zip(ends, labels, strict=True):
        draw.text((x, height - bottom + 8), label, INK, _font(13), anchor="ma")
    for name, (place, line) in legend.items():
        x, y = left + place, 50 + 20 * line
        draw.rectangle((x, y - 2, x + 16, y + 1), styles[name][0])
        draw.text((x + 22, y), name, INK, _font(13), anchor="lm")
    return picture


def _legend(names: Sequence[str], across: float) -> dict[str, tuple[float, int]]:
    """Where the entry of each name begins, in pixels, and on which line, so that none goes beyond `across`."""
    draw, places = ImageDraw.Draw(Image.new("RGB", (1, 1))), {}
    x, line = 0.0, 0
    for name in names:
        wide = 22 + draw.textlength(name, _font(13))
        if x and x + wide > across:
            x, line = 0.0, line + 1
        places[name] = (x, line)
        x += wide + 22
    return places


def png(picture: Image.Image) -> bytes:
    """A picture's bytes as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def _frames(clip: HeldOutClip, side: int = SIDE) -> list[Picture]:
    """A clip's frames [side, side, 3], from the largest that models see."""
    images = clip.images[max(clip.images)].numpy().transpose(0, 2, 3, 1)
    how = cv2.INTER_AREA if images.shape[1] >= side else cv2.INTER_CUBIC
    return [cv2.resize(image, (side, side), interpolation=how).astype(np.uint8) for image in images]


def _sheet(
    rows: Sequence[Sequence[Picture]], labels: Sequence[str], titles: Sequence[str], title: str
) -> Image.Image:
    """Pictures in rows with a label each, and columns with a title each."""
    font = _font(14)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = (
        GAP + max(round(probe.multiline_textbbox((0, 0), label, font)[2]) for label in labels) + GAP
        if any(labels)
        else GAP
    )
    high, wide = rows[0][0].shape[:2]
    top = 84 if any(titles) else 58
    width = max(
        margin + len(rows[0]) * (wide + GAP),
        round(probe.multiline_textbbox((0, 0), title, font)[2]) + 2 * GAP,
    )
    sheet = Image.new("RGB", (width, top + len(rows) * (high + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.multiline_text((GAP, GAP), title, INK, font)
    for column, text in enumerate(titles):
        draw.text(
            (margin + column * (wide + GAP) + wide / 2, top - 6), text, INK, font, anchor="ms"
        )
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * (high + GAP)
        draw.multiline_text(
            (margin - GAP, y + high / 2), label, INK, font, anchor="rm", align="right"
        )
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (margin + column * (wide + GAP), y))
    return sheet


def _fixed(x: float, y: float) -> tuple[int, int]:
    """A place as OpenCV draws at it with shift=4."""
    return round(x * _FIXED), round(y * _FIXED)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
