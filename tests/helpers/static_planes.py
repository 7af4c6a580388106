"""Scenes of planes that stand still, with exact depth maps and tracks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.synthetic_scene import Scene, SceneId, make_scene, true_tracks
from shards.clip import Camera, ClipInfo
from tests.helpers.clips import make_clip


@dataclass(frozen=True, eq=False)
class StaticPlanes:
    """A synthetic scene whose surfaces stay where they are in its first frame.

    info:   describes a clip of all frames, with exact cameras
    depths: float32 [T, H, W], of the surface at the centre of each pixel
    """

    scene: Scene
    info: ClipInfo
    depths: NDArray[np.float32]

    def true_tracks(
        self, anchor: int, queries: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return exact positions [T, N, 2] and visibility [T, N] of what an anchor frame shows."""
        return true_tracks(self.scene, anchor, queries)


def static_planes(
    seed: int, frames: int, turn: float, width: int = 320, height: int = 240
) -> StaticPlanes:
    """Make the scene of a seed, seen from cameras on an arc of `turn` degrees about its middle."""
    scene_id = SceneId(seed, 0, frames, width, height)
    moving = make_scene(scene_id)
    cameras = _arc(moving.cameras[0], frames, turn)
    homographies = np.stack(
        [
            [_projection(camera) @ np.vstack([plane, [0, 0, 1]]) for camera in cameras]
            for plane in (_plane(h, moving.cameras[0]) for h in moving.homographies[:, 0])
        ]
    )
    scene = replace(moving, cameras=cameras, homographies=homographies)
    x, y = np.arange(width)[None].astype(np.float64), np.arange(height)[:, None].astype(np.float64)
    with np.errstate(divide="ignore"):
        depths = np.stack([1 / scene.nearness(t, x, y).max(axis=0) for t in range(frames)])
    info = replace(
        make_clip(frames=frames).info,
        width=width,
        height=height,
        source_width=width,
        source_height=height,
        cameras=cameras,
        depth_scale=1.0,
    )
    return StaticPlanes(scene, info, np.maximum(depths, 0).astype(np.float32))


def _projection(camera: Camera) -> NDArray[np.float64]:
    """K [R | t], 3x4."""
    intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    return intrinsics @ np.reshape(camera.world_to_camera, (3, 4))


def _plane(homography: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    """Return the axes and the centre of a surface in the world, [3, 3], by its homography."""
    projection = _projection(camera)
    shift = np.outer(projection[:, 3], [0, 0, 1])
    return np.linalg.solve(projection[:, :3], homography - shift)


def _arc(first: Camera, frames: int, turn: float) -> tuple[Camera, ...]:
    """Turn the camera about a point 4.5 in front of it, symmetrically, by `turn` degrees in all."""
    matrix = np.vstack([np.reshape(first.world_to_camera, (3, 4)), [0, 0, 0, 1]])
    cameras = []
    for degrees in np.linspace(-turn / 2, turn / 2, frames):
        about = np.eye(4)
        about[:3, :3], _ = cv2.Rodrigues(np.array([0, np.radians(degrees), 0]))
        centre = np.array([0, 0, 4.5])
        about[:3, 3] = centre - about[:3, :3] @ centre
        pose = about @ matrix
        cameras.append(replace(first, world_to_camera=tuple(pose[:3].ravel().tolist())))
    return tuple(cameras)
