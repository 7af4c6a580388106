"""Coloured textures with detail at several scales: patterns made from a name, and photographs.

The photographs are those of scikit-image that are in the public domain or CC0, and stored without
loss, so that every decoder gives the same pixels. Patterns need nothing but NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.mesh import Floats
from pipeline.scenes.parts import draw_part, part_random, split_of_part
from pipeline.scenes.scene_id import Split
from shards.errors import PretrackError

SIZE = 512
"""Width and height of every texture, in pixels."""
PHOTOGRAPHS = {
    "astronaut": (512, 512),
    "brick": (512, 512),
    "camera": (512, 512),
    "chelsea": (451, 300),
    "coffee": (600, 400),
    "grass": (512, 512),
    "gravel": (512, 512),
}
"""The photographs: name → (width, height) in pixels."""
_PHOTOGRAPH_SHARE = 0.25
"""The share of objects' textures that are photographs."""

Pixels = NDArray[np.uint8]


def draw_texture(rng: np.random.Generator, split: Split, *, photographs: bool) -> str:
    """Draw the name of a texture that the split may show, which may be a photograph or not."""
    if not photographs or rng.random() >= _PHOTOGRAPH_SHARE:
        return draw_part(rng, tuple(_PATTERNS), split)
    names = [name for name in PHOTOGRAPHS if split_of_part(f"photograph_{name}") == split]
    return f"photograph_{names[int(rng.integers(len(names)))]}-{int(rng.integers(1_000_000)):06d}"


def texture_source(name: str) -> str:
    """Return the part that a texture comes from: its photograph, or the pattern itself."""
    return name.rpartition("-")[0] if name.startswith("photograph_") else name


def texture(name: str) -> Pixels:
    """Make the texture of a name such as "bricks-183922": RGB uint8 [SIZE, SIZE, 3].

    The first row is the top, where v is 1. Raises PretrackError if it is a photograph and
    scikit-image is not installed.
    """
    rng, kind = part_random(name), name.rpartition("-")[0]
    if kind.startswith("photograph_"):
        return _cutting(rng, _photograph(kind.removeprefix("photograph_")))
    colours = _PATTERNS[kind](rng)
    # Grain from coarse to fine, so that no place is flat at any distance.
    grain = _clouds(rng, 8, 6, gain=0.75) - 0.5
    return _to_pixels(colours * (1 + rng.uniform(0.5, 0.9) * grain)[..., None])


def _marble(rng: np.random.Generator) -> Floats:
    """Bands along a direction, bent by noise."""
    x, y = _coordinates()
    waves = rng.integers(1, 6, 2)
    phase = waves[0] * x + waves[1] * y + rng.uniform(1, 4) * _clouds(rng, 3, 5)
    return _coloured(rng, 0.5 + 0.5 * np.sin(2 * np.pi * phase))


def _clouds_pattern(rng: np.random.Generator) -> Floats:
    """Noise in many colours."""
    field = _clouds(rng, int(rng.integers(3, 8)), 6, gain=0.65)
    return _coloured(rng, (1.5 * field * rng.uniform(1, 3)) % 1.0, colours=6)


def _wood(rng: np.random.Generator) -> Floats:
    """Rings about a centre, bent by noise."""
    x, y = _coordinates()
    centre = rng.uniform(-0.5, 1.5, 2)
    distance = np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(0.2, 1))
    rings = rng.uniform(6, 25) * (distance + 0.15 * _clouds(rng, 3, 4))
    return _coloured(rng, rings % 1.0)


def _bricks(rng: np.random.Generator) -> Floats:
    """Courses of bricks or tiles, each in its own shade, with joints."""
    courses, per_course = int(rng.integers(5, 16)), int(rng.integers(3, 9))
    x, y = _coordinates()
    x = x + 0.004 * _clouds(rng, 12, 3)
    course = (y * courses).astype(np.int64)
    along = (x * per_course + (course % 2) * rng.choice([0.0, 0.5])) % per_course
    brick = along.astype(np.int64) % per_course
    palette = _palette(rng, 7)
    colours = palette[rng.integers(1, 7, (courses, per_course))[course, brick]]
    joint = rng.uniform(0.04, 0.12)
    in_joint = (y * courses % 1 < joint) | (along % 1 < joint * per_course / courses)
    return np.where(in_joint[..., None], palette[0], colours)


def _cells(rng: np.random.Generator) -> Floats:
    """Cells around scattered points (Worley, 1996), each in its own colour, with borders."""
    count = int(rng.integers(4, 16))
    nearest, second, owner = _scattered(rng, count)
    colours = _palette(rng, 8)[rng.integers(1, 8, count * count)[owner]]
    shade = 1 - 0.5 * (nearest / nearest.max())
    border = (second - nearest < rng.uniform(0.03, 0.12))[..., None]
    return np.where(border, 0.15 * colours, colours * shade[..., None])


