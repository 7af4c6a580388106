"""Make scenes of photographs on planes in space, which swing before a moving pinhole camera.

In each frame a plane has a homography H. It maps a point (u, v) on the plane, in world units from
the plane's centre, to the image:

    H @ (u, v, 1) = z * (x, y, 1)        where z is the point's depth from the camera

Therefore inv(H) @ (x, y, 1) = (u, v, 1) / z gives, for a pixel's ray, the point where it meets the
plane and the inverse of its depth; u/z, v/z and 1/z are affine functions of the pixel (Hartley
& Zisserman, Multiple View Geometry, 2nd ed., 8.1.1). Pixels and tracks are both computed from this,
so the tracks are exact up to the rounding of float64.

A scene follows from its id alone. Tracks need no photographs; rendering reads the ones that the
package scikit-image ships.

Legend of shapes: S surfaces, T frames, N points, H and W the frame's height and width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera
from shards.errors import PretrackError
from shards.geometry import inside

FRAMES_PER_SECOND = 24
PHOTOGRAPHS = {
    "astronaut.png": (512, 512),
    "brick.png": (512, 512),
    "chelsea.png": (451, 300),
    "coffee.png": (600, 400),
    "grass.png": (512, 512),
    "gravel.png": (512, 512),
    "hubble_deep_field.jpg": (1000, 872),
    "rocket.jpg": (640, 427),
}
"""The photographs used: name → (width, height) in pixels. All are in the public domain or CC0."""

_VERSION = 1
"""Raised by hand when the same seed gives another scene. It is part of every id, so that tracks and
frames of different versions are never mixed."""
_SAMPLES = 3
"""Samples per pixel and axis when rendering: a pixel is the mean of 9."""
_BACKDROP = (20.0, 8.0)
"""(width, distance) of the plane behind everything, in world units: it fills every frame."""
_SURFACES = (4, 7)
"""The number of surfaces before the backdrop: at least the first, less than the second."""
_DEPTHS = (3.0, 6.0)
"""Distances of the nearest and the farthest of those surfaces from the origin, in world units. The
camera moves about the origin."""
_HERTZ = (0.15, 0.45)
"""Least and greatest frequency of all oscillations, in Hz."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SceneId:
    """Everything that determines a scene.

    Its text form is the video's id ("v1-seed7-scene0003-24f-320x240").

    seed:          the source's seed
    number:        which of the seed's scenes, from 0
    frames:        number of frames
    width, height: of the frames, in pixels
    """

    seed: int
    number: int
    frames: int
    width: int
    height: int

    def __str__(self) -> str:
        scene = f"seed{self.seed}-scene{self.number:04d}"
        return f"v{_VERSION}-{scene}-{self.frames}f-{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> SceneId:
        """Parse the text form. Raises PretrackError for other text and for other versions."""
        match = re.fullmatch(r"v(\d+)-seed(\d+)-scene(\d+)-(\d+)f-(\d+)x(\d+)", text, re.ASCII)
        if not match:
            raise PretrackError(
                f"'{text}' is not the id of a synthetic scene such as {cls(7, 3, 24, 320, 240)}"
            )
        version, *numbers = map(int, match.groups())
        if version != _VERSION:
            raise PretrackError(
                f"the scene {text} has version {version}, "
                f"and this version of pretrack makes version {_VERSION}"
            )
        return cls(*numbers)


@dataclass(frozen=True)
class Surface:
    """A rectangle in space with a photograph on it.

    width, height: its extent in world units, around its centre; u points right and v down
    tiled:         whether it shows the photograph and its mirror images, two by two
    """

    photograph: str
    width: float
    height: float
    tiled: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """Surfaces and the cameras that see them.

    cameras:      one per frame
    homographies: [S, T, 3, 3], the homography of each surface in each frame
    """

    id: SceneId
    cameras: tuple[Camera, ...]
    surfaces: tuple[Surface, ...]
    homographies: Floats

    def nearness(self, frame: int, x: Floats, y: Floats) -> Floats:
        """Return the inverse depth of every surface along the rays of pixels: [S, ...].

        It is -inf where a ray misses the surface. x and y are in pixels, centres at integers, and
        broadcast against each other: [N] and [N], or [1, W] and [H, 1].
        """
        inverse_depths = []
        for surface, inverse in zip(
            self.surfaces, np.linalg.inv(self.homographies[:, frame]), strict=True
        ):
            # (u, v, 1) / z of the module's docstring, so the rectangle's bounds are divided by z
            # too.
            u, v, inverse_depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
            hit = (np.abs(u) <= inverse_depth * (surface.width / 2)) & (
                np.abs(v) <= inverse_depth * (surface.height / 2)
            )
            inverse_depths.append(np.where(hit, inverse_depth, -np.inf))
        return np.stack(inverse_depths)


