"""Photographs as planes in space, swinging in front of one another and of a moving pinhole camera.

A plane's homography H of a frame takes a point (u, v) on it, in world units from its centre, to the image:

    H @ (u, v, 1) = z * (x, y, 1)        with z its depth before the camera

so that inv(H) @ (x, y, 1) = (u, v, 1) / z: of a pixel's ray, where it meets the plane and the inverse of how deep, each an affine
function of the pixel (Hartley & Zisserman, Multiple View Geometry, 2nd ed., 8.1.1). Pixels and tracks are both computed from that,
so the tracks are exact: the only rounding is that of float64.

A scene follows from its id alone. Tracks need no photograph; rendering reads those that the package scikit-image ships.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera
from shards.errors import PretrackError
from shards.geometry import inside

FRAMES_A_SECOND = 24
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
"""(width, height) of those used, in pixels. All are in the public domain or CC0."""

_VERSION = 1
"""Raised by hand when the same seed gives another scene. It is a part of every id, so old tracks and frames are never mixed up."""
_SAMPLES = 3
"""Samples a pixel and axis when rendering: 9 are averaged."""
_BACKDROP = (20.0, 8.0)
"""(width, distance) of the plane behind everything, in world units: large enough to fill every frame."""
_SURFACES = (4, 7)
"""How many there are before the backdrop: at least, and less than."""
_DEPTHS = (3.0, 6.0)
"""Distances of the nearest and the farthest of them from the origin, where the camera sways, in world units."""
_HERTZ = (0.15, 0.45)
"""Frequencies of everything that swings: at least, and at most."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SceneId:
    """Everything a scene follows from; as text it is the video's id ("v1-seed7-scene0003-24f-320x240")."""

    seed: int
    number: int
    frames: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"v{_VERSION}-seed{self.seed}-scene{self.number:04d}-{self.frames}f-{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> SceneId:
        """Reads the text form. Raises PretrackError for any other text, and for scenes of another version."""
        match = re.fullmatch(r"v(\d+)-seed(\d+)-scene(\d+)-(\d+)f-(\d+)x(\d+)", text, re.ASCII)
        if not match:
            raise PretrackError(
                f"'{text}' is not the id of a synthetic scene such as {cls(7, 3, 24, 320, 240)}"
            )
        version, *numbers = map(int, match.groups())
        if version != _VERSION:
            raise PretrackError(
                f"the scene {text} has version {version}, and this version of pretrack makes version {_VERSION}"
            )
        return cls(*numbers)


@dataclass(frozen=True)
class Surface:
    """A rectangle in space with a photograph on it: `width` x `height` world units around its centre, u to the right and v down.

    A `tiled` one shows the photograph and its mirror images, two by two.
    """

    photograph: str
    width: float
    height: float
    tiled: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """Surfaces, the cameras that see them (one a frame), and `homographies` [S, T, 3, 3] of each surface in each frame."""

    id: SceneId
    cameras: tuple[Camera, ...]
    surfaces: tuple[Surface, ...]
    homographies: Floats

    def nearness(self, frame: int, x: Floats, y: Floats) -> Floats:
        """Inverse depth of every surface along the rays of pixels: [S, ...], -inf where a ray misses the surface.

        x and y are in pixels, centres at integers, and broadcast against each other: [N] and [N], or [1, W] and [H, 1].
        """
        found = []
        for surface, inverse in zip(
            self.surfaces, np.linalg.inv(self.homographies[:, frame]), strict=True
        ):
            u, v, near = (row[0] * x + row[1] * y + row[2] for row in inverse)
            hit = (np.abs(u) <= near * (surface.width / 2)) & (
                np.abs(v) <= near * (surface.height / 2)
            )
            found.append(np.where(hit, near, -np.inf))
        return np.stack(found)


