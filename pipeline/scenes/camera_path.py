"""The camera's path: an arc about the objects, which it looks at."""

from __future__ import annotations

import numpy as np

from pipeline.scenes.mesh import Floats
from pipeline.scenes.rigid import inverse, pose, rotation
from pipeline.scenes.scene_id import LARGEST_ORBIT, SceneId
from shards.clip import Camera

NEAREST, FARTHEST = 2.1, 2.5
"""Least and greatest horizontal distance of the camera from the z axis, in metres."""


def draw_cameras(rng: np.random.Generator, scene_id: SceneId) -> tuple[Camera, ...]:
    """Draw the camera of each frame.

    The field of view is 45 degrees along the frame's longer side.
    """
    times = np.arange(scene_id.frames) / max(1, scene_id.frames - 1)
    # A shorter arc may lie anywhere on the largest one. A camera that does not orbit stands still.
    spare, liveliness = LARGEST_ORBIT - scene_id.orbit, min(1.0, scene_id.orbit / 30)
    middle, direction = rng.uniform(-spare / 2, spare / 2), rng.choice([-1.0, 1.0])
    azimuths = np.radians(middle + direction * scene_id.orbit * (times - 0.5))
    radius = rng.uniform(NEAREST + 0.1, FARTHEST - 0.1) + 0.1 * liveliness * _wave(rng, times)
    height = rng.uniform(0.75, 1.5) + 0.15 * liveliness * _wave(rng, times)
    positions = np.stack([radius * np.sin(azimuths), -radius * np.cos(azimuths), height], axis=-1)
    aims = np.array([0, 0, rng.uniform(0.45, 0.6)]) + 0.08 * liveliness * np.stack(
        [_wave(rng, times) for _ in range(3)], axis=-1
    )
    rolls = np.radians(3) * liveliness * _wave(rng, times)
    focal = 1.2 * max(scene_id.width, scene_id.height)
    return tuple(
        Camera(
            fx=focal,
            fy=focal,
            cx=(scene_id.width - 1) / 2,
            cy=(scene_id.height - 1) / 2,
            world_to_camera=tuple(_looking(position, aim, float(roll)).ravel().tolist()),
        )
        for position, aim, roll in zip(positions, aims, rolls, strict=True)
    )


def _looking(position: Floats, aim: Floats, roll: float) -> Floats:
    """Return the world-to-camera motion of a camera that looks at a point, x right and y down."""
    forward = (aim - position) / np.linalg.norm(aim - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    return inverse(pose(axes @ rotation(np.array([0.0, 0.0, 1.0]), roll), position))


def _wave(rng: np.random.Generator, times: Floats) -> Floats:
    """Draw a sine wave over the clip."""
    return np.asarray(np.sin(2 * np.pi * (times * rng.uniform(0.3, 1.0) + rng.uniform())))
