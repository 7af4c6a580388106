"""Place objects in a scene so that they touch neither one another nor the camera.

An object keeps to an upright cylinder, whatever its motion; cylinders do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.mesh import Floats, Mesh
from pipeline.scenes.parts import draw_part
from pipeline.scenes.rigid import pose, rotation
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.shapes import SOLID_KINDS, THIN_KINDS, make_shape

REACH = 1.3
"""No object comes farther from the z axis than this, in metres; cameras stay well outside."""
GAP = 0.02
"""Least distance between the cylinders of two objects, in metres."""
_TRIES = 80
"""Places that are tried for an object before it is made smaller."""
_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class PlacedObject:
    """A shape of its final size, and its motion.

    poses: [T, 3, 4], body to world
    """

    shape: str
    mesh: Mesh
    poses: Floats


@dataclass(frozen=True, eq=False)
class Behaviour:
    """How an object is put up and moves, apart from its place.

    hanging:    whether it is above the floor
    upright:    rotation [3, 3] in which it is put up
    turns_over: whether it rotates about another axis than the vertical
    axis:       of its rotation, [3]
    angles:     [T], radians
    reach:      [3], how far it moves from its place along each axis of the world
    shifts:     [T, 3], from its place
    """

    hanging: bool
    upright: Floats
    turns_over: bool
    axis: Floats
    angles: Floats
    reach: Floats
    shifts: Floats

    def calmed(self, factor: float) -> Behaviour:
        """Give the same behaviour with shorter ways."""
        return replace(self, reach=self.reach * factor, shifts=self.shifts * factor)


@dataclass(frozen=True)
class Cylinder:
    """The upright cylinder that an object keeps to."""

    x: float
    y: float
    radius: float
    bottom: float
    top: float

    def apart(self, other: Cylinder) -> bool:
        """Tell whether two cylinders keep their distance."""
        across = np.hypot(self.x - other.x, self.y - other.y) - self.radius - other.radius
        along = max(self.bottom - other.top, other.bottom - self.top)
        return bool(max(across, along) >= GAP)


def draw_shapes(rng: np.random.Generator, scene_id: SceneId) -> list[str]:
    """Draw the names of the shapes of a scene's objects. Every third is thin."""
    return [
        draw_part(rng, THIN_KINDS if _is_thin(number) else SOLID_KINDS, scene_id.split)
        for number in range(scene_id.objects)
    ]


def place_objects(
    rng: np.random.Generator, scene_id: SceneId, shapes: Sequence[str], ceiling: float
) -> list[PlacedObject]:
    """Place objects of these shapes in a scene, below a ceiling of this height."""
    size = min(1.3, 3.0 / np.sqrt(scene_id.objects))
    placed: list[PlacedObject] = []
    cylinders: list[Cylinder] = []
    for number, shape in enumerate(shapes):
        larger = 1.4 if _is_thin(number) else 1.0
        mesh = make_shape(shape).scaled(size * rng.uniform(0.8, 1.3) * larger)
        # The first ones stand, so that there is something on the floor.
        behaviour = draw_behaviour(rng, scene_id, hanging=number > 1 and rng.random() < 0.4)
        while (cylinder := _free_place(rng, mesh, behaviour, cylinders, ceiling)) is None:
            mesh, behaviour = mesh.scaled(0.9), behaviour.calmed(0.9)
        cylinders.append(cylinder)
        placed.append(PlacedObject(shape, mesh, posed(behaviour, cylinder)))
    return placed


def _is_thin(number: int) -> bool:
    return number % 3 == 1


def draw_behaviour(rng: np.random.Generator, scene_id: SceneId, *, hanging: bool) -> Behaviour:
    """Draw how an object is put up, and how it moves if it does.

    Standing objects stay upright: they glide and turn on the floor. Hanging ones may turn about any
    axis.
    """
    times = np.arange(scene_id.frames) / max(1, scene_id.frames - 1)
    upright = rotation(_UP, rng.uniform(0, 2 * np.pi))
    axis, tilt = _direction(rng), rng.uniform(0, 1.0)
    if hanging:
        upright = rotation(axis, tilt) @ upright
    moves = rng.random() < 0.6 and scene_id.motion == "moving"
    reach = rng.uniform([0.0, 0.0, 0.0], [0.18, 0.18, 0.12]) * (1.0 if moves else 0.0)
    if not hanging:
        axis, reach[2] = _UP, 0.0
    turn = rng.uniform(0.5, 2.0) * rng.choice([-1.0, 1.0]) * (1.0 if moves else 0.0)
    waves = np.sin(2 * np.pi * (times[:, None] * rng.uniform(0.4, 1.0, 3) + rng.uniform(0, 1, 3)))
    return Behaviour(
        hanging=hanging,
        upright=upright,
        turns_over=hanging and moves,
        axis=axis,
        angles=turn * times,
        reach=reach,
        shifts=reach * waves,
    )


def _free_place(
    rng: np.random.Generator,
    mesh: Mesh,
    behaviour: Behaviour,
    taken: Sequence[Cylinder],
    ceiling: float,
) -> Cylinder | None:
    """Draw a place where an object keeps its distance, or return None after some tries."""
    radius, half = extent(mesh, behaviour)
    along_x, along_y, along_z = behaviour.reach.tolist()
    radius, half = radius + float(np.hypot(along_x, along_y)), half + along_z
    if radius > REACH or 2 * half > ceiling - 0.3:
        return None
    for _ in range(_TRIES):
        distance, angle = (REACH - radius) * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        bottom = rng.uniform(0.2, 1.0) if behaviour.hanging else 0.0
        bottom = min(bottom, ceiling - 0.1 - 2 * half)
        place = Cylinder(
            x=float(distance * np.cos(angle)),
            y=float(distance * np.sin(angle)),
            radius=radius,
            bottom=bottom,
            top=bottom + 2 * half,
        )
        if all(place.apart(other) for other in taken):
            return place
    return None


def extent(mesh: Mesh, behaviour: Behaviour) -> tuple[float, float]:
    """Return the radius and half the height of the cylinder that an object's rotation keeps to."""
    points = mesh.vertices @ behaviour.upright.T
    if behaviour.turns_over:
        radius = float(np.linalg.norm(points, axis=1).max())
        return radius, radius
    return float(np.hypot(points[:, 0], points[:, 1]).max()), float(np.abs(points[:, 2]).max())


def posed(behaviour: Behaviour, cylinder: Cylinder) -> Floats:
    """Return an object's poses [T, 3, 4] at its place."""
    middle = np.array([cylinder.x, cylinder.y, (cylinder.bottom + cylinder.top) / 2])
    return np.stack(
        [
            pose(rotation(behaviour.axis, float(angle)) @ behaviour.upright, middle + shift)
            for angle, shift in zip(behaviour.angles, behaviour.shifts, strict=True)
        ]
    )


def _direction(rng: np.random.Generator) -> Floats:
    """Draw a direction in space."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)
