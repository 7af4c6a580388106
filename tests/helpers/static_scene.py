"""Make tracks of random points of a static scene before known cameras, and plant faults in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from shards import jpeg
from shards.clip import Camera, ClipInfo, Tracks
from shards.geometry import grid_points, inside
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip

SIZE = (320, 256)
"""Width and height of the frames, in pixels."""
FOCAL = 300.0
NOISE = 0.25
"""Standard deviation of right tracks' errors, in pixels along each axis."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StaticScene:
    """Tracks of a static scene: as they are (`truth` [A, T, N, 2]), and as a tracker gives them."""

    info: ClipInfo
    truth: Floats
    tracks: Tracks

    @property
    def errors(self) -> Floats:
        """Largest distance of each track from the truth while it is visible: [A, N]."""
        distances = np.linalg.norm(self.tracks.positions - self.truth, axis=-1)
        return np.where(self.tracks.visibility > 127, distances, 0).max(axis=1)


def static_scene(
    seed: int = 0,
    *,
    frames: int = 48,
    anchors: tuple[int, ...] = (0, 16, 32),
    grid: int = 16,
    turn: float = 40.0,
    noise: float = NOISE,
) -> StaticScene:
    """Make a scene of points at random depths, before cameras on an arc of `turn` degrees."""
    rng = np.random.default_rng(seed)
    cameras = arc(frames, turn)
    width, height = SIZE
    queries = grid_points(grid, width, height).astype(np.float64)
    truth = np.stack(
        [
            project(cameras, unproject(cameras[a], queries, rng.uniform(2.5, 5.5, len(queries))))
            for a in anchors
        ]
    )
    positions = truth + rng.normal(0, noise, truth.shape)
    positions[np.arange(len(anchors)), list(anchors)] = queries
    visible = inside(truth, width, height).astype(np.uint8) * 255
    base = make_clip("made-scene-000000", seed, frames).info
    info = replace(base, width=width, height=height, cameras=tuple(cameras))
    confidence = np.full_like(visible, 255)
    tracks = Tracks(np.array(anchors, np.int32), positions.astype(np.float32), visible, confidence)
    return StaticScene(info, truth, tracks)


def stored_scene(scene: StaticScene, key: str, source: str = "made") -> StoredClip:
    """Give a scene as a clip of noise, the same in every frame."""
    width, height = SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = cv2.resize(noise, SIZE, interpolation=cv2.INTER_CUBIC)
    info = replace(scene.info, key=key, video_id=key, sequence=key, source=source)
    return StoredClip(info, scene.tracks, (jpeg.encode(picture, 90),) * info.frames)


def arc(frames: int, turn: float, radius: float = 4.0) -> list[Camera]:
    """Make cameras on an arc about the point (0, 0, radius), which they look at; they also nod."""
    made = []
    for t in range(frames):
        angle = np.radians(turn) * (t / (frames - 1) - 0.5)
        tilt = 0.08 * np.sin(2 * np.pi * t / frames)
        c, s = np.cos(angle), np.sin(angle)
        about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        c, s = np.cos(tilt), np.sin(tilt)
        about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        rotation = about_x @ about_y
        target = np.array([0.0, 0.0, radius])
        shift = target - rotation @ target
        made.append(camera_of(rotation, shift))
    return made


def camera_of(rotation: Floats, shift: Floats) -> Camera:
    """Make a camera in the middle of the frame with FOCAL, from a world-to-camera motion."""
    matrix = np.column_stack([rotation, shift])
    width, height = SIZE
    return Camera(FOCAL, FOCAL, (width - 1) / 2, (height - 1) / 2, tuple(matrix.ravel().tolist()))


def project(cameras: list[Camera], points: Floats) -> Floats:
    """Project points [N, 3] into every camera: [T, N, 2]."""
    projected = []
    for camera in cameras:
        matrix = np.array(camera.world_to_camera).reshape(3, 4)
        x, y, z = matrix[:, :3] @ points.T + matrix[:, 3:]
        projected.append(
            np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], axis=-1)
        )
    return np.stack(projected)


def unproject(camera: Camera, pixels: Floats, depths: Floats) -> Floats:
    """Return the world points [N, 3] at pixels [N, 2] and depths [N] of a camera."""
    x = (pixels[:, 0] - camera.cx) / camera.fx * depths
    y = (pixels[:, 1] - camera.cy) / camera.fy * depths
    matrix = np.array(camera.world_to_camera).reshape(3, 4)
    return (np.stack([x, y, depths], axis=-1) - matrix[:, 3]) @ matrix[:, :3]


