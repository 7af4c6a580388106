"""Pictures, depth and instances of scenes as MuJoCo renders them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.scenes.render import Renderer
from pipeline.scenes.rigid import move
from pipeline.scenes.scene import Scene, make_scene
from pipeline.scenes.scene_id import Lighting, SceneId
from pipeline.scenes.textures import texture
from pipeline.scenes.truth import cast

SCENE_ID = SceneId(
    split="train", seed=5, number=2, objects=4, motion="moving", frames=3, width=96, height=64
)
DIGEST = """
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from tests.pipeline.scenes.test_render import digest
import sys
print(digest(make_scene(SceneId.parse(sys.argv[1]))))
"""


def digest(scene: Scene) -> str:
    """Digest everything that is rendered of the last frame, and the picture before it."""
    with Renderer(scene) as renderer:
        arrays = [renderer.picture(1), renderer.picture(2), renderer.instances(2)]
        arrays.append(renderer.depth(2).view(np.uint8))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(SCENE_ID)


@pytest.fixture(scope="module")
def renderer(scene: Scene) -> Iterator[Renderer]:
    with Renderer(scene) as renderer:
        yield renderer


def rays_through_pixels(scene: Scene, frame: int) -> NDArray[np.float64]:
    """Return the ray of each pixel's centre in the camera's axes, with z = 1: [H, W, 3]."""
    camera = scene.cameras[frame]
    x, y = np.meshgrid(np.arange(scene.id.width), np.arange(scene.id.height))
    return np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, x * 0 + 1], axis=-1)


def walls_in_camera(scene: Scene, frame: int) -> list[tuple[NDArray[np.float64], float]]:
    """Return the planes of the room as (unit normal n, offset): n . X = offset, in the camera."""
    motion = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
    planes = []
    for body in scene.bodies:
        if body.instance == 0:
            a, b, c = move(motion, body.mesh.vertices[body.mesh.faces[0]])
            normal = np.cross(b - a, c - a)
            normal /= np.linalg.norm(normal)
            planes.append((normal, float(normal @ a)))
    return planes


def test_the_rooms_depth_is_that_of_its_planes(scene: Scene, renderer: Renderer) -> None:
    """A camera that is off by a thousandth of a pixel changes depths by 1.5e-5."""
    for frame in (0, 2):
        depth = renderer.depth(frame)
        rays = rays_through_pixels(scene, frame)
        # The room is convex: of its planes, a ray hits the nearest in front.
        hits = np.stack(
            [
                offset / np.where(rays @ normal < 0, rays @ normal, -1e-9)
                for normal, offset in walls_in_camera(scene, frame)
            ]
        )
        room = np.where(hits > 0, hits, np.inf).min(axis=0)
        seen = renderer.instances(frame) == 0
        assert 0.1 < seen.mean() < 0.8
        assert np.abs(depth[seen] / room[seen] - 1).max() < 2e-6
        assert (depth[~seen] < room[~seen]).all()


def test_every_pixel_shows_the_surface_that_its_ray_meets(scene: Scene, renderer: Renderer) -> None:
    """Depth and instance of the renderer and of exact geometry check each other."""
    for frame in (0, 2):
        pixels = np.stack(np.meshgrid(np.arange(96), np.arange(64)), axis=-1).reshape(-1, 2)
        points, depth = cast(scene, frame, pixels)
        same = renderer.instances(frame).ravel() == points.instances(scene)
        # A pixel's centre may lie within rounding of an edge.
        assert same.mean() > 0.999
        error = np.abs(renderer.depth(frame).ravel() / depth - 1)
        assert (error < 3e-6).mean() > 0.998


def test_textures_are_where_the_geometry_puts_them(scene: Scene, renderer: Renderer) -> None:
    x, y = np.meshgrid(np.arange(scene.id.width), np.arange(scene.id.height))
    points, _ = cast(scene, 0, np.stack([x, y], axis=-1).reshape(-1, 2))
    upright, mirrored = np.empty((2, x.size, 3))
    for number in np.unique(points.body).tolist():
        body, own = scene.bodies[number], points.body == number
        uv = np.einsum("ni,nij->nj", points.weights[own], body.mesh.uv[points.face[own]])
        pixels = texture(body.texture).astype(np.float64)
        column, row = (uv * (len(pixels) - 1)).astype(int).T
        upright[own], mirrored[own] = pixels[len(pixels) - 1 - row, column], pixels[row, column]

    def likeness(shown: NDArray[np.float64]) -> float:
        """Correlate the share of red, which light changes little, with the picture's."""
        picture = renderer.picture(0).reshape(-1, 3).astype(np.float64)
        red = [(colours[:, 0] + 1) / (colours.sum(1) + 3) for colours in (shown, picture)]
        return float(np.corrcoef(red)[0, 1])

    assert likeness(upright) > 0.9
    assert likeness(mirrored) < 0.85


