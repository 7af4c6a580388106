"""COLMAP models, read by a reader written from COLMAP's documentation and by COLMAP's own."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.inspection.export import export_clip
from shards import jpeg
from shards.clip import Camera
from shards.errors import PretrackError
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips
from tests.helpers.scene_clip import ANCHORS, FRAMES, SceneClip, scene_clip
from tests.helpers.static_scene import (
    StaticScene,
    static_scene,
    stored_scene,
    with_moving_object,
    with_positions,
    with_wrong_poses,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Image:
    """An image of a model: its pose, camera, and points as (x, y, id) rows."""

    world_to_camera: Floats
    camera: int
    name: str
    points: Floats


@dataclass(frozen=True)
class Point:
    """A 3D point, with its observations as (image, index) pairs."""

    xyz: Floats
    colour: tuple[int, ...]
    error: float
    track: list[tuple[int, int]]


@dataclass(frozen=True)
class Model:
    """A model as its text files say."""

    cameras: dict[int, list[str]]
    images: dict[int, Image]
    points: dict[int, Point]

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Read a folder of text files as COLMAP's page "Output Format" describes them."""
        lines = {
            name: [
                line.split()
                for line in (folder / f"{name}.txt").read_text().splitlines()
                if not line.startswith("#")
            ]
            for name in ("cameras", "images", "points3D")
        }
        images, points = {}, {}
        pairs = zip(lines["images"][::2], lines["images"][1::2], strict=True)
        for (number, w, x, y, z, *shift, camera, name), observed in pairs:
            turn = Rotation.from_quat([float(v) for v in (x, y, z, w)]).as_matrix()
            matrix = np.column_stack([turn, [float(v) for v in shift]])
            rows = np.reshape([float(v) for v in observed], (-1, 3))
            images[int(number)] = Image(matrix, int(camera), name, rows)
        for number, x, y, z, r, g, b, error, *track in lines["points3D"]:
            xyz = np.array([float(x), float(y), float(z)])
            elements = [(int(a), int(b)) for a, b in zip(track[::2], track[1::2], strict=True)]
            points[int(number)] = Point(xyz, (int(r), int(g), int(b)), float(error), elements)
        return cls({int(number): rest for number, *rest in lines["cameras"]}, images, points)

    def projected(self, image: Image, xyz: Floats) -> Floats:
        """Project a point into an image, in COLMAP's pixels."""
        _, _, _, *parameters = self.cameras[image.camera]
        fx, fy, cx, cy = (float(value) for value in parameters)
        x, y, z = image.world_to_camera[:, :3] @ xyz + image.world_to_camera[:, 3]
        assert z > 0
        return np.array([fx * x / z + cx, fy * y / z + cy])


def export(folder: Path, clip: StoredClip, **options: int) -> tuple[Path, tuple[str, ...]]:
    """Publish a clip and export it; return the folder and the notes."""
    snapshot = publish_clips(folder / "out", [clip])
    exported = export_clip(snapshot, clip.info.key, "colmap", folder / "model", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "out"]
    return exported.file, exported.notes


@pytest.fixture(scope="module")
def made() -> SceneClip:
    return scene_clip()


@pytest.fixture(scope="module")
def exported(made: SceneClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("colmap"), made.clip)[0]


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return Model.read(exported / "sparse" / "0")


def test_images_and_cameras_are_those_of_the_clip(
    exported: Path, model: Model, made: SceneClip
) -> None:
    assert [*model.images] == [*range(1, FRAMES + 1)]
    for t, image in enumerate(model.images.values()):
        assert image.name == f"00{t}.jpg"
        assert (exported / "images" / image.name).read_bytes() == made.clip.jpegs[t]
        true = np.reshape(made.scene.cameras[t].world_to_camera, (3, 4))
        np.testing.assert_allclose(image.world_to_camera, true, rtol=0, atol=1e-12)
    camera = made.scene.cameras[0]
    (written,) = model.cameras.values()
    assert written[:3] == ["PINHOLE", "96", "64"]
    assert [float(value) for value in written[3:]] == [
        camera.fx,
        camera.fy,
        camera.cx + 0.5,
        camera.cy + 0.5,
    ]


