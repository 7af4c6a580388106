"""Solid shapes, each made from its name alone.

A shape's greatest extent, across or up, is 1. Its body coordinates have their origin in the middle
of its bounding box; z points up when it stands.

Legend of shapes: R rings, C points per ring.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.scenes.mesh import Floats, Mesh, capped_surface, looped_surface
from pipeline.scenes.parts import part_random

_ROWS, _COLUMNS = 28, 36
"""Rings of a shape, and points per ring, where the shape does not need other numbers."""


def make_shape(name: str) -> Mesh:
    """Make the shape of a name such as "lathe-183922", the same every time."""
    kind = name.rpartition("-")[0]
    mesh = _MAKERS[kind](part_random(name))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    return Mesh((mesh.vertices - (low + high) / 2) / (high - low).max(), mesh.faces, mesh.uv)


def _superquadric(rng: np.random.Generator) -> Mesh:
    """Between box, cylinder, ellipsoid and octahedron (Barr, 1981), from its implicit function."""
    north_south, east_west = rng.uniform(0.15, 1.6, 2)
    directions = _sphere(_ROWS, _COLUMNS)
    x, y, z = np.moveaxis(np.abs(directions), -1, 0)
    across = (x ** (2 / east_west) + y ** (2 / east_west)) ** (east_west / north_south)
    radius = (across + z ** (2 / north_south)) ** (-north_south / 2)
    return _from_sphere(directions * radius[..., None] * rng.uniform(0.4, 1, 3))


def _blob(rng: np.random.Generator) -> Mesh:
    """A sphere with smooth bumps."""
    directions = _sphere(_ROWS, _COLUMNS)
    waves, phases = rng.normal(0, 2.2, (6, 3)), rng.uniform(0, 2 * np.pi, 6)
    bumps = np.sin(directions @ waves.T + phases) @ rng.uniform(0.03, 0.11, 6)
    return _from_sphere(directions * (1 + bumps)[..., None] * rng.uniform(0.6, 1, 3))


def _lathe(rng: np.random.Generator) -> Mesh:
    """A vase: a smooth profile turned about the vertical axis."""
    heights = np.linspace(0, 1, _ROWS)
    control = rng.uniform(0.12, 0.5, int(rng.integers(4, 8)))
    radii = _smooth(control, heights) * rng.uniform(0.6, 1.2)
    return _solid_of_sections(_circle(_COLUMNS) * radii[:, None, None], heights)


def _column(rng: np.random.Generator) -> Mesh:
    """A star, gear or flower, extruded upward with a twist and a taper."""
    heights = np.linspace(0, rng.uniform(0.6, 1.8), 18)
    turns = np.linspace(0, rng.uniform(-1.5, 1.5), 18)
    widths = np.linspace(1, rng.uniform(0.45, 1), 18)
    outline = _outline(rng, 60) * 0.5
    cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
    turned = np.stack(
        [cos * outline[:, 0] - sin * outline[:, 1], sin * outline[:, 0] + cos * outline[:, 1]], -1
    )
    return _solid_of_sections(turned * widths[:, None, None], heights)


def _plate(rng: np.random.Generator) -> Mesh:
    """A thin plate with the outline of a star, gear or flower, standing on its edge."""
    mesh = _solid_of_sections(
        np.tile(_outline(rng, 72), (2, 1, 1)), np.array([0, rng.uniform(0.04, 0.12)])
    )
    return Mesh(mesh.vertices[:, [2, 0, 1]], mesh.faces, mesh.uv)


def _sheet(rng: np.random.Generator) -> Mesh:
    """A thin wavy panel, standing upright."""
    rows, across = np.linspace(-0.5, 0.5, 14), np.linspace(-0.5, 0.5, 26) * rng.uniform(0.5, 1.1)
    thickness = rng.uniform(0.02, 0.05)
    # Around each horizontal section: along the front, then back along the rear.
    x = np.concatenate([across, across[::-1]])
    y = np.repeat([-thickness / 2, thickness / 2], len(across))
    mesh = _solid_of_sections(np.tile(np.stack([x, y], -1), (len(rows), 1, 1)), rows)
    vertices = mesh.vertices.copy()
    wave, phase = rng.uniform(3, 9), rng.uniform(0, 2 * np.pi, 2)
    vertices[:, 1] += rng.uniform(0.03, 0.1) * np.sin(wave * vertices[:, 0] + phase[0])
    vertices[:, 1] += rng.uniform(0, 0.08) * np.sin(4 * vertices[:, 2] + phase[1])
    return Mesh(vertices, mesh.faces, mesh.uv)


def _pole(rng: np.random.Generator) -> Mesh:
    """A thin rod, a little bent."""
    up = np.linspace(0, 1, 24)
    bend, phase = rng.uniform(0, 0.05, 2), rng.uniform(0, np.pi, 2)
    path = np.stack([*(bend[:, None] * np.sin(3 * up + phase[:, None])), up], -1)
    return _capped_tube(path, rng.uniform(0.015, 0.04), 12)


def _spring(rng: np.random.Generator) -> Mesh:
    """A coil of wire with a vertical axis."""
    turns, radius = rng.uniform(2, 4.5), rng.uniform(0.15, 0.35)
    along = np.linspace(0, 1, 110)
    angle = 2 * np.pi * turns * along
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), along], -1)
    return _capped_tube(path, rng.uniform(0.025, 0.05), 10)


def _ring(rng: np.random.Generator) -> Mesh:
    """A torus with a squarish or round section, standing upright or lying."""
    thickness, exponent = rng.uniform(0.06, 0.3), rng.uniform(0.3, 1.2)
    angle = 2 * np.pi * np.arange(20) / 20
    section = [
        thickness * np.sign(value) * np.abs(value) ** exponent
        for value in (np.cos(angle), np.sin(angle))
    ]
    around = _circle(56)
    xy = around[:, None] * (1 + section[0] * rng.uniform(0.5, 1))[:, None]
    points = np.concatenate([xy, np.broadcast_to(section[1][:, None], (56, 20, 1))], axis=-1)
    if rng.random() < 0.7:
        points = points[..., [2, 0, 1]]
    return looped_surface(points)


def _knot(rng: np.random.Generator) -> Mesh:
    """A tube along a torus knot."""
    windings = [(2, 3), (3, 2), (2, 5), (3, 4), (1, 3), (1, 4)]
    p, q = windings[int(rng.integers(len(windings)))]
    t = 2 * np.pi * np.arange(150) / 150
    wide = 1 + rng.uniform(0.3, 0.45) * np.cos(q * t)
    path = np.stack([wide * np.cos(p * t), wide * np.sin(p * t), 0.5 * np.sin(q * t)], -1)
    if rng.random() < 0.5:
        path = path[:, [2, 0, 1]]
    return looped_surface(_tube(path, rng.uniform(0.08, 0.16), 12, closed=True))


_MAKERS: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "superquadric": _superquadric,
    "blob": _blob,
    "lathe": _lathe,
    "column": _column,
    "plate": _plate,
    "sheet": _sheet,
    "pole": _pole,
    "spring": _spring,
    "ring": _ring,
    "knot": _knot,
}
SOLID_KINDS = ("superquadric", "blob", "lathe", "column", "knot")
THIN_KINDS = ("plate", "sheet", "pole", "spring", "ring")


def _sphere(rows: int, columns: int) -> Floats:
    """Return directions [R, C, 3] in rings from the south pole to the north pole, without them."""
    south = (np.pi * (np.arange(rows) + 1) / (rows + 1))[:, None, None]
    around = np.broadcast_to(_circle(columns), (rows, columns, 2))
    return np.concatenate(
        [around * np.sin(south), np.broadcast_to(-np.cos(south), (rows, columns, 1))], axis=-1
    )


def _from_sphere(points: Floats) -> Mesh:
    """Close the points of `_sphere`'s directions at the poles, which lie a little farther out."""
    # On the axis, as far up as the plane through the last ring's neighbours would be.
    first, last = points[0].mean(axis=0), points[-1].mean(axis=0)
    first = first + (first - points[1].mean(axis=0)) / 3
    last = last + (last - points[-2].mean(axis=0)) / 3
    return capped_surface(points, first, last)


