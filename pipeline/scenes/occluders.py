"""Place occluders: thin or small bodies between the camera's path and the objects.

They keep to a ring that neither objects nor cameras reach. They have random numbers of their own,
so that the same room with the same objects exists with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.scenes.camera_path import NEAREST
from pipeline.scenes.mesh import Floats, Mesh
from pipeline.scenes.parts import draw_part
from pipeline.scenes.placement import (
    GAP,
    REACH,
    Behaviour,
    Cylinder,
    PlacedObject,
    draw_behaviour,
    extent,
    posed,
)
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.shapes import SOLID_KINDS, THIN_KINDS, make_shape
from shards.clip import Camera

INNER, OUTER = REACH + GAP, NEAREST - 0.35
"""Distances from the z axis between which occluders stay, in metres. The near plane's corners are
0.3 m from the camera."""
_BEYOND = np.radians(8)
"""How far occluders may lie beyond the ends of the camera's path: they are still in the frame."""
_CALM = 0.3
"""Occluders glide less far than objects: the ring is narrow."""
_AIM = 0.5
"""Height that cameras look at above the z axis, in metres, roughly."""
_TRIES = 80
"""Places that are tried for an occluder before it is made smaller."""


def draw_occluder_shapes(rng: np.random.Generator, scene_id: SceneId) -> list[str]:
    """Draw the names of the shapes of a scene's occluders. Every second is a standing pole."""
    return [
        draw_part(rng, ("pole",) if _stands(number) else SOLID_KINDS + THIN_KINDS, scene_id.split)
        for number in range(scene_id.occluders)
    ]


def place_occluders(
    rng: np.random.Generator, scene_id: SceneId, shapes: Sequence[str], path: Sequence[Camera]
) -> list[PlacedObject]:
    """Place occluders of these shapes, spread along the camera's path.

    path: cameras along it; the same ones whatever the scene's number of frames
    """
    cameras = np.stack([_position(camera) for camera in path])
    azimuths = np.arctan2(cameras[:, 0], -cameras[:, 1])
    ends = float(azimuths.min()) - _BEYOND, float(azimuths.max()) + _BEYOND
    step = (ends[1] - ends[0]) / max(1, len(shapes))
    placed: list[PlacedObject] = []
    cylinders: list[Cylinder] = []
    for number, shape in enumerate(shapes):
        stands = _stands(number)
        mesh = make_shape(shape).scaled(rng.uniform(0.9, 1.4) if stands else rng.uniform(0.3, 0.5))
        behaviour = draw_behaviour(rng, scene_id, hanging=not stands).calmed(_CALM)
        sector = ends[0] + number * step, ends[0] + (number + 1) * step
        while (cylinder := _free_place(rng, mesh, behaviour, sector, cameras, cylinders)) is None:
            mesh, behaviour = mesh.scaled(0.9), behaviour.calmed(0.9)
        cylinders.append(cylinder)
        placed.append(PlacedObject(shape, mesh, posed(behaviour, cylinder)))
    return placed


def _stands(number: int) -> bool:
    return number % 2 == 0


def _free_place(
    rng: np.random.Generator,
    mesh: Mesh,
    behaviour: Behaviour,
    sector: tuple[float, float],
    cameras: Floats,
    taken: Sequence[Cylinder],
) -> Cylinder | None:
    """Draw a place in the ring where an occluder keeps its distance, or return None.

    sector:  azimuths between which it lies, in radians
    cameras: positions of cameras [T, 3]; what hangs is near the line of sight of the nearest
    """
    radius, half = extent(mesh, behaviour)
    along_x, along_y, along_z = behaviour.reach.tolist()
    radius, half = radius + float(np.hypot(along_x, along_y)), half + along_z
    if 2 * radius > OUTER - INNER:
        return None
    for _ in range(_TRIES):
        distance, azimuth = rng.uniform(INNER + radius, OUTER - radius), rng.uniform(*sector)
        place = distance * np.array([np.sin(azimuth), -np.cos(azimuth)])
        nearest = cameras[np.linalg.norm(cameras[:, :2] - place, axis=1).argmin()]
        sight = _AIM + (nearest[2] - _AIM) * distance / np.hypot(nearest[0], nearest[1])
        middle = max(half + 0.05, sight + rng.uniform(-0.2, 0.2))
        bottom = float(middle - half) if behaviour.hanging else 0.0
        cylinder = Cylinder(float(place[0]), float(place[1]), radius, bottom, bottom + 2 * half)
        if all(cylinder.apart(other) for other in taken):
            return cylinder
    return None


def _position(camera: Camera) -> Floats:
    """Return the position [3] of a camera in the world."""
    pose = np.reshape(camera.world_to_camera, (3, 4))
    return np.asarray(-pose[:, :3].T @ pose[:, 3])
