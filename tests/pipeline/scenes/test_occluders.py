"""Occluders: they hide points, touch nothing, and leave the room and its objects as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import KDTree

from pipeline.scenes.parts import split_of_part
from pipeline.scenes.rigid import move
from pipeline.scenes.scene import make_scene, parts_of
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import true_tracks
from shards.errors import PretrackError
from shards.geometry import grid_points
from tests.pipeline.scenes.test_scene import digest_of, named_parts

FREE = SceneId(split="eval", seed=3, number=0, objects=4, frames=7, motion="moving")
HIDDEN = replace(FREE, occluders=5)


def test_an_id_names_occluders_only_where_there_are_any() -> None:
    assert str(FREE) == "v1-eval-seed3-scene0000-4objects-120deg-moving-normal-7f-128x128"
    text = "v1-eval-seed3-scene0000-4objects-5occluders-120deg-moving-normal-7f-128x128"
    assert str(HIDDEN) == text
    assert SceneId.parse(text) == HIDDEN
    # Two texts of one scene would be two videos.
    with pytest.raises(PretrackError, match="is not the id of a scene"):
        SceneId.parse(text.replace("5occluders", "0occluders"))
    for number in (-1, 11):
        with pytest.raises(PretrackError, match=f"'occluders' is 0 to 10, not {number}"):
            replace(FREE, occluders=number)


def test_an_id_says_its_occluders_for_ever() -> None:
    """If this fails, stored clips no longer match their scenes: raise `scene_id.VERSION`."""
    assert digest_of(make_scene(HIDDEN)) == "d0d593cf28cd6727"


def test_the_room_and_its_objects_are_the_same_with_occluders() -> None:
    free, hidden = make_scene(FREE), make_scene(HIDDEN)
    assert len(hidden.bodies) == len(free.bodies) + 5
    for body, same in zip(free.bodies, hidden.bodies, strict=False):
        assert (body.name, body.texture, body.instance) == (same.name, same.texture, same.instance)
        assert (body.mesh.vertices == same.mesh.vertices).all()
        assert (body.poses == same.poses).all()
    assert (free.cameras, free.lights) == (hidden.cameras, hidden.lights)
    assert [body.instance for body in hidden.bodies[10:]] == [5, 6, 7, 8, 9]
    assert hidden.parts == parts_of(HIDDEN) == tuple(sorted(named_parts(hidden)))
    assert set(free.parts) < set(hidden.parts)
    assert {split_of_part(part) for part in hidden.parts} == {"eval"}


def test_light_size_and_frames_leave_occluders_where_they_are() -> None:
    still = replace(HIDDEN, motion="static")
    other = make_scene(replace(still, light="varied", width=64, height=96, frames=3))
    for body, same in zip(make_scene(still).bodies, other.bodies, strict=True):
        assert (body.name, body.texture) == (same.name, same.texture)
        assert (body.mesh.vertices == same.mesh.vertices).all()
        assert (body.poses[0] == same.poses[0]).all()


@pytest.mark.parametrize("orbit", [0, 120])
def test_occluders_touch_neither_objects_nor_cameras_nor_each_other(orbit: int) -> None:
    for motion in ("static", "moving"):
        scene = make_scene(replace(HIDDEN, occluders=10, orbit=orbit, motion=motion))
        for t, camera in enumerate(scene.cameras):
            world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
            place = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
            others = [
                KDTree(move(body.poses[t], body.mesh.vertices))
                for body in scene.bodies
                if body.instance
            ]
            for number, occluder in enumerate(others[4:], start=4):
                assert occluder.query(place)[0] > 0.34
                assert occluder.data[:, 2].min() > -1e-9
                assert occluder.data[:, 1].min() > -1.76
                assert all(not occluder.count_neighbors(other, 0.015) for other in others[:number])


def test_occluders_hide_points_and_change_no_track() -> None:
    free, hidden = make_scene(FREE), make_scene(HIDDEN)
    queries = grid_points(12, 128, 128)
    before, after = true_tracks(free, 0, queries), true_tracks(hidden, 0, queries)
    same = after.points.instances(hidden) <= 4
    assert (before.positions[:, same] == after.positions[:, same]).all()
    assert not (after.visible & ~before.visible)[:, same].any()
    lost = (before.visible & ~after.visible)[:, same].sum() / before.visible[:, same].sum()
    assert 0.05 < lost < 0.1
    # Points on occluders are other points.
    assert 0.04 < (~same).mean() < 0.07
    assert (np.abs(before.positions - after.positions).max((0, 2)) > 1)[~same].all()