def check_photographs() -> Path:
    """Return the folder of the photographs. Raises PretrackError if they are not installed."""
    try:
        return Path(str(metadata.distribution("scikit-image").locate_file("skimage/data")))
    except metadata.PackageNotFoundError as error:
        raise PretrackError(
            "synthetic scenes show photographs of scikit-image: pip install 'pretrack[synthetic]'"
        ) from error


def make_scene(scene_id: SceneId) -> Scene:
    """Make the scene of an id, the same every time.

    The order of the draws is part of the format: another order gives other scenes (`_VERSION`).
    """
    rng = np.random.default_rng([scene_id.seed, scene_id.number])
    times = np.arange(scene_id.frames) / FRAMES_PER_SECOND
    cameras = _cameras(rng, times, scene_id)
    # The backdrop stands still and shows the first photograph.
    photographs = rng.permutation(list(PHOTOGRAPHS)).tolist()
    count = int(rng.integers(*_SURFACES))
    surfaces = [_surface(photographs[0], _BACKDROP[0], tiled=True)]
    backdrop = _pose(np.zeros(3), np.array([0, 0, _BACKDROP[1]]))
    poses = [np.tile(backdrop, (scene_id.frames, 1, 1))]  # per surface [T, 3, 4]
    # The other surfaces stand at increasing depths and swing about their centres.
    for photograph, depth in zip(
        photographs[1 : count + 1], np.linspace(*_DEPTHS, count), strict=True
    ):
        surfaces.append(_surface(photograph, rng.uniform(0.25, 0.4) * depth))
        centre = np.array([rng.uniform(-0.3, 0.3) * depth, rng.uniform(-0.2, 0.2) * depth, depth])
        centres = centre + _swing(rng, times, np.array([0.25 * depth, 0.15 * depth, 0.5]))
        rotations = _swing(rng, times, np.array([0.5, 0.5, 0.4]))
        poses.append(np.stack(list(map(_pose, rotations, centres))))
    homographies = np.stack([_homographies(surface_poses, cameras) for surface_poses in poses])
    return Scene(id=scene_id, cameras=cameras, surfaces=tuple(surfaces), homographies=homographies)


