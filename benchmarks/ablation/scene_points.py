"""What is known of points of held-out clips: the angle they are seen from, and what they lie on.

Clips of the source `scenes` are made again from their id, which gives the exact answer, for moving
objects too. For others with cameras, the angle is that between the two rays, which is right for
what stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import fingerprint
from pipeline.scenes.scene import Scene, make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import cast, view_directions
from shards.clip import Camera
from shards.files import open_atomic
from trainer.evaluate.heldout.clips import HeldOutClip, HeldOutSet

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointLabels:
    """The points of C clips with T frames and N points each.

    angles:  float [C, T, N] degrees between the directions from which the camera sees a point in
             the anchor frame and in each frame; NaN if unknown
    objects: float [C, N]: 1 on an object, 0 on the room, NaN if unknown
    """

    angles: Floats
    objects: Floats


def point_labels(held_out: HeldOutSet, folder: Path) -> PointLabels:
    """Label the points of held-out clips, once: FOLDER keeps the labels."""
    key = fingerprint([held_out.to_json(), [clip.frame_numbers for clip in held_out.clips]])
    path = folder / f"points-{key}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return PointLabels(stored["angles"], stored["objects"])
    labels = [label_clip(clip) for clip in held_out.clips]
    angles, objects = (np.stack(parts) for parts in zip(*labels, strict=True))
    with open_atomic(path) as file:
        np.savez(file, angles=angles, objects=objects)
    return PointLabels(angles, objects)


def label_clip(clip: HeldOutClip) -> tuple[Floats, Floats]:
    """Return angles [T, N] and objects [N] of a clip."""
    if clip.info.dataset == "scenes":
        return label_scene(make_scene(SceneId.parse(clip.info.video_id)), clip)
    points = clip.track_mask.shape[1]
    return _ray_angles(clip), np.full(points, np.nan)


def label_scene(scene: Scene, clip: HeldOutClip) -> tuple[Floats, Floats]:
    """Return angles [T, N] and objects [N] of a clip of a rendered scene."""
    numbers = [clip.info.frame_numbers[number] for number in clip.frame_numbers]
    size = np.array([scene.id.width, scene.id.height])
    queries = clip.positions[0].numpy().astype(np.float64) * size - 0.5
    # A query that was moved out of the frame by rounding would see nothing there.
    points, _ = cast(scene, numbers[0], queries.clip(-0.5, size - 0.5))
    directions = view_directions(scene, points, numbers)
    angles = np.stack([_angles(directions[0], later) for later in directions])
    return angles, (points.instances(scene) > 0).astype(np.float64)


def _ray_angles(clip: HeldOutClip) -> Floats:
    """Return the degrees between the rays of the anchor's and each frame's camera: [T, N]."""
    points = clip.track_mask.shape[1]
    cameras = clip.info.cameras
    chosen = [cameras[number] if cameras else None for number in clip.frame_numbers]
    size = np.array([clip.info.width, clip.info.height])
    rays = []
    for camera, positions in zip(chosen, clip.positions.numpy(), strict=True):
        if camera is None:
            rays.append(np.full((points, 3), np.nan))
            continue
        x, y = (positions.astype(np.float64) * size - 0.5).T
        in_camera = [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(points)]
        rays.append(np.stack(in_camera, axis=-1) @ _matrix(camera)[:, :3])
    return np.stack([_angles(rays[0], ray) for ray in rays])


def _matrix(camera: Camera) -> Floats:
    return np.reshape(np.array(camera.world_to_camera, np.float64), (3, 4))


def _angles(first: Floats, second: Floats) -> Floats:
    """Return the degrees between vectors [N, 3] and [N, 3]: [N]; exact for small angles too."""
    crossed = np.linalg.norm(np.cross(first, second), axis=-1)
    degrees: Floats = np.degrees(np.arctan2(crossed, (first * second).sum(axis=-1)))
    return degrees