def moved_world(info: ClipInfo, rotation: Floats, shift: Floats, scale: float) -> ClipInfo:
    """Describe the same cameras in a world that is turned, moved and scaled."""
    cameras: list[Camera | None] = []
    for camera in info.cameras or ():
        if camera is None:
            cameras.append(None)
            continue
        matrix = np.array(camera.world_to_camera).reshape(3, 4)
        # X_new = scale * rotation @ X + shift, and camera space is scaled too.
        turned = matrix[:, :3] @ rotation.T
        moved = scale * matrix[:, 3] - turned @ shift
        numbers = np.column_stack([turned, moved]).ravel().tolist()
        cameras.append(replace(camera, world_to_camera=tuple(numbers)))
    return replace(info, cameras=tuple(cameras))


def with_positions(scene: StaticScene, positions: Floats) -> StaticScene:
    """Give the scene other tracked positions."""
    return replace(scene, tracks=replace(scene.tracks, positions=positions.astype(np.float32)))


def with_drift(scene: StaticScene, seed: int = 1, part: float = 0.25) -> StaticScene:
    """Let a part of the tracks drift away from the anchor, by 4 to 16 pixels at the clip's end."""
    rng = np.random.default_rng(seed)
    positions = scene.tracks.positions.astype(np.float64)
    a, t, n, _ = positions.shape
    steps = rng.normal(0, 1, (a, n, 2))
    steps /= np.linalg.norm(steps, axis=-1, keepdims=True)
    drift = steps * rng.uniform(4, 16, (a, n, 1)) * (rng.random((a, n, 1)) < part)
    since = np.abs(np.arange(t) - scene.tracks.anchors[:, None]) / t
    return with_positions(scene, positions + since[:, :, None, None] * drift[:, None])


def with_swaps(scene: StaticScene, seed: int = 2, part: float = 0.25) -> StaticScene:
    """Let a part of the tracks jump to a neighbour's point after half of the frames."""
    rng = np.random.default_rng(seed)
    positions = scene.tracks.positions.astype(np.float64)
    a, t, n, _ = positions.shape
    swapped = (rng.random((a, 1, n)) < part) & (
        np.abs(np.arange(t) - scene.tracks.anchors[:, None]) >= 8
    )[..., None]
    return with_positions(
        scene, np.where(swapped[..., None], np.roll(positions, 1, axis=2), positions)
    )


def with_wrong_poses(
    scene: StaticScene, frames: tuple[int, ...], degrees: float = 6.0
) -> StaticScene:
    """Turn the cameras of some frames about their vertical and optical axes."""
    cameras = list(scene.info.cameras or ())
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    )
    for t in frames:
        matrix = turned @ np.array(cameras[t].world_to_camera).reshape(3, 4)  # type: ignore[union-attr]
        cameras[t] = replace(cameras[t], world_to_camera=tuple(matrix.ravel().tolist()))  # type: ignore[type-var]
    return replace(scene, info=replace(scene.info, cameras=tuple(cameras)))


def with_moving_object(scene: StaticScene, seed: int = 3) -> StaticScene:
    """Let the points in the middle of each anchor frame move in the scene, 0.5 px per frame."""
    width, height = SIZE
    positions = scene.tracks.positions.astype(np.float64)
    rows = np.arange(len(scene.tracks.anchors))
    queries = positions[rows, scene.tracks.anchors]
    moving = (np.abs(queries[..., 0] - width / 2) < width / 5) & (
        np.abs(queries[..., 1] - height / 2) < height / 5
    )
    since = np.arange(positions.shape[1]) - scene.tracks.anchors[:, None]
    shift = np.stack([0.3 * since, 0.4 * since], axis=-1)[:, :, None] * moving[:, None, :, None]
    return with_positions(scene, positions + shift)


def with_confidence(scene: StaticScene, seed: int = 4) -> StaticScene:
    """Give tracks the confidence of a tracker that notices a part of its errors."""
    rng = np.random.default_rng(seed)
    distances = np.linalg.norm(scene.tracks.positions - scene.truth, axis=-1)
    # A point that jumped far looks as good as one that jumped a little.
    doubt = 0.2 * np.minimum(distances, 6) + rng.normal(0, 1.0, distances.shape)
    # A tracker doubts whole tracks, for their texture.
    doubt += rng.normal(0, 1.5, (len(distances), 1, distances.shape[2]))
    confidence = np.rint(255 / (1 + np.exp(doubt - 3))).astype(np.uint8)
    return replace(scene, tracks=replace(scene.tracks, confidence=confidence))


FAULTS: dict[str, Callable[[StaticScene], StaticScene]] = {
    "drift": with_drift,
    "swapped points": with_swaps,
    "moving object": with_moving_object,
    "wrong poses in some frames": lambda scene: with_drift(with_wrong_poses(scene, (5, 16, 30))),
}


def area_under_curve(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the AUROC: how often a positive has the larger score; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(positive.sum())
    negatives = len(positive) - positives
    total = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(total / (positives * negatives))