def _solid_of_sections(sections: Floats, heights: Floats) -> Mesh:
    """Make a solid from horizontal sections [R, C, 2] at heights [R], closed by flat ends."""
    rings = np.concatenate(
        [sections, np.broadcast_to(heights[:, None, None], (*sections.shape[:2], 1))], axis=-1
    )
    middles = rings.mean(axis=1)
    # A ring halfway to the middle keeps the faces of the flat ends short.
    first, last = (rings[row] / 2 + middles[row] / 2 for row in (0, -1))
    return capped_surface(np.concatenate([first[None], rings, last[None]]), middles[0], middles[-1])


def _circle(count: int) -> Floats:
    """Return points [count, 2] around the unit circle."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _outline(rng: np.random.Generator, count: int) -> Floats:
    """Return a closed outline [count, 2] around the origin, at most 1 wide to each side."""
    tips, depth = int(rng.integers(3, 9)), rng.uniform(0.1, 0.5)
    wave = np.sin(tips * 2 * np.pi * np.arange(count) / count)
    steepness = rng.choice([1.0, 3.0, 8.0])  # from a flower to a gear
    wave = np.tanh(steepness * wave) / np.tanh(steepness)
    return _circle(count) * (1 - depth * (1 - wave) / 2)[:, None]


def _smooth(control: Floats, at: Floats) -> Floats:
    """Interpolate evenly spaced control values at places from 0 to 1, by cosine steps."""
    place = at * (len(control) - 1)
    before = np.minimum(place.astype(np.int64), len(control) - 2)
    share = (1 - np.cos(np.pi * (place - before))) / 2
    return control[before] * (1 - share) + control[before + 1] * share


def _capped_tube(path: Floats, radius: float, columns: int) -> Mesh:
    """Make a tube around an open path [R, 3], with flat ends."""
    return capped_surface(_tube(path, radius, columns, closed=False), path[0], path[-1])


def _tube(path: Floats, radius: float, columns: int, *, closed: bool) -> Floats:
    """Return rings [R, C, 3] around a path [R, 3] that do not turn about it.

    On a closed path, the turn that is left when it comes back is shared out among the rings.
    """
    if closed:
        tangents = np.roll(path, -1, axis=0) - np.roll(path, 1, axis=0)
    else:
        tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normal = np.cross(tangents[0], np.eye(3)[np.abs(tangents[0]).argmin()])
    normals = []
    for tangent in [*tangents, tangents[0]]:
        normal = normal - (normal @ tangent) * tangent
        normal /= np.linalg.norm(normal)
        normals.append(normal)
    start, end = normals[0], normals.pop()
    turns = np.zeros(len(path))
    if closed:
        left = np.arctan2(np.cross(end, start) @ tangents[0], end @ start)
        turns = left * np.arange(len(path)) / len(path)
    angle = turns[:, None] + 2 * np.pi * np.arange(columns) / columns
    side, across = np.stack(normals), np.cross(tangents, np.stack(normals))
    offsets = np.cos(angle)[..., None] * side[:, None] + np.sin(angle)[..., None] * across[:, None]
    return path[:, None] + radius * offsets