def test_points_are_those_of_the_scene(model: Model, made: SceneClip) -> None:
    """Each is found by its query, half a pixel from where pretrack has it."""
    number_of = {
        (image, x, y): int(point)
        for image, of_image in model.images.items()
        for x, y, point in of_image.points.tolist()
    }
    tracks, errors = made.clip.tracks, []
    for row, anchor in enumerate(ANCHORS):
        for n, (x, y) in enumerate(tracks.positions[row, anchor].tolist()):
            if number := number_of.get((anchor + 1, x + 0.5, y + 0.5)):
                seen = np.flatnonzero(tracks.visibility[row, :, n] > 127)
                assert [image - 1 for image, _ in model.points[number].track] == seen.tolist()
                errors.append(
                    np.linalg.norm(model.points[number].xyz - made.places[row, anchor, n])
                )
    assert len(errors) == len(model.points) > 100
    # Positions are stored to 1/64 px, which is up to a millimetre at 2 to 5 metres.
    assert np.median(errors) < 0.001
    assert max(errors) < 0.02


def test_points_project_onto_their_observations(model: Model) -> None:
    for number, point in model.points.items():
        distances = []
        for image, index in point.track:
            x, y, back = model.images[image].points[index]
            assert back == number
            observed = np.array([x, y])
            distances.append(
                np.linalg.norm(model.projected(model.images[image], point.xyz) - observed)
            )
        assert max(distances) < 0.04
        assert np.mean(distances) == pytest.approx(point.error, abs=1e-9)
    assert sum(len(image.points) for image in model.images.values()) == sum(
        len(point.track) for point in model.points.values()
    )


def test_colmap_reads_the_model(exported: Path, model: Model) -> None:
    pycolmap = pytest.importorskip(
        "pycolmap", reason="needs COLMAP's package: pip install pycolmap"
    )
    read = pycolmap.Reconstruction(str(exported / "sparse" / "0"))
    assert (read.num_reg_images(), read.num_cameras()) == (FRAMES, 1)
    assert read.num_points3D() == len(model.points)
    for number, image in model.images.items():
        own = read.image(number)
        np.testing.assert_allclose(own.cam_from_world().matrix(), image.world_to_camera, atol=1e-12)
        for point in own.points2D:
            seen = own.project_point(read.point3D(point.point3D_id).xyz)
            assert np.linalg.norm(seen - point.xy) < 0.04
    read.update_point_3d_errors()
    for number, point in model.points.items():
        assert read.point3D(number).error == pytest.approx(point.error, abs=1e-9)


def test_colours_are_those_at_the_queries(tmp_path: Path) -> None:
    scene = static_scene(frames=6, anchors=(2,), grid=4, noise=0)
    picture = np.zeros((256, 320, 3), np.uint8)
    picture[:, 160:] = (0, 0, 255)
    picture[128:, :160] = (255, 0, 0)
    clip = StoredClip(scene.info, scene.tracks, (jpeg.encode(picture, 95),) * 6)
    model = Model.read(export(tmp_path, clip)[0] / "sparse" / "0")
    colours = set()
    for x, y, number in model.images[3].points:
        expected = (0, 0, 255) if x > 160 else (255, 0, 0) if y > 128 else (0, 0, 0)
        assert np.abs(np.subtract(model.points[int(number)].colour, expected)).max() < 4
        colours.add(expected)
    assert len(colours) == 3


def without_cameras(scene: StaticScene, *frames: int) -> StaticScene:
    cameras = [None if t in frames else c for t, c in enumerate(scene.info.cameras or ())]
    return replace(scene, info=replace(scene.info, cameras=tuple(cameras)))


def test_what_no_fixed_point_explains_is_left_out_and_counted(tmp_path: Path) -> None:
    still = static_scene(frames=24, anchors=(8,), grid=8, turn=30, noise=0)
    moving = with_moving_object(still)
    moved = np.any(moving.tracks.positions != still.tracks.positions, axis=(1, 3)).sum()
    visibility = still.tracks.visibility.copy()
    visibility[0, 10:, 0] = visibility[0, :8, 0] = 0  # seen in frames 8 and 9 only
    tracks = replace(moving.tracks, visibility=visibility)
    folder, notes = export(tmp_path, stored_scene(replace(moving, tracks=tracks), "moving"))
    assert moved == 4
    assert notes == (
        "24 images, 1 camera, 59 points",
        "left out: 1 track seen in fewer than 3 frames; 4 tracks more than 2 px from any fixed "
        "point, as they move or are wrong",
    )
    assert len(Model.read(folder / "sparse" / "0").points) == 59


