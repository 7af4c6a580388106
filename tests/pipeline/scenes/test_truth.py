"""Exact points of scenes: against a plain ray test, closed formulas, and the tracker `truth`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.scenes.rigid import move
from pipeline.scenes.scene import Scene, make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import (
    SurfacePoints,
    cast,
    follow,
    surface_normals,
    true_tracks,
    view_directions,
)
from pipeline.trackers.ground_truth import GroundTruthSettings
from shards.errors import PretrackError
from shards.geometry import FrameTransform, grid_points, inside
from tests.helpers.clips import make_clip

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(SceneId(split="train", seed=2, number=1, frames=8, motion="moving"))


def camera_position(scene: Scene, frame: int) -> Floats:
    world_to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
    return np.asarray(-world_to_camera[:, :3].T @ world_to_camera[:, 3])


def rays_in_camera(scene: Scene, frame: int, xy: NDArray[np.floating]) -> Floats:
    """Return the directions of pixels' rays in the camera's axes, with depth 1: [N, 3]."""
    camera = scene.cameras[frame]
    x, y = (xy[:, 0] - camera.cx) / camera.fx, (xy[:, 1] - camera.cy) / camera.fy
    return np.stack([x, y, np.ones(len(xy))], axis=1)


def rays(scene: Scene, frame: int, xy: NDArray[np.floating]) -> Floats:
    """Return the directions of pixels' rays in the world, with depth 1: [N, 3]."""
    world_to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
    return rays_in_camera(scene, frame, xy) @ world_to_camera[:, :3]


