"""Rendered scenes as a source: listed without rendering, rendered where they are decoded."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.build import build
from pipeline.failures import DecodeError, MachineError
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.sources.rendering import render_missing
from pipeline.sources.scenes import DEPTH_SCALE, Scenes
from pipeline.sources.video import Video
from shards.clip import Camera
from shards.errors import PretrackError
from shards.geometry import grid_points
from shards.reader import iterate_shard

QUIET = Progress(quiet=True)


@pytest.fixture
def decoder() -> Iterator[SubprocessDecoder]:
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        yield decoder


def source(root: Path, **values: Any) -> Scenes:
    return Scenes.model_validate(
        {"dataset": "scenes", "root": root, "frames": 3, "size": [48, 32], "objects": 1, **values}
    )


def videos_of(settings: Scenes) -> list[Video]:
    videos = list(settings.find_videos())
    assert all(isinstance(video, Video) for video in videos)
    return videos  # type: ignore[return-value]


def files_of(video: Video) -> tuple[str, ...]:
    assert video.depth
    assert video.mask_files
    return (*video.image_files, *video.depth.files, *video.mask_files)


def pixels_of(file: Path) -> NDArray[Any]:
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def test_listing_renders_nothing_and_says_all_of_a_scene(tmp_path: Path) -> None:
    settings = source(tmp_path / "frames", count=2, split="eval", seed=7)
    first, second = videos_of(settings)
    assert not (tmp_path / "frames").exists()
    name = "v1-eval-seed7-scene0001-1objects-120deg-static-normal-3f-48x32"
    assert second.video_id == name
    assert second.sequence == "scenes/eval-seed7-scene0001"
    assert second.image_files == tuple(f"{name}/0000{frame}.png" for frame in range(3))
    assert second.timestamps == (0.0, 0.125, 0.25)
    scene = make_scene(SceneId.parse(name))
    assert second.cameras == scene.cameras
    assert second.parts == scene.parts
    assert first.identity != second.identity
    assert videos_of(settings) == [first, second]


def test_scenes_are_in_the_split_that_they_were_made_for(tmp_path: Path) -> None:
    values = {
        "sources": [
            {"dataset": "scenes", "name": split, "root": str(tmp_path), "count": 4, "split": split}
            for split in ("train", "eval")
        ],
        "tracks": {"tracker": "lucas_kanade", "anchors": [0]},
        "split": {"eval_fraction": 0.5},
        "out": str(tmp_path / "out"),
    }
    videos = make_catalog(check_settings(BuildSettings, values, "test"), QUIET).videos
    assert videos["split"].to_pylist() == videos["source"].to_pylist()
    assert videos["split"].to_pylist() == ["train"] * 4 + ["eval"] * 4


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"objects": 0}, "'objects' is 1 to 15, not 0"),
        ({"orbit": 121}, "an orbit of 121 degrees would lead the camera into a wall"),
        ({"orbit": -1}, "'orbit' is 0 to 120, not -1"),
        ({"seed": 2**32}, "'seed' is 0 to 4294967295, not 4294967296"),
        ({"size": [16, 32]}, "'width' is 32 to 4096, not 16"),
    ],
)
def test_a_setting_out_of_its_limits_is_named(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    entry = {"dataset": "scenes", "root": str(tmp_path), **values}
    with pytest.raises(PretrackError, match=sentence):
        check_settings(BuildSettings, {"sources": [entry], "out": str(tmp_path)}, "test")


@pytest.mark.slow
def test_files_are_rendered_once_and_missing_ones_again(
    tmp_path: Path, decoder: SubprocessDecoder
) -> None:
    (video,) = videos_of(source(tmp_path, count=1))
    decoder.render("scenes", str(tmp_path), files_of(video))
    files = [tmp_path / name for name in files_of(video)]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)
    # The files hold what the renderer renders.
    with Renderer(make_scene(SceneId.parse(video.video_id))) as renderer:
        for frame in range(3):
            picture, depth, instances = (pixels_of(files[frame + 3 * kind]) for kind in range(3))
            np.testing.assert_array_equal(picture[..., ::-1], renderer.picture(frame))
            np.testing.assert_array_equal(instances, renderer.instances(frame))
            assert depth.dtype == np.uint16
            assert np.abs(depth * DEPTH_SCALE - renderer.depth(frame)).max() < 2.0**-14 + 1e-9
    # A folder that was deleted is rendered again; what is there is kept.
    shutil.rmtree(tmp_path / video.video_id / "depth")
    files[1].unlink()
    decoder.render("scenes", str(tmp_path), files_of(video))
    for number, file in enumerate(files):
        assert file.read_bytes() == before[file][0]
        kept = number != 1 and not 3 <= number < 6
        assert (file.stat().st_mtime_ns == before[file][1]) == kept


@pytest.mark.slow
def test_a_scene_reports_progress_before_its_first_file(tmp_path: Path) -> None:
    """So that a busy machine, on which that takes minutes, does not stop it as stalled."""
    (video,) = videos_of(source(tmp_path, count=1))
    progress: list[int] = []
    names = video.image_files[:1]
    render_missing(
        "scenes",
        str(tmp_path),
        names,
        on_progress=lambda: progress.append(sum(path.is_file() for path in tmp_path.rglob("*"))),
    )
    # After each of seven textures, those of six walls and an object, and after the file.
    assert progress == [0] * 7 + [1]


@pytest.mark.slow
def test_two_workers_render_one_video_without_parts_of_files(tmp_path: Path) -> None:
    def render(_: int) -> None:
        with SubprocessDecoder(stall_limit_s=60) as decoder:
            decoder.render("synthetic", str(tmp_path), names)

    names = tuple(f"v1-seed0-scene0000-8f-96x64/{frame:05d}.png" for frame in range(8))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(render, range(2)))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == [*names]
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(names)
    assert all(pixels_of(tmp_path / name).shape == (64, 96, 3) for name in names)


@pytest.mark.slow
def test_what_stops_rendering_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (video,) = videos_of(source(tmp_path / "frames", count=1))
    (tmp_path / "frames").touch()
    with pytest.raises(PretrackError, match="is not a folder: set 'root' to one for the rendered"):
        next(source(tmp_path / "frames").find_videos())
    names = ["v1-seed0-scene0000-2f-48x32/00000.png"]
    with (
        SubprocessDecoder(stall_limit_s=60) as decoder,
        pytest.raises(DecodeError, match=r"cannot be written .*see that 'root' is on a disk"),
    ):
        decoder.render("synthetic", str(tmp_path / "frames"), names)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", os.devnull)
    with (
        SubprocessDecoder(stall_limit_s=60) as decoder,
        pytest.raises(MachineError, match=r"EGL does not work on this machine .*libegl1"),
    ):
        decoder.render("scenes", str(tmp_path), video.image_files)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(PretrackError, match=r"MuJoCo, .*pip install 'pretrack\[scenes\]'"):
        next(source(tmp_path / "new").find_videos())


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_stored_tracks_are_where_depth_cameras_and_poses_put_them(tmp_path: Path) -> None:
    values = {
        "sources": [
            {
                "dataset": "scenes",
                "root": str(tmp_path / "frames"),
                "count": 2,
                "frames": 4,
                "size": [240, 144],
                "objects": 5,
                "motion": "moving",
            }
        ],
        "frames": {"clip_frames": 4, "min_frames": 4, "depth": True, "masks": True},
        "tracks": {"tracker": "truth", "grid": 16, "anchors": [0, 3]},
        "out": str(tmp_path / "out"),
    }
    snapshot = build(check_settings(BuildSettings, values, "test"), QUIET).snapshot
    assert verify_snapshot(snapshot, QUIET) == []
    (shard,) = snapshot.shards.column("shard").to_pylist()
    queries, moving = grid_points(16, 240, 144).astype(np.float64), 0
    agreement: list[bool] = []
    for clip in iterate_shard(snapshot.shard_path(shard)):
        scene = make_scene(SceneId.parse(clip.info.video_id))
        poses = {body.instance: body.poses for body in scene.bodies}  # the room's are all the same
        tracks, depths, masks = clip.tracks, clip.depth(), clip.masks()
        assert depths is not None
        assert masks is not None
        for row, anchor in enumerate((0, 3)):
            depth, smooth = interpolated(depths[anchor], queries)
            # Not where a pixel beside the point shows another face.
            assert smooth.sum() > 100
            points = unprojected(scene.cameras[anchor], queries, depth)[smooth]
            column, line = np.rint(queries[smooth]).astype(int).T
            own = np.stack([poses[number] for number in masks[anchor, line, column].tolist()])
            moves = (own != own[:, :1]).any((1, 2, 3))
            for t in range(4):
                there = moved(own[:, t], moved_back(own[:, anchor], points))
                xy, z = projected(scene.cameras[t], there)
                visible = tracks.visibility[row, t, smooth] == 255
                moving += int((moves & visible).sum())
                # Positions are rounded to 1/32 px; the rest is depth, interpolated and rounded.
                error = np.abs(xy - tracks.positions[row, t, smooth])[visible]
                assert error.max() < 1 / 64 + 1 / 80
                seen, sure = seen_by_depth(depths[t], xy, z)
                agreement += (seen == visible)[sure].tolist()
    assert moving > 50
    assert len(agreement) > 1500
    assert np.mean(agreement) >= 0.995


def interpolated(
    depth: NDArray[np.float32], xy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolate a depth map at pixels [N, 2]: depths [N], and whether all around is one face.

    The inverse of a plane's depth is affine in pixels.
    """
    corner = np.floor(xy).astype(int)
    window = np.arange(-1, 3)
    rows = (corner[:, 1, None] + window)[:, :, None]
    near = 1 / depth.astype(np.float64)[rows, (corner[:, 0, None] + window)[:, None]]  # [N, 4, 4]
    bends = [np.abs(np.diff(near, 2, axis=axis)).max((1, 2)) for axis in (1, 2)]
    (fx, fy), middle = (xy - corner).T, near[:, 1:3, 1:3]
    across = middle[:, :, 0] * (1 - fx)[:, None] + middle[:, :, 1] * fx[:, None]
    inverse = across[:, 0] * (1 - fy) + across[:, 1] * fy
    return 1 / inverse, np.max(bends, axis=0) < 3e-4 * inverse


