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
from pipeline.failures import DecodeError, MachineError
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.scenes.render import Renderer
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.sources.scenes import DEPTH_SCALE, Scenes
from pipeline.sources.video import Video
from shards.errors import PretrackError

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