def first_hit(scene: Scene, frame: int, direction: Floats) -> tuple[float, int]:
    """Return the depth and the instance of the first front that a ray meets.

    Every face of the scene is tested in world coordinates (Möller & Trumbore, 1997).
    """
    origin, hits = camera_position(scene, frame), []
    for body in scene.bodies:
        a, b, c = np.moveaxis(move(body.poses[frame], body.mesh.vertices)[body.mesh.faces], 1, 0)
        across = np.cross(direction, c - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1 / np.einsum("fi,fi->f", b - a, across)
            u = inverse * np.einsum("fi,fi->f", origin - a, across)
            beside = np.cross(origin - a, b - a)
            v = inverse * (beside @ direction)
            depth = inverse * np.einsum("fi,fi->f", c - a, beside)
            met = (inverse > 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0)
        hits += [(float(z), body.instance) for z in depth[met]]
    return min(hits)


def test_a_point_projects_onto_its_query(scene: Scene) -> None:
    queries = grid_points(16, 128, 128)
    for frame in (0, 5):
        tracks = true_tracks(scene, frame, queries)
        assert np.abs(tracks.positions[frame] - queries).max() < 1e-11
        assert tracks.visible[frame].all()


def test_points_and_visibility_agree_with_a_plain_ray_test(scene: Scene) -> None:
    queries = np.random.default_rng(0).uniform(0, 127, (40, 2))
    points, depths = cast(scene, 4, queries)
    instances = points.instances(scene)
    assert 10 < (instances > 0).sum() < 38
    for direction, depth, instance in zip(rays(scene, 4, queries), depths, instances, strict=True):
        plain_depth, plain_instance = first_hit(scene, 4, direction)
        assert (depth, instance) == (pytest.approx(plain_depth, abs=1e-9), plain_instance)
    # In other frames: where the points are in the world, and what lies before them.
    tracks = follow(scene, points)
    in_body = points.positions(scene)
    for frame in (1, 7):
        poses = np.stack([scene.bodies[body].poses[frame] for body in points.body])
        world = np.einsum("nij,nj->ni", poses[:, :, :3], in_body) + poses[:, :, 3]
        world_to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
        depth = move(world_to_camera, world)[:, 2]
        in_frame = inside(tracks.positions[frame], 128, 128)
        directions = rays(scene, frame, tracks.positions[frame])
        np.testing.assert_allclose(
            camera_position(scene, frame) + depth[:, None] * directions, world, atol=1e-12
        )
        plain = [
            bool(shown) and z - first_hit(scene, frame, direction)[0] < 1e-9
            for shown, z, direction in zip(in_frame, depth, directions, strict=True)
        ]
        assert tracks.visible[frame].tolist() == plain
        assert 8 < sum(plain) < 38


def test_visible_points_are_those_of_the_depth_map(scene: Scene) -> None:
    """Casting at a point's position gives its own depth if it is visible, and less if hidden."""
    points, _ = cast(scene, 0, grid_points(24, 128, 128))
    tracks = follow(scene, points)
    for frame in (1, 4, 7):
        near = np.flatnonzero(inside(tracks.positions[frame], 128, 128))
        nearest, depth = cast(scene, frame, tracks.positions[frame, near])
        own = (nearest.body == points.body[near]) & (nearest.face == points.face[near])
        visible = tracks.visible[frame, near]
        assert (own == visible).mean() > 0.999
        world_to_camera = np.reshape(scene.cameras[frame].world_to_camera, (3, 4))
        poses = np.stack([scene.bodies[body].poses[frame] for body in points.body[near]])
        world = np.einsum("nij,nj->ni", poses[:, :, :3], points.positions(scene)[near])
        own_depth = move(world_to_camera, world + poses[:, :, 3])[:, 2]
        assert np.abs(depth - own_depth)[visible].max() < 1e-9
        assert (depth < own_depth)[~visible].all()


def test_rays_far_outside_the_frame_meet_the_room() -> None:
    """There, faces reach from before the camera to behind it."""
    room = make_scene(SceneId(split="train", seed=2, number=1, frames=2, objects=1))
    corners = np.concatenate([body.mesh.vertices for body in room.bodies[:6]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    xy = np.random.default_rng(0).uniform(-2000, 2000, (300, 2))
    points, depths = cast(room, 0, xy)
    origin, directions = camera_position(room, 0), rays(room, 0, xy)
    # A ray leaves a box where it leaves the first of its three pairs of planes.
    leaves = np.maximum((low - origin) / directions, (high - origin) / directions).min(axis=1)
    walls = points.instances(room) == 0
    assert walls.mean() > 0.95
    np.testing.assert_allclose(depths[walls], leaves[walls], rtol=1e-9)


def test_the_floor_goes_out_of_sight_behind_the_camera(scene: Scene) -> None:
    """Points behind the camera get finite positions outside the frame, and are not visible."""
    floor = scene.bodies[0]
    assert floor.name == "floor"
    count = len(floor.mesh.faces)
    points = SurfacePoints(np.zeros(count, int), np.arange(count), np.full((count, 3), 1 / 3))
    tracks = follow(scene, points)
    world_to_camera = np.reshape(scene.cameras[0].world_to_camera, (3, 4))
    behind = move(world_to_camera, points.positions(scene))[:, 2] < 0
    assert behind.sum() > 10
    assert np.isfinite(tracks.positions).all()
    assert not tracks.visible[0, behind].any()
    assert not inside(tracks.positions[0, behind], 128, 128).any()


def test_scenes_show_objects_from_many_sides() -> None:
    """Half of a grid's points lie on objects; a quarter of the visible pairs is beyond 30°."""
    shares, beyond = [], []
    for number in range(2):
        scene = make_scene(SceneId(split="train", seed=0, number=number, frames=8))
        points, _ = cast(scene, 4, grid_points(12, 128, 128))
        shares.append((points.instances(scene) > 0).mean())
        visible, directions = follow(scene, points).visible, view_directions(scene, points)
        first, second = np.triu_indices(8, 1)
        cosines = np.einsum("pni,pni->pn", directions[first], directions[second])
        both = visible[first] & visible[second]
        beyond.append((cosines[both] < np.cos(np.radians(30))).mean())
    assert np.mean(shares) > 0.5
    assert min(beyond) > 0.3


def test_the_viewing_angle_of_a_moving_body_is_measured_in_the_body(scene: Scene) -> None:
    points, _ = cast(scene, 0, grid_points(12, 128, 128))
    moving = points.moving(scene)
    assert 5 < moving.sum() < 140
    directions = view_directions(scene, points, [0, 7])
    for number in np.flatnonzero(moving)[:5].tolist():
        body = scene.bodies[points.body[number]]
        for row, frame in enumerate((0, 7)):
            world = move(body.poses[frame], points.positions(scene)[number : number + 1])[0]
            towards = camera_position(scene, frame) - world
            in_world = body.poses[frame][:, :3] @ directions[row, number]
            np.testing.assert_allclose(in_world, towards / np.linalg.norm(towards), atol=1e-12)


def test_normals_are_those_of_the_faces_in_the_cameras_axes(scene: Scene) -> None:
    """Three rays next to one another meet one face, which is a plane."""
    queries = np.random.default_rng(3).uniform(0, 127, (60, 2))
    frame, step = 5, 1e-3
    points, depths = cast(scene, frame, queries)
    places, same = [rays_in_camera(scene, frame, queries) * depths[:, None]], np.ones(60, bool)
    for shift in ((step, 0), (0, step)):
        beside, depth = cast(scene, frame, queries + shift)
        same &= (beside.body == points.body) & (beside.face == points.face)
        places.append(rays_in_camera(scene, frame, queries + shift) * depth[:, None])
    assert same.sum() > 50
    expected = np.cross(places[2] - places[0], places[1] - places[0])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    normals = surface_normals(scene, points, [0, frame])
    np.testing.assert_allclose(normals[1][same], expected[same], atol=1e-6)
    # Towards the camera, whose rays they meet.
    assert (np.einsum("ni,ni->n", normals[1], places[0]) < 0).all()
    moving = points.moving(scene)
    assert moving.any()
    # Between frames, those of the room turn with the camera alone, and those of bodies with them.
    first, second = (
        np.reshape(scene.cameras[t].world_to_camera, (3, 4))[:, :3] for t in (0, frame)
    )
    with_camera = normals[1] @ second @ first.T
    np.testing.assert_allclose(normals[0][~moving], with_camera[~moving], atol=1e-12)
    assert (np.abs(normals[0] - with_camera)[moving].max(axis=1) > 1e-3).all()


def test_the_tracker_gives_exact_tracks_of_any_window_and_size(scene: Scene) -> None:
    info = replace(
        make_clip().info,
        dataset="scenes",
        video_id=str(scene.id),
        width=64,
        height=48,
        source_width=128,
        source_height=128,
        frame_numbers=(1, 3, 6),
    )
    tracker = GroundTruthSettings(tracker="truth").load()
    frames, queries = np.zeros((3, 48, 64, 3), np.uint8), grid_points(6, 64, 48)
    tracks = tracker.track([frames], [info], [0, 2], queries)[0]
    shrink = FrameTransform.whole(128, 128, 64, 48)
    in_scene = FrameTransform.whole(64, 48, 128, 128).points(queries)
    for row, frame in enumerate((1, 6)):
        expected = true_tracks(scene, frame, in_scene, (1, 3, 6))
        positions = shrink.points(expected.positions.astype(np.float32))
        near = inside(positions, 64, 48)
        assert np.abs(tracks.positions[row] - positions)[near].max() < 1e-4
        assert (tracks.visibility[row] == 255 * expected.visible).all()
        assert 0.2 < expected.visible.mean() < 0.95
    np.testing.assert_array_equal(tracks.positions[[0, 1], [0, 2]], [queries, queries])
    assert (tracks.confidence == 255).all()
    with pytest.raises(PretrackError, match="came from frames of 96x64, and its scene v1-train"):
        tracker.track([frames], [replace(info, source_width=96, source_height=64)], [0], queries)