def make_scene(name: SceneId) -> Scene:
    """The scene of an id, the same every time."""
    rng = np.random.default_rng([name.seed, name.number])
    times = np.arange(name.frames) / FRAMES_A_SECOND
    cameras = _cameras(rng, times, name)
    photographs = rng.permutation(list(PHOTOGRAPHS)).tolist()
    count = int(rng.integers(*_SURFACES))
    surfaces = [_surface(photographs[0], _BACKDROP[0], tiled=True)]
    poses = [np.tile(_pose(np.zeros(3), np.array([0, 0, _BACKDROP[1]])), (name.frames, 1, 1))]
    for photograph, depth in zip(
        photographs[1 : count + 1], np.linspace(*_DEPTHS, count), strict=True
    ):
        surfaces.append(_surface(photograph, rng.uniform(0.25, 0.4) * depth))
        centre = np.array([rng.uniform(-0.3, 0.3) * depth, rng.uniform(-0.2, 0.2) * depth, depth])
        places = centre + _swing(rng, times, np.array([0.25 * depth, 0.15 * depth, 0.5]))
        turns = _swing(rng, times, np.array([0.5, 0.5, 0.4]))
        poses.append(
            np.stack([_pose(turn, place) for turn, place in zip(turns, places, strict=True)])
        )
    homographies = np.stack([_homographies(surface_poses, cameras) for surface_poses in poses])
    return Scene(name, cameras, tuple(surfaces), homographies)