def render(scene: Scene, frame: int) -> NDArray[np.uint8]:
    """Render a frame [H, W, 3], RGB uint8. Each sample of a pixel shows the nearest surface.

    Raises PretrackError if the photographs are not installed.
    """
    width, height = scene.id.width * _SAMPLES, scene.id.height * _SAMPLES
    # Positions of the samples in pixels: the first lies `offset` from the centre of its pixel.
    offset = (1 - _SAMPLES) / (2 * _SAMPLES)
    x = np.arange(width)[None] / _SAMPLES + offset
    y = np.arange(height)[:, None] / _SAMPLES + offset
    nearest = scene.nearness(frame, x, y).argmax(axis=0)
    # The inverse: pixels → samples.
    to_samples = np.array(
        [[_SAMPLES, 0, -_SAMPLES * offset], [0, _SAMPLES, -_SAMPLES * offset], [0, 0, 1]]
    )
    canvas = np.zeros((height, width, 3), np.uint8)
    for number, (surface, homography) in enumerate(
        zip(scene.surfaces, scene.homographies[:, frame], strict=True)
    ):
        visible = nearest == number
        if visible.any():
            # Samples over the surface's width, at the depth of its centre.
            samples = _SAMPLES * scene.cameras[frame].fx * surface.width / homography[2, 2]
            picture = _texture(surface.photograph, surface.tiled, _halvings(surface, samples))
            to_image = (
                to_samples @ homography @ _from_texture(surface, picture.shape[1], picture.shape[0])
            )
            warped = cv2.warpPerspective(
                picture,
                to_image,
                (width, height),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            np.copyto(canvas, warped, where=visible[..., None])
    return np.asarray(
        cv2.resize(canvas, (scene.id.width, scene.id.height), interpolation=cv2.INTER_AREA),
        np.uint8,
    )


def true_tracks(
    scene: Scene, frame: int, queries: NDArray[np.floating]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Track the points seen at `queries` [N, 2] in `frame`: positions [T, N, 2], visible [T, N].

    Positions are (x, y) in pixels, centres at integers, and may lie outside the frame. A point is
    visible if it lies in the frame and no other surface is nearer to the camera. A ray that meets
    no surface (far outside the frame) gets the point on the backdrop's plane.
    """
    # The surface that each query shows (argmax gives 0, the backdrop, where all are -inf), and the
    # point on it: it stays the same point in all frames.
    rays = np.concatenate([queries, np.ones((len(queries), 1))], axis=1)
    owner = scene.nearness(frame, rays[:, 0], rays[:, 1]).argmax(axis=0)
    on_surface = np.einsum("nij,nj->ni", np.linalg.inv(scene.homographies[owner, frame]), rays)
    on_surface /= on_surface[:, 2:]
    positions = np.empty((scene.id.frames, len(queries), 2))
    visible = np.empty(positions.shape[:2], np.bool_)
    for t in range(scene.id.frames):
        image = np.einsum("nij,nj->ni", scene.homographies[owner, t], on_surface)
        positions[t] = image[:, :2] / image[:, 2:]
        # Compare inverse depths, with a margin: a point must not hide itself through rounding.
        nearest = scene.nearness(t, positions[t, :, 0], positions[t, :, 1]).max(axis=0)
        visible[t] = inside(positions[t], scene.id.width, scene.id.height) & (
            nearest <= (1 + 1e-9) / image[:, 2]
        )
    return positions, visible


def _cameras(rng: np.random.Generator, times: Floats, scene_id: SceneId) -> tuple[Camera, ...]:
    """Make the camera of each frame: it moves and rotates a little about the origin.

    The focal length in pixels is the frame's longer side, which gives a field of view of 53
    degrees.
    """
    positions = _swing(rng, times, np.array([0.5, 0.3, 0.3]))
    rotations = _swing(rng, times, np.array([0.05, 0.08, 0.05]))
    focal = float(max(scene_id.width, scene_id.height))
    return tuple(
        Camera(
            fx=focal,
            fy=focal,
            cx=(scene_id.width - 1) / 2,
            cy=(scene_id.height - 1) / 2,
            world_to_camera=tuple(_inverse(_pose(rotation, position)).ravel().tolist()),
        )
        for rotation, position in zip(rotations, positions, strict=True)
    )


def _surface(photograph: str, width: float, tiled: bool = False) -> Surface:
    """Make a surface of the photograph's aspect ratio, `width` world units wide."""
    columns, rows = PHOTOGRAPHS[photograph]
    return Surface(photograph, width, width * rows / columns, tiled)


def _swing(rng: np.random.Generator, times: Floats, amplitude: Floats) -> Floats:
    """Draw a sine wave per entry of `amplitude` [K], sampled at `times` [T] in seconds: [T, K].

    Each has its own random frequency and phase.
    """
    hertz, phase = rng.uniform(*_HERTZ, amplitude.shape), rng.uniform(0, 1, amplitude.shape)
    return amplitude * np.sin(2 * np.pi * (times[:, None] * hertz + phase))


def _pose(rotation: Floats, translation: Floats) -> Floats:
    """Make [R | t], 3x4, from a rotation vector and a translation.

    The rotation vector's direction is the axis, its length the angle in radians.
    """
    return np.column_stack([cv2.Rodrigues(rotation)[0], translation])


def _inverse(pose: Floats) -> Floats:
    """Invert a rigid motion [R | t], 3x4: the result has the same form."""
    rotation = pose[:, :3].T
    return np.column_stack([rotation, -rotation @ pose[:, 3]])


def _homographies(poses: Floats, cameras: tuple[Camera, ...]) -> Floats:
    """Compute a surface's homographies [T, 3, 3] from its poses [T, 3, 4] and the cameras.

    Each is K [R | t] of the frame's camera times the surface's pose. The pose's third column is
    left out, since w = 0 on the plane.
    """
    homographies = []
    for pose, camera in zip(poses, cameras, strict=True):
        intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
        plane = np.vstack([pose[:, [0, 1, 3]], [0, 0, 1]])
        homographies.append(intrinsics @ world_to_camera @ plane)
    return np.stack(homographies)


def _from_texture(surface: Surface, width: int, height: int) -> Floats:
    """Return the affine 3x3 from pixels of a `width` x `height` texture to (u, v) on the surface.

    Pixel centres are at integers.
    """
    du, dv = surface.width / width, surface.height / height  # world units per texture pixel
    return np.array(
        [
            [du, 0, (du - surface.width) / 2],
            [0, dv, (dv - surface.height) / 2],
            [0, 0, 1],
        ]
    )


def _halvings(surface: Surface, samples: float) -> int:
    """Return how often to halve a texture that is shown over `samples` samples in width.

    The result has between one and two texture pixels per sample, so that none is skipped (aliasing)
    and nothing is blurred. A texture that is shown enlarged is not halved.
    """
    texture_width = PHOTOGRAPHS[surface.photograph][0] * (2 if surface.tiled else 1)
    return max(0, int(np.log2(texture_width / samples)))


@lru_cache(maxsize=32)
def _texture(photograph: str, tiled: bool, halvings: int) -> NDArray[np.uint8]:
    """Load a photograph [h, w, 3], RGB, with its width and height halved `halvings` times.

    If `tiled`, its mirror images are beside and below it. Raises PretrackError if the photographs
    are not installed, or the file is not the one that scikit-image ships.
    """
    path = check_photographs() / photograph
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None or (picture.shape[1], picture.shape[0]) != PHOTOGRAPHS[photograph]:
        raise PretrackError(
            f"{path} is not the photograph that scikit-image ships: reinstall scikit-image"
        )
    height, width = picture.shape[:2]
    if tiled:
        picture = cv2.copyMakeBorder(picture, 0, height, 0, width, cv2.BORDER_REFLECT)
    size = (max(1, picture.shape[1] >> halvings), max(1, picture.shape[0] >> halvings))
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if halvings else picture, np.uint8
    )
