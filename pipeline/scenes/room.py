"""The room around the objects: six textured faces, closed all around.

World coordinates are metres: x to the right, y away from the camera, z up. The floor is z = 0, and
the objects stand about the z axis. The camera moves on the side of negative y.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.mesh import Mesh, open_patch

FACES = 6
"""Faces of a room, each with its own texture."""
_PATCHES = 10
"""Cells per side of each wall: lights are computed at their corners by some renderers."""


@dataclass(frozen=True)
class Room:
    """A box: x from -side to side, y from -front to back, z from 0 to height."""

    side: float
    front: float
    back: float
    height: float


def draw_room(rng: np.random.Generator) -> Room:
    """Draw the size of a room."""
    side, front, back, height = rng.uniform([2.45, 2.8, 1.6, 2.6], [2.7, 3.4, 2.1, 3.2]).tolist()
    return Room(side, front, back, height)


def room_meshes(room: Room) -> Iterator[tuple[str, Mesh]]:
    """Yield the name and the mesh of each face of the room. Faces point inward."""
    low = np.array([-room.side, -room.front, 0.0])
    high = np.array([room.side, room.back, room.height])
    # Per face: the axis that it is perpendicular to, whether it is at that axis' upper end, and the
    # axes of u and v, whose cross product points inward.
    for name, axis, upper, u, v in (
        ("floor", 2, False, 0, 1),
        ("ceiling", 2, True, 1, 0),
        ("back wall", 1, True, 0, 2),
        ("front wall", 1, False, 2, 0),
        ("left wall", 0, False, 1, 2),
        ("right wall", 0, True, 2, 1),
    ):
        cells = np.arange(_PATCHES + 1) / _PATCHES
        points = np.empty((_PATCHES + 1, _PATCHES + 1, 3))
        points[..., axis] = high[axis] if upper else low[axis]
        points[..., u] = low[u] + (high[u] - low[u]) * cells
        points[..., v] = (low[v] + (high[v] - low[v]) * cells)[:, None]
        yield name, open_patch(points)