def render(scene: Scene, frame: int) -> NDArray[np.uint8]:
    """A frame [H, W, 3], RGB: each of a pixel's samples shows the surface nearest to the camera.

    Raises PretrackError if the photographs are not installed.
    """
    width, height = scene.id.width * _SAMPLES, scene.id.height * _SAMPLES
    offset = (1 - _SAMPLES) / (2 * _SAMPLES)  # of the first sample from the centre of its pixel
    x, y = (
        np.arange(width)[None] / _SAMPLES + offset,
        np.arange(height)[:, None] / _SAMPLES + offset,
    )
    nearest = scene.nearness(frame, x, y).argmax(axis=0)
    to_samples = np.array(
        [[_SAMPLES, 0, -_SAMPLES * offset], [0, _SAMPLES, -_SAMPLES * offset], [0, 0, 1]]
    )
    canvas = np.zeros((height, width, 3), np.uint8)
    for number, (surface, homography) in enumerate(
        zip(scene.surfaces, scene.homographies[:, frame], strict=True)
    ):
        here = nearest == number
        if here.any():
            samples = _SAMPLES * scene.cameras[frame].fx * surface.width / homography[2, 2]
            picture = _texture(surface.photograph, surface.tiled, _halvings(surface, samples))
            to_image = (
                to_samples @ homography @ _from_texture(surface, picture.shape[1], picture.shape[0])
            )
            shown = cv2.warpPerspective(
                picture,
                to_image,
                (width, height),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            np.copyto(canvas, shown, where=here[..., None])
    return np.asarray(
        cv2.resize(canvas, (scene.id.width, scene.id.height), interpolation=cv2.INTER_AREA),
        np.uint8,
    )


def true_tracks(
    scene: Scene, frame: int, queries: NDArray[np.floating]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Where the points seen at `queries` [N, 2] in `frame` are in all frames [T, N, 2], and whether they are seen there [T, N].

    Positions are (x, y) in pixels, centres at integers, and may lie outside the frame. A point is seen if it lies in the frame and
    no other surface is nearer to the camera. A ray that meets nothing (far outside the frame) goes to the plane of the backdrop.
    """
    rays = np.concatenate([queries, np.ones((len(queries), 1))], axis=1)
    owner = scene.nearness(frame, rays[:, 0], rays[:, 1]).argmax(axis=0)
    on_surface = np.einsum("nij,nj->ni", np.linalg.inv(scene.homographies[owner, frame]), rays)
    on_surface /= on_surface[:, 2:]
    positions = np.empty((scene.id.frames, len(queries), 2))
    seen = np.empty(positions.shape[:2], np.bool_)
    for t in range(scene.id.frames):
        image = np.einsum("nij,nj->ni", scene.homographies[owner, t], on_surface)
        positions[t] = image[:, :2] / image[:, 2:]
        nearest = scene.nearness(t, positions[t, :, 0], positions[t, :, 1]).max(axis=0)
        seen[t] = inside(positions[t], scene.id.width, scene.id.height) & (
            nearest <= (1 + 1e-9) / image[:, 2]
        )
    return positions, seen


def _cameras(rng: np.random.Generator, times: Floats, name: SceneId) -> tuple[Camera, ...]:
    """A camera that sways a little, with a focal length as long as the frame's longer side (53 degrees)."""
    places, turns = (
        _swing(rng, times, np.array([0.5, 0.3, 0.3])),
        _swing(rng, times, np.array([0.05, 0.08, 0.05])),
    )
    focal = float(max(name.width, name.height))
    centre = ((name.width - 1) / 2, (name.height - 1) / 2)
    return tuple(
        Camera(focal, focal, *centre, tuple(_inverse(_pose(turn, place)).ravel().tolist()))
        for turn, place in zip(turns, places, strict=True)
    )


def _surface(photograph: str, width: float, tiled: bool = False) -> Surface:
    """A surface with its photograph's shape."""
    across, down = PHOTOGRAPHS[photograph]
    return Surface(photograph, width, width * down / across, tiled)


def _swing(rng: np.random.Generator, times: Floats, reach: Floats) -> Floats:
    """Sine waves [T, K] in as many axes as `reach` [K] has, each of its own frequency and phase and up to its reach."""
    hertz, phase = rng.uniform(*_HERTZ, reach.shape), rng.uniform(0, 1, reach.shape)
    return reach * np.sin(2 * np.pi * (times[:, None] * hertz + phase))


def _pose(turn: Floats, place: Floats) -> Floats:
    """[R | t] 3x4 of a rotation vector (its direction the axis, its length the angle in radians) and a place."""
    return np.column_stack([cv2.Rodrigues(turn)[0], place])


def _inverse(pose: Floats) -> Floats:
    """The inverse of a rigid motion [R | t], 3x4 as well."""
    rotation = pose[:, :3].T
    return np.column_stack([rotation, -rotation @ pose[:, 3]])


def _homographies(poses: Floats, cameras: tuple[Camera, ...]) -> Floats:
    """K [R | t] of each frame's camera, after the surface's pose [T, 3, 4] without its third column (w is 0 on the plane)."""
    found = []
    for pose, camera in zip(poses, cameras, strict=True):
        intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
        plane = np.vstack([pose[:, [0, 1, 3]], [0, 0, 1]])
        found.append(intrinsics @ world_to_camera @ plane)
    return np.stack(found)


def _from_texture(surface: Surface, width: int, height: int) -> Floats:
    """Affine 3x3: a texture's pixels (centres at integers) → (u, v) on the surface."""
    across, down = surface.width / width, surface.height / height
    return np.array(
        [
            [across, 0, (across - surface.width) / 2],
            [0, down, (down - surface.height) / 2],
            [0, 0, 1],
        ]
    )


def _halvings(surface: Surface, samples: float) -> int:
    """How often to halve a texture that is shown over so many samples, so that it is neither skipped through nor blurred."""
    across = PHOTOGRAPHS[surface.photograph][0] * (2 if surface.tiled else 1)
    return max(0, int(np.log2(across / samples)))


@lru_cache(maxsize=32)
def _texture(photograph: str, tiled: bool, halvings: int) -> NDArray[np.uint8]:
    """A photograph [h, w, 3], RGB, with its mirror images beside and below it if `tiled`, halved in size so many times."""
    try:
        path = metadata.distribution("scikit-image").locate_file(f"skimage/data/{photograph}")
    except metadata.PackageNotFoundError as error:
        raise PretrackError(
            "synthetic scenes show photographs of scikit-image: pip install 'pretrack[synthetic]'"
        ) from error
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None or (picture.shape[1], picture.shape[0]) != PHOTOGRAPHS[photograph]:
        raise PretrackError(
            f"{path} is not the photograph that scikit-image ships: install scikit-image anew"
        )
    height, width = picture.shape[:2]
    if tiled:
        picture = cv2.copyMakeBorder(picture, 0, height, 0, width, cv2.BORDER_REFLECT)
    size = (max(1, picture.shape[1] >> halvings), max(1, picture.shape[0] >> halvings))
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if halvings else picture, np.uint8
    )
