"""Closed triangle meshes from grids of points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Faces = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface of triangles. Faces that share a corner share its vertex.

    vertices: [V, 3] in the body's coordinates
    faces:    [F, 3] numbers of vertices, counter-clockwise as seen from outside
    uv:       [F, 3, 2] texture coordinates of each face's corners, from 0 to 1; v points up
    """

    vertices: Floats
    faces: Faces
    uv: Floats

    def scaled(self, factor: float) -> Mesh:
        """Give the same mesh, larger by a factor."""
        return Mesh(self.vertices * factor, self.faces, self.uv)


def capped_surface(rings: Floats, first: Floats, last: Floats) -> Mesh:
    """Close rings of points [R, C, 3] with a fan to the point `first` [3] and one to `last` [3].

    Texture: u goes once around each ring, v from `first` to `last`, by the mean way between rings.
    """
    count, columns = rings.shape[:2]
    vertices = np.concatenate([rings.reshape(-1, 3), first[None], last[None]])
    v = _ways(
        np.concatenate([np.tile(first, (1, columns, 1)), rings, np.tile(last, (1, columns, 1))])
    )
    faces, uv = _quads(count - 1, columns, columns, v[1:-1])
    # Fans: ring 0 to the first point, the last ring to the last point.
    column, after = np.arange(columns), (np.arange(columns) + 1) % columns
    u, middle = column / columns, (column + 0.5) / columns
    tops = (count - 1) * columns
    pole = np.full(columns, len(vertices) - 2)
    first_fan = np.stack([pole, after, column], axis=1)
    first_uv = np.stack(
        [_pairs(middle, v[0]), _pairs(u + 1 / columns, v[1]), _pairs(u, v[1])], axis=1
    )
    last_fan = np.stack([pole + 1, tops + column, tops + after], axis=1)
    last_uv = np.stack(
        [_pairs(middle, v[-1]), _pairs(u, v[-2]), _pairs(u + 1 / columns, v[-2])], axis=1
    )
    return _outward(
        vertices,
        np.concatenate([faces, first_fan, last_fan]),
        np.concatenate([uv, first_uv, last_uv]),
    )


def looped_surface(rings: Floats) -> Mesh:
    """Close rings of points [R, C, 3] by joining the last ring to the first.

    Texture: u goes once around each ring, v once around the loop.
    """
    count, columns = rings.shape[:2]
    faces, uv = _quads(count, columns, columns, np.arange(count + 1) / count)
    return _outward(rings.reshape(-1, 3), faces % (count * columns), uv)


def open_patch(points: Floats) -> Mesh:
    """Make a patch of a grid of points [R, C, 3]; u goes along a row, v from row to row.

    It faces where the cross product of u's and v's direction points.
    """
    rows, columns = points.shape[:2]
    faces, uv = _quads(rows - 1, columns - 1, columns, np.arange(rows) / (rows - 1))
    return Mesh(points.reshape(-1, 3), faces, uv)


def edge_neighbours(mesh: Mesh) -> NDArray[np.int64]:
    """Return the face on the other side of each edge: [F, 3], edge i from corner i; -1 for none."""
    starts = mesh.faces.astype(np.int64)
    ends, size = np.roll(starts, -1, axis=1), len(mesh.vertices)
    keys, opposite = (starts * size + ends).ravel(), (ends * size + starts).ravel()
    order = np.argsort(keys)
    at = np.searchsorted(keys[order], opposite).clip(max=len(keys) - 1)
    found = order[at]
    return np.where(keys[found] == opposite, found // 3, -1).reshape(-1, 3)


def _quads(rows: int, quads: int, columns: int, v: Floats) -> tuple[Faces, Floats]:
    """Triangulate `rows` x `quads` cells between rings of `columns` points, with v [rows + 1].

    If `quads` is `columns`, each ring is closed.
    """
    row, column = (grid.ravel() for grid in np.mgrid[:rows, :quads])
    after = (column + 1) % columns
    a, b = row * columns + column, row * columns + after
    c, d = b + columns, a + columns
    u, u1, v0, v1 = column / quads, (column + 1) / quads, v[row], v[row + 1]
    corners = [_pairs(u, v0), _pairs(u1, v0), _pairs(u1, v1), _pairs(u, v1)]
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    uv = np.concatenate([np.stack(corners[:3], 1), np.stack([corners[i] for i in (0, 2, 3)], 1)])
    return faces.astype(np.int32), uv


def _pairs(u: Floats, v: Floats | float) -> Floats:
    """Stack u and v to [..., 2]."""
    return np.stack(np.broadcast_arrays(u, np.float64(v) if isinstance(v, float) else v), axis=-1)


def _ways(rings: Floats) -> Floats:
    """Return the mean way from the first ring to each, as a fraction of the whole: [R]."""
    steps = np.linalg.norm(np.diff(rings, axis=0), axis=-1).mean(axis=1)
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    return ways / ways[-1]


def _outward(vertices: Floats, faces: NDArray[np.integer], uv: Floats) -> Mesh:
    """Make a mesh whose faces point outward: the volume that they enclose is positive."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("ij,ij->", a, np.cross(b, c)) < 0:
        faces, uv = faces[:, ::-1], uv[:, ::-1]
    return Mesh(vertices, np.ascontiguousarray(faces, np.int32), np.ascontiguousarray(uv))