def test_a_picture_looks_the_same_for_ever(renderer: Renderer) -> None:
    """Mean red, green and blue of parts of a picture. Another driver rounds a few pixels.

    If this fails, frames that are rendered before and after do not belong together: raise
    `scene_id.VERSION`.
    """
    means = cv2.resize(renderer.picture(1), (3, 2), interpolation=cv2.INTER_AREA)
    expected = [
        [[77, 91, 92], [65, 93, 92], [78, 108, 108]],
        [[61, 120, 108], [69, 99, 98], [67, 97, 95]],
    ]
    assert np.abs(means.astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["egl", "osmesa"])
def test_the_same_bytes_in_another_process(scene: Scene, platform: str) -> None:
    """Mesa's EGL and OSMesa draw with the same code; a GPU's EGL rounds a few pixels otherwise."""
    if platform == "osmesa" and not find_library("OSMesa"):
        pytest.skip("OSMesa is not installed (apt-get install libosmesa6)")
    environment = {**os.environ, "LP_NUM_THREADS": "2", "MUJOCO_GL": platform}
    result = subprocess.run(
        [sys.executable, "-c", DIGEST, str(SCENE_ID)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert result.stdout.strip() == digest(scene)


@pytest.mark.slow
def test_light_changes_pictures_and_nothing_else() -> None:
    still = replace(SCENE_ID, motion="static", orbit=0, frames=2)
    brightness, contrast, change, levels, depths = {}, {}, {}, {}, []
    for light in get_args(Lighting):
        with Renderer(make_scene(replace(still, light=light))) as renderer:
            first, second = (renderer.picture(frame).astype(float) for frame in (0, 1))
            depths += [renderer.depth(0), renderer.depth(1)]
        levels[light] = np.rint(second.mean((0, 1))).tolist()
        brightness[light] = first.mean()
        contrast[light] = np.percentile(first, 90) / np.percentile(first, 10)
        change[light] = np.abs(first - second).mean()
    # If this fails, raise `scene_id.VERSION`, as above.
    assert levels["normal"] == pytest.approx([69, 96, 95], abs=1)
    assert levels["dim"] == pytest.approx([32, 44, 44], abs=1)
    assert levels["harsh"] == pytest.approx([40, 52, 54], abs=1)
    assert levels["varied"] == pytest.approx([66, 91, 92], abs=1)
    assert 60 < brightness["normal"] < 140
    assert brightness["dim"] < 0.6 * brightness["normal"]
    assert contrast["harsh"] > 1.5 * contrast["normal"]
    assert change["varied"] > 4
    assert change["normal"] == change["dim"] == change["harsh"] == 0
    assert all((depth == depths[0]).all() for depth in depths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "libraries", "said"),
    [
        ("glfw", True, "rendered"),
        ("osmesa", True, "OSMesa does not work on this machine|rendered"),
        (
            "egl",
            False,
            r"OpenGL's EGL does not work on this machine \(its library is missing\): apt",
        ),
        ("osmesa", False, r"OSMesa does not work on this machine \(its library is missing\): inst"),
    ],
)
def test_what_this_machine_has_is_used_or_missed_in_a_sentence(
    tmp_path: Path, platform: str, libraries: bool, said: str
) -> None:
    """MuJoCo's own variable MUJOCO_GL may be set for other programs."""
    program = f"""
from pipeline.failures import MachineError
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
scene = make_scene(SceneId.parse({str(replace(SCENE_ID, objects=1, width=32, height=32))!r}))
try:
    with Renderer(scene) as renderer:
        print("rendered" if renderer.picture(0).std() > 5 else "nothing is shown")
except MachineError as error:
    print(error)
"""
    environment = {**os.environ, "MUJOCO_GL": platform}
    if not libraries:
        # Files that are no libraries hide those of the system.
        for name in ("EGL", "OSMesa"):
            for ending in ("", ".0", ".1", ".6", ".8"):
                (tmp_path / f"lib{name}.so{ending}").touch()
        environment["LD_LIBRARY_PATH"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert re.search(said, result.stdout)
