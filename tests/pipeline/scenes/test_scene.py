"""Scenes: the same for ever, split into parts that are never shared, and free of collisions."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, replace

import numpy as np
import pytest
from scipy.spatial import KDTree

from pipeline.scenes.mesh import edge_neighbours
from pipeline.scenes.parts import split_of_part
from pipeline.scenes.rigid import move
from pipeline.scenes.scene import Scene, make_scene, parts_of
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.shapes import SOLID_KINDS, THIN_KINDS, make_shape
from pipeline.scenes.textures import PHOTOGRAPHS, SIZE, texture

STILL = SceneId(split="train", seed=1, number=0, frames=6)
MOVING = SceneId(split="eval", seed=1, number=0, frames=6, motion="moving", light="varied")
CROWDED = replace(MOVING, split="train", objects=15, orbit=40, light="harsh", seed=2**32 - 1)
DARK = replace(MOVING, number=10**9 - 1, objects=15, orbit=15, frames=2, light="dim")
PATTERNS = (
    "marble",
    "clouds",
    "wood",
    "bricks",
    "cells",
    "spots",
    "plaid",
    "maze",
    "glyphs",
    "collage",
)


def digest_of(scene: Scene) -> str:
    """Digest all numbers of a scene, rounded: machines differ in the last digit of a sine."""
    digest = hashlib.sha256()
    for body in scene.bodies:
        digest.update(f"{body.name} {body.texture} {body.instance}".encode())
        for array in (body.mesh.vertices, body.mesh.faces, body.mesh.uv, body.poses):
            digest.update(np.rint(array * 1e6).astype("<i8").tobytes())
    for frame in (scene.cameras, scene.lights):
        for item in frame:
            values = astuple(item) if not isinstance(item, tuple) else [*map(astuple, item)]
            digest.update(np.rint(np.hstack(list(flat(values))) * 1e6).astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def flat(values: object) -> list[float]:
    """List the numbers in nested tuples."""
    if isinstance(values, tuple | list):
        return [number for value in values for number in flat(value)]
    assert isinstance(values, int | float)
    return [float(values)]


@pytest.mark.parametrize(
    ("scene_id", "digest"),
    [
        (STILL, "4df87247014f20a0"),
        (MOVING, "b66bfcbcfb4e3ecc"),
        (CROWDED, "f159a8a32a6c4b48"),
        (DARK, "ea4e09ae474dd214"),
    ],
)
def test_an_id_says_the_content_for_ever(scene_id: SceneId, digest: str) -> None:
    """If this fails, stored clips no longer match their scenes: raise `scene_id.VERSION`."""
    scene = make_scene(scene_id)
    assert digest_of(scene) == digest
    assert scene.parts == tuple(sorted(named_parts(scene)))


def test_the_name_of_a_shape_says_its_surface_for_ever() -> None:
    """If this fails, raise `scene_id.VERSION`."""
    digest = hashlib.sha256()
    for kind in (*SOLID_KINDS, *THIN_KINDS):
        for number in range(20):  # all windings of knots are among them
            mesh = make_shape(f"{kind}-{number:06d}")
            for array in (mesh.vertices, mesh.faces, mesh.uv):
                digest.update(np.rint(array * 1e6).astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "9419949a27c84bf0"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "digest"), [(7, "6e0e5d632e0925e0"), (8, "7713a1785f428a86")])
def test_the_name_of_a_texture_says_its_pixels_for_ever(number: int, digest: str) -> None:
    """If this fails, raise `scene_id.VERSION`."""
    photographs = [f"photograph_{name}" for name in PHOTOGRAPHS]
    pictures = [texture(f"{kind}-{number:06d}") for kind in (*PATTERNS, *photographs)]
    for picture in pictures:
        assert picture.shape == (SIZE, SIZE, 3)
        # Detail at several scales: neighbouring pixels differ, and so do distant places.
        assert np.abs(np.diff(picture.astype(int), axis=1)).mean() > 1
        assert picture[::64, ::64].std() > 12
    assert hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()[:16] == digest


def test_no_shape_photograph_or_texture_is_in_both_splits() -> None:
    parts = {
        split: {
            part
            for number in range(6)
            for part in parts_of(SceneId(split=split, seed=5, number=number, objects=15))
        }
        for split in ("train", "eval")
    }
    assert not parts["train"] & parts["eval"]
    for split, names in parts.items():
        assert {split_of_part(name) for name in names} == {split}
        kinds = {name.rpartition("-")[0] for name in names}
        assert kinds >= {*SOLID_KINDS, *THIN_KINDS}
        assert any(name.startswith("photograph_") for name in names)
    in_eval = {name for name in PHOTOGRAPHS if split_of_part(f"photograph_{name}") == "eval"}
    assert in_eval == {"coffee", "gravel"}


def test_other_seeds_numbers_and_splits_are_other_scenes() -> None:
    others = (replace(STILL, seed=2), replace(STILL, number=1), replace(STILL, split="eval"))
    scenes = [make_scene(scene_id) for scene_id in (STILL, *others)]
    assert len({scene.parts for scene in scenes}) == 4
    assert len({scene.cameras for scene in scenes}) == 4


def named_parts(scene: Scene) -> set[str]:
    """Collect the names of what is in a scene from its bodies."""
    textures = {body.texture for body in scene.bodies}
    photographs = {name.rpartition("-")[0] for name in textures if name.startswith("photograph_")}
    patterns = {name for name in textures if not name.startswith("photograph_")}
    return {body.name for body in scene.bodies if body.instance} | photographs | patterns


def test_light_orbit_and_size_change_nothing_else() -> None:
    """So that the same objects can be compared in another light and at other angles."""
    scene = make_scene(STILL)
    other = make_scene(replace(STILL, light="harsh", orbit=40, width=341, height=256, frames=9))
    assert other.parts == scene.parts == parts_of(STILL)
    assert scene.parts == tuple(sorted(named_parts(scene)))
    for body, same in zip(scene.bodies, other.bodies, strict=True):
        assert (body.name, body.texture) == (same.name, same.texture)
        assert (body.mesh.vertices == same.mesh.vertices).all()
        assert (body.poses[0] == same.poses[8]).all()
    assert other.lights != scene.lights
    assert len(other.cameras) == len(other.lights) == 9


@pytest.mark.parametrize("kind", [*SOLID_KINDS, *THIN_KINDS])
def test_shapes_are_closed_and_face_outward(kind: str) -> None:
    for number in range(4):
        mesh = make_shape(f"{kind}-{number:06d}")
        # The face across each edge has the same edge, the other way round.
        across = edge_neighbours(mesh)
        for corner in range(3):
            start, end = mesh.faces[:, corner], mesh.faces[:, (corner + 1) % 3]
            theirs = mesh.faces[across[:, corner]]
            at = (theirs == end[:, None]).argmax(axis=1)
            rows = np.arange(len(theirs))
            assert (theirs[rows, at] == end).all()
            assert (theirs[rows, (at + 1) % 3] == start).all()
        a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
        assert np.einsum("fi,fi->", a, np.cross(b, c)) / 6 > 0.0005
        assert mesh.uv.min() >= 0
        assert mesh.uv.max() <= 1 + 1e-12
        assert np.ptp(mesh.vertices, axis=0).max() == pytest.approx(1)


def test_nothing_collides() -> None:
    """Neither the camera with walls and objects, nor objects with one another or the floor."""
    for scene_id in (MOVING, replace(STILL, objects=15), replace(MOVING, objects=1, seed=3)):
        scene = make_scene(scene_id)
        room, objects = scene.bodies[:6], scene.bodies[6:]
        corners = np.concatenate([body.mesh.vertices for body in room])
        low, high = corners.min(axis=0), corners.max(axis=0)
        for t, camera in enumerate(scene.cameras):
            world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
            place = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
            assert (place > low + 0.2).all()
            assert (place < high - 0.2).all()
            trees = [KDTree(move(body.poses[t], body.mesh.vertices)) for body in objects]
            for number, tree in enumerate(trees):
                assert tree.query(place)[0] > 0.6
                assert (tree.data.min(axis=0) > low - 1e-9).all()
                assert (tree.data.max(axis=0) < high).all()
                for other in trees[:number]:
                    assert not tree.count_neighbors(other, 0.015)


def test_only_moving_scenes_move_and_every_third_object_is_thin() -> None:
    still, moving = make_scene(STILL), make_scene(MOVING)
    assert not any(body.moves for body in still.bodies)
    moves = [body.moves for body in moving.bodies]
    assert not any(moves[:6])
    assert 2 <= sum(moves[6:]) <= 9
    assert [body.instance for body in still.bodies] == [0] * 6 + list(range(1, 11))
    thin = [body.name.split("-")[0] in THIN_KINDS for body in still.bodies[6:]]
    assert thin == [False, True, False] * 3 + [False]


def test_light_varies_from_frame_to_frame_only_if_asked() -> None:
    assert len(set(make_scene(STILL).lights)) == 1
    assert len(set(make_scene(MOVING).lights)) == 6
    levels = {
        light: sum(
            sum(lamp.diffuse) + sum(lamp.ambient)
            for lamp in make_scene(replace(STILL, light=light)).lights[0]
        )
        for light in ("normal", "dim")
    }
    assert levels["dim"] < levels["normal"] / 2
    assert len(make_scene(replace(STILL, light="harsh")).lights[0]) == 1


@pytest.mark.parametrize("orbit", [0, 40, 120])
def test_the_camera_covers_the_orbit(orbit: int) -> None:
    azimuths = []
    for camera in make_scene(replace(STILL, orbit=orbit)).cameras:
        world_to_camera = np.reshape(camera.world_to_camera, (3, 4))
        x, y, _ = -world_to_camera[:, :3].T @ world_to_camera[:, 3]
        azimuths.append(np.degrees(np.arctan2(x, -y)))
    assert np.ptp(azimuths) == pytest.approx(orbit, abs=1e-9)
    assert np.abs(azimuths).max() < 60 + 1e-9
