"""Make the scene of an id: bodies with textures and motions, cameras and lights.

World coordinates are metres, z up (`pipeline.scenes.room`). A scene follows from its id alone. The
order of the draws is part of the format: another order gives other scenes (`scene_id.VERSION`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.scenes.camera_path import draw_cameras
from pipeline.scenes.lights import Light, draw_lights
from pipeline.scenes.mesh import Floats, Mesh
from pipeline.scenes.placement import draw_shapes, place_objects
from pipeline.scenes.rigid import pose
from pipeline.scenes.room import FACES, draw_room, room_meshes
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.textures import draw_texture, texture_source
from shards.clip import Camera


@dataclass(frozen=True, eq=False)
class Body:
    """A textured mesh that moves rigidly.

    texture:  name for `pipeline.scenes.textures.texture`
    instance: 0 for the room, 1 and up for objects
    poses:    [T, 3, 4], body coordinates to the world's, one per frame
    """

    name: str
    mesh: Mesh
    texture: str
    instance: int
    poses: Floats

    @property
    def moves(self) -> bool:
        """Whether its pose differs between frames."""
        return bool((self.poses != self.poses[0]).any())


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything in a scene. The room's bodies come first, then the objects.

    cameras: one per frame
    lights:  the lamps of each frame
    parts:   sorted names of its shapes, textures and photographs: scenes that share none have
             nothing in common but the recipes
    """

    id: SceneId
    bodies: tuple[Body, ...]
    cameras: tuple[Camera, ...]
    lights: tuple[tuple[Light, ...], ...]
    parts: tuple[str, ...]


def make_scene(scene_id: SceneId) -> Scene:
    """Make the scene of an id, the same every time."""
    room = draw_room(_random(scene_id, 0))
    lights = draw_lights(_random(scene_id, 2), room, scene_id.light, scene_id.frames)
    placed = place_objects(_random(scene_id, 3), scene_id, _shapes(scene_id), room.height)
    textures = _textures(scene_id)
    still = np.tile(pose(np.eye(3), np.zeros(3)), (scene_id.frames, 1, 1))
    bodies = [
        Body(name, mesh, texture, 0, still)
        for (name, mesh), texture in zip(room_meshes(room), textures, strict=False)
    ]
    bodies += [
        Body(item.shape, item.mesh, texture, number, item.poses)
        for number, (item, texture) in enumerate(
            zip(placed, textures[FACES:], strict=True), start=1
        )
    ]
    return Scene(
        id=scene_id,
        bodies=tuple(bodies),
        cameras=cameras_of(scene_id),
        lights=lights,
        parts=parts_of(scene_id),
    )


def cameras_of(scene_id: SceneId) -> tuple[Camera, ...]:
    """Return the camera of each frame of a scene, without making the scene."""
    return draw_cameras(_random(scene_id, 1), scene_id)


def parts_of(scene_id: SceneId) -> tuple[str, ...]:
    """Return the sorted names of a scene's shapes, textures and photographs, without making it."""
    return tuple(sorted({*_shapes(scene_id), *map(texture_source, _textures(scene_id))}))


def _shapes(scene_id: SceneId) -> list[str]:
    """Return the name of each object's shape."""
    return draw_shapes(_random(scene_id, 4), scene_id)


def _textures(scene_id: SceneId) -> list[str]:
    """Return the names of the textures of the room's faces and then of the objects."""
    rng = _random(scene_id, 5)
    # Photographs have too little detail for a wall.
    return [
        draw_texture(rng, scene_id.split, photographs=number >= FACES)
        for number in range(FACES + scene_id.objects)
    ]


def _random(scene_id: SceneId, aspect: int) -> np.random.Generator:
    """Return the random numbers of one aspect of a scene.

    Light, orbit, size and number of frames are not among the seeds, and each aspect has its own
    numbers: the same room with the same objects exists in every light and on every orbit.
    """
    split = int(scene_id.split == "eval")
    return np.random.default_rng([scene_id.seed, scene_id.number, split, aspect])