def _spots(rng: np.random.Generator) -> Floats:
    """Round spots of several sizes and colours on cloudy ground."""
    count = int(rng.integers(5, 18))
    nearest, _, owner = _scattered(rng, count)
    radii = rng.uniform(0.12, 0.5, count * count)[owner]
    spots = _palette(rng, 6)[rng.integers(0, 6, count * count)[owner]]
    ground = _coloured(rng, _clouds(rng, 4, 5))
    ring = np.abs(nearest - 0.7 * radii) < 0.04
    return np.where((nearest < radii)[..., None], spots * (1 - 0.6 * ring[..., None]), ground)


def _plaid(rng: np.random.Generator) -> Floats:
    """Woven bands of several widths in both directions."""
    bands = []
    for _ in range(2):
        edges = np.sort(rng.integers(0, SIZE, int(rng.integers(8, 26))))
        bands.append(_palette(rng, len(edges) + 1)[np.searchsorted(edges, np.arange(SIZE))])
    thread = (np.indices((SIZE, SIZE)).sum(axis=0) // 4 % 2 == 0)[..., None]
    mixed = 0.5 * (bands[0][:, None] + bands[1][None])
    return 0.65 * mixed + 0.35 * np.where(thread, bands[0][:, None], bands[1][None])


def _maze(rng: np.random.Generator) -> Floats:
    """Winding lines: the contours of noise."""
    field = _clouds(rng, int(rng.integers(5, 14)), 2, gain=0.4)
    lines = np.abs((field * rng.uniform(3, 8)) % 1 - 0.5) < rng.uniform(0.12, 0.25)
    inside, outside = _coloured(rng, _clouds(rng, 4, 4)), _coloured(rng, _clouds(rng, 6, 4))
    return np.where(lines[..., None], inside, outside)


def _glyphs(rng: np.random.Generator) -> Floats:
    """Rows of random characters of two sizes, as on a printed page."""
    page = _coloured(rng, 0.5 + 0.4 * _clouds(rng, 3, 4))
    ink = _palette(rng, 5)
    for rows in (8, 24):
        pixel = SIZE // (rows * 8)
        characters = rng.random((rows, rows, 5, 5)) < 0.5
        characters |= characters[:, :, :, ::-1]  # symmetric, as many letters are
        shown = np.zeros((rows, rows, 8, 8), np.bool_)
        shown[:, :, 1:6, 1:6] = characters & (rng.random((rows, rows, 1, 1)) < 0.6)
        mask = shown.transpose(0, 2, 1, 3).reshape(rows * 8, rows * 8)
        mask = mask.repeat(pixel, 0).repeat(pixel, 1)
        margin = SIZE - len(mask)
        mask = np.pad(mask, (margin // 2, margin - margin // 2))
        row_ink = ink[rng.integers(0, 5, SIZE // 16 + 1)[np.arange(SIZE) // 16]]
        page = np.where(mask[..., None], row_ink[:, None], page)
    return page


def _collage(rng: np.random.Generator) -> Floats:
    """Discs, bars and rectangles over one another, from large to small."""
    x, y = _coordinates()
    colours = _coloured(rng, _clouds(rng, 3, 4))
    palette = _palette(rng, 8)
    for size in np.geomspace(0.35, 0.02, 70):
        column, row = rng.random(2)
        height = size * rng.choice([0.2, 0.6, 1.0])
        left, right = (int(SIZE * place) for place in (column - size, column + size))
        top, bottom = (int(SIZE * place) for place in (row - height, row + height))
        box = (slice(max(0, top), bottom + 1), slice(max(0, left), right + 1))
        colour = palette[int(rng.integers(8))]
        if rng.random() < 0.5:
            away = np.hypot((x[:, box[1]] - column) / size, (y[box[0]] - row) / height)
            colours[box] = np.where((away < 1)[..., None], colour, colours[box])
        else:
            colours[box] = colour
    return colours


_PATTERNS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "marble": _marble,
    "clouds": _clouds_pattern,
    "wood": _wood,
    "bricks": _bricks,
    "cells": _cells,
    "spots": _spots,
    "plaid": _plaid,
    "maze": _maze,
    "glyphs": _glyphs,
    "collage": _collage,
}


def _coordinates() -> tuple[Floats, Floats]:
    """Return x [1, SIZE] and y [SIZE, 1] of the pixels' centres, from 0 to 1."""
    centres = (np.arange(SIZE) + 0.5) / SIZE
    return centres[None], centres[:, None]


def _clouds(rng: np.random.Generator, cells: int, octaves: int, gain: float = 0.55) -> Floats:
    """Sum noise at doubling frequencies, from `cells` per side: [SIZE, SIZE], from 0 to 1."""
    total, weight, weights = np.zeros((SIZE, SIZE)), 1.0, 0.0
    for _ in range(octaves):
        if cells > SIZE // 2:
            break
        total += weight * _noise(rng, cells)
        weights += weight
        weight, cells = weight * gain, cells * 2
    # Sums of noise keep near their mean: stretched to use most of the range.
    return np.clip(0.5 + 1.6 * (total / weights - 0.5), 0, 1)


def _noise(rng: np.random.Generator, cells: int) -> Floats:
    """Interpolate random values on a lattice of `cells` per side, smoothly; opposite sides meet."""
    place = (np.arange(SIZE) + 0.5) / SIZE * cells
    before = place.astype(np.int64)
    share = place - before
    share = share * share * (3 - 2 * share)
    lattice = rng.random((cells, cells))
    after = (before + 1) % cells
    rows = lattice[before] * (1 - share)[:, None] + lattice[after] * share[:, None]
    return rows[:, before] * (1 - share) + rows[:, after] * share


def _scattered(rng: np.random.Generator, count: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Scatter one point in each of `count` x `count` cells; opposite sides meet.

    Returns each pixel's distance to the nearest and to the second point, in cells, and the number
    of the nearest: [SIZE, SIZE] each.
    """
    offsets = rng.random((2, count, count))
    x, y = (centres * count for centres in _coordinates())
    column, row = x.astype(np.int64), y.astype(np.int64)
    nearest, second = np.full((SIZE, SIZE), np.inf), np.full((SIZE, SIZE), np.inf)
    owner = np.zeros((SIZE, SIZE), np.int64)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            i, j = (row + down) % count, (column + right) % count
            dx = column + right + offsets[0, i, j] - x
            dy = row + down + offsets[1, i, j] - y
            distance = np.sqrt(dx * dx + dy * dy)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            owner = np.where(closer, i * count + j, owner)
            nearest = np.where(closer, distance, nearest)
    return nearest, second, owner


def _palette(rng: np.random.Generator, count: int) -> Floats:
    """Draw colours [count, 3] of different hues, from dark to light and then shuffled."""
    hues = rng.random() + rng.uniform(0, 0.7, count)
    saturation = rng.uniform(0.2, 0.95, count)
    light = rng.permutation(np.linspace(0.15, 1.0, count))
    wheel = np.abs((hues[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return np.asarray(light[:, None] * (1 - saturation[:, None] * (1 - wheel.clip(0, 1))))


def _coloured(rng: np.random.Generator, field: Floats, colours: int = 4) -> Floats:
    """Map a field with values from 0 to 1 to colours of a palette, blended: [SIZE, SIZE, 3]."""
    palette = _palette(rng, colours)
    place = np.clip(field, 0, 1) * (colours - 1)
    before = np.minimum(place.astype(np.int64), colours - 2)
    share = (place - before)[..., None]
    return palette[before] * (1 - share) + palette[before + 1] * share


def _cutting(rng: np.random.Generator, photograph: Pixels) -> Pixels:
    """Cut a square from a photograph [h, w, 3], turn and tint it, and enlarge it to SIZE."""
    height, width = photograph.shape[:2]
    side = int(min(height, width) * rng.uniform(0.45, 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    cut = np.rot90(photograph[top : top + side, left : left + side], int(rng.integers(4)))
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    place = ((np.arange(SIZE) + 0.5) * side / SIZE - 0.5).clip(0, side - 1)
    before = np.minimum(place.astype(np.int64), side - 2)
    share = place - before
    rows = cut[before] * (1 - share)[:, None, None] + cut[before + 1] * share[:, None, None]
    enlarged = rows[:, before] * (1 - share)[:, None] + rows[:, before + 1] * share[:, None]
    return _to_pixels(enlarged / 255 * rng.uniform(0.6, 1.15, 3))


def _to_pixels(colours: Floats) -> Pixels:
    return np.rint(255 * colours.clip(0, 1)).astype(np.uint8)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> Pixels:
    """Read a photograph [h, w, 3], RGB.

    Raises PretrackError if scikit-image is not installed, or the file is not the one that it ships.
    """
    import cv2

    try:
        path = metadata.distribution("scikit-image").locate_file(f"skimage/data/{name}.png")
    except metadata.PackageNotFoundError as error:
        raise PretrackError(
            "scenes show photographs of scikit-image: pip install 'pretrack[scenes]'"
        ) from error
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None or (picture.shape[1], picture.shape[0]) != PHOTOGRAPHS[name]:
        raise PretrackError(
            f"{path} is not the photograph that scikit-image ships: reinstall scikit-image"
        )
    return np.asarray(picture, np.uint8)
