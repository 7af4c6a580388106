"""Make the scene of an id: bodies with textures and motions, cameras and lights.

World coordinates are metres, z up (`pipeline.scenes.room`). A scene follows from its id alone. The
order of the draws is part of the format: another order gives other scenes (`scene_id.VERSION`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.camera_path import draw_cameras
from pipeline.scenes.lights import Light, draw_lights
from pipeline.scenes.mesh import Floats, Mesh
from pipeline.scenes.occluders import draw_occluder_shapes, place_occluders
from pipeline.scenes.placement import PlacedObject, draw_shapes, place_objects
from pipeline.scenes.rigid import pose
from pipeline.scenes.room import FACES, draw_room, room_meshes
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.textures import draw_texture, texture_source
from shards.clip import Camera

_PATH_FRAMES = 61
"""Cameras by which occluders are placed, so that the number of frames does not matter."""


@dataclass(frozen=True, eq=False)
class Body:
    """A textured mesh that moves rigidly.

    texture:  name for `pipeline.scenes.textures.texture`
    instance: 0 for the room, 1 and up for objects, then for occluders
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
    """Everything in a scene. The room's bodies come first, then the objects, then occluders.

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
    shapes, textures = _shapes(scene_id), _textures(scene_id)
    placed = place_objects(
        _random(scene_id, 3), scene_id, shapes[: scene_id.objects], room.height
    ) + _occluders(scene_id, shapes[scene_id.objects :])
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
    """Return the name of each object's shape, then of each occluder's."""
    return draw_shapes(_random(scene_id, 4), scene_id) + draw_occluder_shapes(
        _random(scene_id, 6), scene_id
    )


def _textures(scene_id: SceneId) -> list[str]:
    """Return the names of the textures of the room's faces, of the objects and of occluders."""
    rng, of_occluders = _random(scene_id, 5), _random(scene_id, 7)
    # Photographs have too little detail for a wall.
    textures = [
        draw_texture(rng, scene_id.split, photographs=number >= FACES)
        for number in range(FACES + scene_id.objects)
    ]
    return textures + [
        draw_texture(of_occluders, scene_id.split, photographs=True)
        for _ in range(scene_id.occluders)
    ]


def _occluders(scene_id: SceneId, shapes: list[str]) -> list[PlacedObject]:
    """Place the occluders of a scene between its objects and the path of its camera."""
    if not shapes:
        return []
    path = cameras_of(replace(scene_id, frames=_PATH_FRAMES))
    return place_occluders(_random(scene_id, 8), scene_id, shapes, path)


def _random(scene_id: SceneId, aspect: int) -> np.random.Generator:
    """Return the random numbers of one aspect of a scene.

    Light, orbit, size, occluders and number of frames are not among the seeds, and each aspect has
    its own numbers: the same room with the same objects exists in every light, on every orbit, and
    with and without occluders.
    """
    split = int(scene_id.split == "eval")
    return np.random.default_rng([scene_id.seed, scene_id.number, split, aspect])