def test_frames_and_tracks_without_right_poses_are_left_out_and_counted(tmp_path: Path) -> None:
    still = static_scene(frames=24, anchors=(0, 8), grid=8, turn=30, noise=0)
    scene = without_cameras(with_wrong_poses(still, (5, 16)), 0, 3)
    folder, (counts, left_out) = export(tmp_path, stored_scene(scene, "partly"))
    assert counts == "20 images, 1 camera, 64 points"
    assert left_out == (
        "left out: 2 frames without a usable camera; 2 frames whose poses do not fit the tracks; "
        "64 tracks that start in a frame without one"
    )
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == [f"{t:03d}.jpg" for t in range(24) if t not in (0, 3, 5, 16)]
    assert [*Model.read(folder / "sparse" / "0").images] == [int(name[:3]) + 1 for name in names]


def test_a_camera_that_does_not_move_gives_no_points(tmp_path: Path) -> None:
    still = static_scene(frames=6, anchors=(0,), grid=4, turn=30, noise=0)
    cameras = (still.info.cameras or ())[:1] * 6
    scene = with_positions(still, np.repeat(still.truth[:, :1], 6, axis=1))
    visible = np.full_like(scene.tracks.visibility, 255)
    clip = stored_scene(scene, "fixed")
    clip = StoredClip(
        replace(clip.info, cameras=cameras), replace(clip.tracks, visibility=visible), clip.jpegs
    )
    assert export(tmp_path, clip)[1] == (
        "6 images, 1 camera, 0 points",
        "left out: 16 tracks with a parallax below 1 degree",
    )


def test_one_anchor_and_rounded_matrices(tmp_path: Path) -> None:
    scene = static_scene(frames=8, anchors=(0, 4), grid=4, noise=0)
    cameras = [
        replace(c, fx=c.fx + t // 4, world_to_camera=tuple(round(v, 4) for v in c.world_to_camera))
        for t, c in enumerate(scene.info.cameras or ())
        if c
    ]
    clip = stored_scene(replace(scene, info=replace(scene.info, cameras=tuple(cameras))), "rounded")
    folder, notes = export(tmp_path, clip, anchor=1)
    assert notes[0].startswith("8 images, 2 cameras, 16 points")
    model = Model.read(folder / "sparse" / "0")
    quaternions = re.findall(r"^\d+ (\S+ \S+ \S+ \S+) .*jpg$", read_images(folder), re.MULTILINE)
    norms = np.linalg.norm([[float(v) for v in text.split()] for text in quaternions], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-12)
    for point in model.points.values():
        image, index = point.track[0]
        x, y, _ = model.images[image].points[index]
        distance = np.linalg.norm(model.projected(model.images[image], point.xyz) - (x, y))
        assert distance < 1
    for written, camera in zip(model.images.values(), cameras, strict=True):
        matrix = np.reshape(camera.world_to_camera, (3, 4))
        np.testing.assert_allclose(written.world_to_camera, matrix, atol=2e-4)


def read_images(folder: Path) -> str:
    return (folder / "sparse" / "0" / "images.txt").read_text()


@pytest.mark.parametrize("cameras", [None, (None,) * 6, (Camera(0, 0, 0, 0, (0.0,) * 12),) * 6])
def test_a_clip_without_cameras_is_refused_in_a_sentence(
    cameras: tuple[Camera | None, ...] | None, tmp_path: Path
) -> None:
    clip = make_clip()
    snapshot = publish_clips(
        tmp_path / "out",
        [StoredClip(replace(clip.info, cameras=cameras), clip.tracks, clip.jpegs)],
    )
    with pytest.raises(PretrackError, match="has no cameras, and a COLMAP model needs them"):
        export_clip(snapshot, "made", "colmap", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes").write_text("mine")
    snapshot = publish_clips(tmp_path / "out", [make_clip()])
    with pytest.raises(PretrackError, match=r"model exists: remove it, or name another folder"):
        export_clip(snapshot, "made", "colmap", tmp_path / "model")
    assert (tmp_path / "model" / "notes").read_text() == "mine"
