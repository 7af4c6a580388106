"""Synthetic scenes: their tracks against other ways to compute them, and against their pixels."""

from __future__ import annotations

from importlib import metadata

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.tap import StandingStill, synthetic_clips
from benchmarks.tap_vid import evaluate_tracker
from pipeline.sources.synthetic_scene import Scene, SceneId, make_scene, render, true_tracks
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from shards.errors import PretrackError
from shards.geometry import grid_points

SMALL = SceneId(seed=7, number=1, frames=24, width=160, height=120)


def intrinsics(scene: Scene, frame: int) -> NDArray[np.float64]:
    camera = scene.cameras[frame]
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])


def bilinear(frame: NDArray[np.number], points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Sample the colours [N, 3] of a frame at points [N, 2]."""
    x, y = points.astype(np.float32).T
    return cv2.remap(
        frame.astype(np.float32),
        x[None],
        y[None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[0]


def test_an_id_is_parsed_as_it_is_written() -> None:
    assert str(SceneId(7, 3, 24, 320, 240)) == "v1-seed7-scene0003-24f-320x240"
    assert SceneId.parse("v1-seed7-scene0003-24f-320x240") == SceneId(7, 3, 24, 320, 240)
    for wrong, why in (
        ("apple/189", "is not the id of a synthetic scene"),
        ("v9-seed7-scene0003-24f-320x240", "version 9"),
    ):
        with pytest.raises(PretrackError, match=why):
            SceneId.parse(wrong)


def test_a_scene_follows_from_its_id() -> None:
    one, two, longer, other = (
        make_scene(SceneId(7, number, frames, 160, 120))
        for number, frames in ((1, 24), (1, 24), (1, 30), (2, 24))
    )
    assert (one.homographies == two.homographies).all()
    assert one.cameras == two.cameras
    assert (longer.homographies[:, :24] == one.homographies).all()
    assert other.cameras != one.cameras


@pytest.mark.parametrize("size", [(160, 120), (120, 160)])
def test_something_is_behind_every_pixel_and_nothing_near_the_camera(size: tuple[int, int]) -> None:
    x, y = np.linspace(-0.5, size[0] - 0.5, 9)[None], np.linspace(-0.5, size[1] - 0.5, 9)[:, None]
    for number in range(20):
        scene = make_scene(SceneId(0, number, 48, *size))
        nearness = np.stack([scene.nearness(frame, x, y) for frame in range(0, 48, 6)])
        assert np.isfinite(nearness[:, 0]).all()
        assert nearness.max() < 1.0


def test_surfaces_move_rigidly_and_rays_meet_them_where_they_lie() -> None:
    """Rays that are intersected with planes in camera space give the same depths and misses."""
    scene = make_scene(SMALL)
    x, y = np.random.default_rng(0).uniform(-20, 140, (2, 500))
    for frame in (0, 11, 23):
        rays = np.linalg.solve(intrinsics(scene, frame), np.stack([x, y, np.ones_like(x)])).T
        nearness = scene.nearness(frame, x, y)
        for surface, homography, found in zip(
            scene.surfaces, scene.homographies[:, frame], nearness, strict=True
        ):
            across, down, centre = np.linalg.solve(intrinsics(scene, frame), homography).T
            np.testing.assert_allclose(
                [across @ across, down @ down, across @ down], [1, 1, 0], atol=1e-12
            )
            normal = np.cross(across, down)
            assert normal @ centre > 0  # seen from the front, not mirrored
            points = rays * ((normal @ centre) / (rays @ normal))[:, None]
            hit = (np.abs((points - centre) @ across) <= surface.width / 2) & (
                np.abs((points - centre) @ down) <= surface.height / 2
            )
            assert (np.isfinite(found) == hit).all()
            np.testing.assert_allclose(found[hit], 1 / points[hit, 2], rtol=1e-9)


def test_tracks_of_the_backdrop_are_what_the_cameras_project() -> None:
    scene = make_scene(SMALL)
    queries = grid_points(12, 160, 120)
    positions, _ = true_tracks(scene, 5, queries)
    of_backdrop = scene.nearness(5, *queries.T.astype(np.float64)).argmax(axis=0) == 0
    poses = [np.reshape(camera.world_to_camera, (3, 4)) for camera in scene.cameras]
    eye = -poses[5][:, :3].T @ poses[5][:, 3]
    rays = (
        np.linalg.solve(intrinsics(scene, 5), np.column_stack([queries, np.ones(len(queries))]).T).T
        @ poses[5][:, :3]
    )
    points = eye + rays * ((8.0 - eye[2]) / rays[:, 2:])
    assert of_backdrop.sum() > 30
    for frame in (0, 5, 23):
        turn, place = cv2.Rodrigues(poses[frame][:, :3])[0], poses[frame][:, 3]
        projected = cv2.projectPoints(points, turn, place, intrinsics(scene, frame), None)[0][:, 0]
        np.testing.assert_allclose(positions[frame][of_backdrop], projected[of_backdrop], atol=1e-6)


def test_frames_show_photographs_where_the_surfaces_lie() -> None:
    """Colours of the photographs fit a frame best where its homographies say, to 1/4 pixel."""
    scene = make_scene(SMALL)
    frame = render(scene, 3)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(2, 158.0), np.arange(2, 118.0)))
    owner = scene.nearness(3, x, y).argmax(axis=0)
    for number, surface in enumerate(scene.surfaces):
        path = metadata.distribution("scikit-image").locate_file(
            f"skimage/data/{surface.photograph}"
        )
        picture = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.float32)
        if surface.tiled:
            picture = cv2.copyMakeBorder(
                picture, 0, picture.shape[0], 0, picture.shape[1], cv2.BORDER_REFLECT
            )
        size = np.array([picture.shape[1], picture.shape[0]])
        texels_per_pixel = size[0] / surface.width * scene.homographies[number, 3, 2, 2] / 160
        blurred = cv2.GaussianBlur(picture, (0, 0), max(0.1, texels_per_pixel / 3))
        error = {}
        for shift in ((0, 0), (0.25, 0), (-0.25, 0), (0, 0.25), (0, -0.25)):
            pixels = np.stack([x + shift[0], y + shift[1], np.ones_like(x)])[:, owner == number]
            u, v, w = np.linalg.solve(scene.homographies[number, 3], pixels)
            texels = (
                np.stack([u / w / surface.width, v / w / surface.height], axis=-1) + 0.5
            ) * size - 0.5
            shown = frame[y.astype(int), x.astype(int)][owner == number]
            error[shift] = float(np.abs(bilinear(blurred, texels) - shown).mean())
        assert (owner == number).sum() > 100
        assert min(error, key=lambda shift: error[shift]) == (0, 0), (surface, error)


def test_pixels_move_as_the_tracks_say() -> None:
    """Colours are constant along visible tracks.

    Half a pixel beside a track they fit less well. Where a point is hidden, other colours are seen.
    """
    scene = make_scene(SMALL)
    frames = [render(scene, frame) for frame in range(0, 24, 4)]
    x, y = np.meshgrid(np.arange(4, 156, 2.0), np.arange(4, 116, 2.0))
    queries = np.stack([x, y], axis=-1).reshape(-1, 2)
    positions, seen = true_tracks(scene, 0, queries)
    assert seen[0].all()
    np.testing.assert_allclose(positions[0], queries, atol=1e-9)
    start = bilinear(frames[0], queries)
    hidden_in_frame = ~seen & (positions > 0).all(-1) & (positions < (159, 119)).all(-1)
    assert 0.1 < hidden_in_frame[20].mean() < 0.6
    for frame, t in zip(frames[1:], range(4, 24, 4), strict=True):
        difference = {
            shift: float(
                np.abs(bilinear(frame, positions[t] + shift) - start).mean(axis=-1)[seen[t]].mean()
            )
            for shift in ((0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
        }
        assert difference[0, 0] < 10
        assert all(
            difference[0, 0] < 0.9 * difference[shift] for shift in difference if shift != (0, 0)
        )
        hidden = np.abs(bilinear(frame, positions[t]) - start).mean(axis=-1)[hidden_in_frame[t]]
        assert hidden.mean() > 3 * difference[0, 0]


@pytest.mark.slow
def test_lucas_kanade_follows_them_and_standing_still_does_not() -> None:
    for clip in synthetic_clips(2):
        still, followed = (
            evaluate_tracker(tracker, clip, "first")
            for tracker in (StandingStill(), LucasKanadeSettings().load())
        )
        assert followed.delta_avg > 0.5
        assert followed.delta_avg > 2 * still.delta_avg
        assert followed.average_jaccard > 2 * still.average_jaccard
