"""Depth and normals at patches, from depth maps of planes and of scenes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import cast, surface_normals
from pipeline.sources.scenes import DEPTH_SCALE, encoded_depth
from shards.clip import Camera
from trainer.evaluate.heldout.surfaces import sample_surfaces

CAMERA = Camera(100.0, 120.0, 47.5, 31.5, (1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0))


def plane(normal: list[float], distance: float) -> np.ndarray:
    """The depth map, 96x64, of the plane of points X with normal . X = -distance."""
    y, x = np.mgrid[:64, :96]
    rays = np.stack([(x - 47.5) / 100, (y - 31.5) / 120, np.ones(x.shape)], axis=-1)
    return (-distance / (rays @ normal)).astype(np.float32)


def test_a_plane_has_its_normal_everywhere() -> None:
    normal = [0.36, -0.48, -0.8]  # towards the camera, to the right and up
    log_depth, normals = sample_surfaces(plane(normal, 3.0), CAMERA, 4)
    assert normals.reshape(-1, 3) == pytest.approx(np.tile(normal, (16, 1)), abs=1e-3)
    # The third patch of the first row has its centre at x = 59.5 and y = 7.5, rounded to even.
    expected = plane(normal, 3.0)[8, 60]
    assert log_depth[0, 2] == pytest.approx(np.log(expected))


def test_edges_and_unknown_depth_have_no_normal() -> None:
    depth = plane([0, 0, -1], 2.0)
    depth[:, 60:] = 4.0  # the third column of patches has its centres here, at x = 60
    depth[:20] = 0.0  # and the first row is unknown
    log_depth, normals = sample_surfaces(depth, CAMERA, 4)
    assert np.isnan(log_depth[0]).all()
    assert np.isnan(normals[0]).all()
    assert np.isnan(normals[1:, 2]).all()
    assert log_depth[1:, 2] == pytest.approx(np.log(4))
    assert normals[1:, [0, 1, 3]].reshape(-1, 3) == pytest.approx(np.tile([0, 0, -1], (9, 1)))
    known, without = sample_surfaces(depth, None, 4)
    assert np.array_equal(known, log_depth, equal_nan=True)
    assert np.isnan(without).all()


def test_normals_of_a_scene_are_near_those_of_its_geometry() -> None:
    """From depth as it is stored, in steps of 1/8192 m."""
    scene = make_scene(SceneId(split="eval", seed=0, number=1, frames=1))
    pixels = np.stack(np.meshgrid(np.arange(128), np.arange(128)), axis=-1).reshape(-1, 2)
    points, depths = cast(scene, 0, pixels)
    depth = (encoded_depth(depths).astype(np.float32) * DEPTH_SCALE).reshape(128, 128)
    _, normals = sample_surfaces(depth, scene.cameras[0], 16)
    exact = surface_normals(scene, points, [0]).reshape(128, 128, 3)
    centres = np.rint(8 * np.arange(16) + 3.5).astype(int)
    cosines = (normals * exact[np.ix_(centres, centres)]).sum(axis=-1)
    known = np.isfinite(cosines)
    assert 0.8 < known.mean() < 0.95
    angles = np.degrees(np.arccos(cosines[known].clip(-1, 1)))
    assert np.median(angles) < 0.2
    assert np.percentile(angles, 95) < 13
    assert angles.max() < 30