def seen_by_depth(
    depth: NDArray[np.float32], xy: NDArray[np.float64], z: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which points at pixels [N, 2] and depths [N] a depth map shows, and where that is sure.

    It is sure where all pixels around say the same, and outside the frame.
    """
    height, width = depth.shape
    column, row = np.rint(xy).astype(int).T
    inside = (column > 0) & (column < width - 1) & (row > 0) & (row < height - 1)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    window = np.arange(-1, 2)
    rows = (row.clip(1, height - 2)[:, None] + window)[:, :, None]
    around = depth[rows, (column.clip(1, width - 2)[:, None] + window)[:, None]].reshape(-1, 9)
    hidden, seen = z > 1.01 * around.max(1), z < 1.01 * around.min(1)
    return inside & seen, outside | (inside & (hidden | seen))


def unprojected(
    camera: Camera, xy: NDArray[np.float64], depth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the points [N, 3] in the world that a camera sees at pixels [N, 2] and depths [N]."""
    x, y = (xy - [camera.cx, camera.cy]).T / [[camera.fx], [camera.fy]]
    rays = np.stack([x, y, np.ones(len(x))], axis=1)
    pose = np.reshape(camera.world_to_camera, (3, 4))
    return moved_back(pose, rays * depth[:, None])


def projected(
    camera: Camera, points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixels [N, 2] and depths [N] of points in the world."""
    x, y, z = moved(np.reshape(camera.world_to_camera, (3, 4)), points).T
    return np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], 1), z


def moved(pose: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply motions [R | t], [3, 4] or [N, 3, 4], to points [N, 3]."""
    return np.einsum("...ij,...j->...i", pose[..., :3], points) + pose[..., 3]


def moved_back(pose: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("...ji,...j->...i", pose[..., :3], points - pose[..., 3])
