"""Make the stored clip of a scene without rendering it: exact tracks and depth, grey frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.scene import Scene, make_scene
from pipeline.scenes.scene_id import Motion, SceneId
from pipeline.scenes.truth import cast
from pipeline.sources.scenes import DEPTH_SCALE
from pipeline.trackers.ground_truth import GroundTruthSettings
from shards import jpeg
from shards.frame_maps import FrameMaps, encode_depth
from shards.geometry import grid_points
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip

Floats = NDArray[np.float64]

WIDTH, HEIGHT, FRAMES, ANCHORS = 96, 64, 8, (0, 5)


@dataclass(frozen=True, eq=False)
class SceneClip:
    """A clip of a scene as a build with `tracker: truth` and depth maps stores it.

    places: [A, T, N, 3], where the points of its tracks are in the world, in metres
    """

    clip: StoredClip
    scene: Scene
    places: Floats

    def in_cameras(self) -> Floats:
        """Return the places in the axes of each frame's camera: [A, T, N, 3]."""
        matrices = np.reshape([c.world_to_camera for c in self.scene.cameras], (-1, 3, 4))
        turned = np.einsum("tij,atnj->atni", matrices[:, :, :3], self.places)
        return turned + matrices[:, None, :, 3]


def scene_clip(motion: Motion = "static", grid: int = 8) -> SceneClip:
    """Make a clip of 8 frames of 96x64, whose camera covers 40 degrees, with two anchors."""
    scene_id = SceneId(
        split="train",
        seed=3,
        number=0,
        objects=6,
        orbit=40,
        motion=motion,
        frames=FRAMES,
        width=WIDTH,
        height=HEIGHT,
    )
    scene = make_scene(scene_id)
    info = replace(
        make_clip("scenes-made-000000", frames=FRAMES).info,
        dataset="scenes",
        video_id=str(scene_id),
        width=WIDTH,
        height=HEIGHT,
        source_width=WIDTH,
        source_height=HEIGHT,
        frame_numbers=tuple(range(FRAMES)),
        cameras=scene.cameras,
        depth_scale=DEPTH_SCALE,
    )
    queries = grid_points(grid, WIDTH, HEIGHT)
    tracker = GroundTruthSettings(tracker="truth").load()
    (tracks,) = tracker.track([], [info], ANCHORS, queries)
    # Positions are stored in steps of 1/32 pixel; these are stored as they are.
    tracks = replace(tracks, positions=(np.rint(tracks.positions * 32) / 32).astype(np.float32))
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    cv2.circle(grey, (10, 10), 3, (200, 0, 0), -1)
    pixels = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), axis=-1).reshape(-1, 2)
    depths = [cast(scene, t, pixels)[1].reshape(HEIGHT, WIDTH) for t in range(FRAMES)]
    maps = FrameMaps(tuple(encode_depth(depth.astype(np.float32), DEPTH_SCALE) for depth in depths))
    return SceneClip(
        StoredClip(info, tracks, (jpeg.encode(grey, 95),) * FRAMES, maps),
        scene,
        np.stack([_places(scene, anchor, queries) for anchor in ANCHORS]),
    )


def _places(scene: Scene, anchor: int, queries: NDArray[np.float32]) -> Floats:
    """Return where the points at queries of a frame are in the world, in each frame: [T, N, 3]."""
    points, _ = cast(scene, anchor, queries)
    on_bodies = points.positions(scene)
    places = np.empty((FRAMES, *on_bodies.shape))
    for t in range(FRAMES):
        for n, body in enumerate(points.body):
            pose = scene.bodies[body].poses[t]
            places[t, n] = pose[:, :3] @ on_bodies[n] + pose[:, 3]
    return places
