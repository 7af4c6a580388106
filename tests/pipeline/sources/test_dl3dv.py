"""DL3DV: the releases it comes in, and poses that are partial, broken or absent."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.rows import Failure
from pipeline.sources.dl3dv import Dl3dv
from pipeline.sources.video import Video
from shards.errors import PretrackError

A, B, C = "a" * 64, "b" * 64, "c" * 64


def find(root: Path, **options: Any) -> tuple[list[Video], list[Failure]]:
    found = list(Dl3dv(dataset="dl3dv", root=root, **options).find_videos())
    return [item for item in found if isinstance(item, Video)], [
        item for item in found if isinstance(item, Failure)
    ]


def scene(
    folder: Path, posed: int | None = 3, images: str = "images_8", size: tuple[int, int] = (96, 54)
) -> None:
    """Write a scene of 3 frames; the first `posed` have a pose. None: no transforms.json."""
    (folder / images).mkdir(parents=True)
    for i in range(1, 4):
        Image.new("RGB", size).save(folder / images / f"frame_{i:05d}.png")
    if posed is not None:
        frames = [
            {"file_path": f"images/frame_{i:05d}.png", "transform_matrix": np.eye(4).tolist()}
            for i in range(1, posed + 1)
        ]
        intrinsics = {"w": 768, "h": 432, "fl_x": 400.0, "fl_y": 400.0, "cx": 384.0, "cy": 216.0}
        (folder / "transforms.json").write_text(json.dumps({**intrinsics, "frames": frames}))


@pytest.mark.parametrize(
    ("layout", "video_id"), [(f"1K/{A}", f"1K/{A}"), (A, A), (f"{A}/nerfstudio", A)]
)
def test_scenes_are_found_in_every_layout(tmp_path: Path, layout: str, video_id: str) -> None:
    scene(tmp_path / layout)
    (video,), failures = find(tmp_path)
    assert failures == []
    assert (video.video_id, video.sequence, video.frame_numbers) == (
        video_id,
        f"dl3dv/{A}",
        (1, 2, 3),
    )
    assert video.image_files[0] == f"{layout}/images_8/frame_00001.png"
    assert video.timestamps is None
    assert video.cameras is not None
    camera = video.cameras[2]
    assert camera is not None
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (50.0, 50.0, 47.5, 26.5)
    assert camera.world_to_camera == (1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0)
    assert "must not be redistributed" in video.terms


def test_the_smallest_images_are_read_or_the_size_asked_for(tmp_path: Path) -> None:
    scene(tmp_path / "1K" / A, images="images_4", size=(192, 108))
    (tmp_path / "1K" / A / "images_2").mkdir()
    Image.new("RGB", (384, 216)).save(tmp_path / "1K" / A / "images_2" / "frame_00001.png")
    ((small,), _), ((large,), _) = find(tmp_path), find(tmp_path, images="images_2")
    assert small.image_files[0].split("/")[2] == "images_4"
    assert large.image_files == (f"1K/{A}/images_2/frame_00001.png",)
    assert [
        video.cameras[0].fx for video in (small, large) if video.cameras and video.cameras[0]
    ] == [100, 200]
    videos, (failure,) = find(tmp_path, images="images_8")
    assert videos == []
    assert failure.reason == "no images"
    assert "there is images_2, images_4" in failure.detail


def test_without_all_poses_the_frames_are_used_and_what_is_missing_is_named(tmp_path: Path) -> None:
    scene(tmp_path / "1K" / A, posed=1)
    scene(tmp_path / "1K" / B, posed=None)
    scene(tmp_path / "2K" / C)
    (tmp_path / "2K" / C / "transforms.json").write_text('{"w": 768')
    videos, failures = find(tmp_path)
    assert [len(video.image_files) for video in videos] == [3, 3, 3]
    assert videos[0].cameras is not None
    assert [camera is None for camera in videos[0].cameras] == [False, True, True]
    assert [video.cameras for video in videos[1:]] == [None, None]
    assert [(failure.video_id, failure.reason) for failure in failures] == [
        (f"1K/{A}", "poses missing for some frames"),
        (f"1K/{B}", "poses missing"),
        (f"2K/{C}", "poses missing"),
    ]
    assert failures[0].detail.startswith("2 of 3 frames have no pose: ")
    assert "there is no" in failures[1].detail
    assert "cannot be read" in failures[2].detail


@pytest.mark.parametrize(
    "change",
    [{"w": 0}, {"frames": [{}]}, {"frames": 3}, {"frames": [{"file_path": 1}]}, {"fl_x": "a"}],
)
def test_a_malformed_transforms_json_costs_only_the_poses(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    scene(tmp_path / A)
    path = tmp_path / A / "transforms.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (video,), (failure,) = find(tmp_path)
    assert (video.cameras, failure.reason) == (None, "poses missing")


def test_images_of_another_aspect_ratio_are_used_without_poses(tmp_path: Path) -> None:
    scene(tmp_path / A, size=(54, 96))
    (video,), (failure,) = find(tmp_path)
    assert video.cameras is None
    assert "an image is 54x96 and its pose is for 768x432" in failure.detail


def test_one_unreadable_image_does_not_cost_the_poses(tmp_path: Path) -> None:
    scene(tmp_path / A)
    (tmp_path / A / "images_8/frame_00001.png").write_bytes(b"")
    (video,), failures = find(tmp_path)
    assert failures == []
    assert video.cameras is not None


def test_the_video_release_is_read_as_video_files(tmp_path: Path) -> None:
    (tmp_path / "1K" / A).mkdir(parents=True)
    (tmp_path / "1K" / A / "video.mp4").write_bytes(b"x")
    (video,), failures = find(tmp_path)
    assert failures == []
    assert (video.file, video.image_files, video.frame_numbers) == (f"1K/{A}/video.mp4", (), ())
    assert (video.sequence, video.cameras) == (f"dl3dv/{A}", None)
    _, (failure,) = find(tmp_path, images="images_4")
    assert "there is video.mp4" in failure.detail


def test_excluded_scenes_are_silent_and_flagged_empty_and_zipped_ones_named(tmp_path: Path) -> None:
    for name in (A, B):
        scene(tmp_path / "1K" / name)
    (tmp_path / "1K" / C).mkdir()
    for name in (A, "d" * 64):
        with zipfile.ZipFile(tmp_path / "1K" / f"{name}.zip", "w"):
            pass
    (tmp_path / "DL3DV-valid.csv").write_text(
        f"hash,sensibility label,batch,duration\n{A},none,1K,2.5\n{B},none,problem,\n"
    )
    (video,), failures = find(tmp_path)
    assert video.video_id == f"1K/{A}"
    assert [(failure.video_id, failure.reason) for failure in failures] == [
        ("d" * 64, "not unpacked"),
        (f"1K/{B}", "flagged as a problem"),
        (f"1K/{C}", "no images"),
    ]
    videos, failures = find(tmp_path, exclude=[A, B, C])
    assert videos == []
    assert len(failures) == 1


@pytest.mark.parametrize("stray_in", ["1K", ""])
def test_a_zip_unpacked_without_a_folder_hides_no_scene(tmp_path: Path, stray_in: str) -> None:
    for name in (A, B):
        scene(tmp_path / "1K" / name)
    scene(tmp_path / stray_in, posed=3)
    videos, (failure,) = find(tmp_path)
    assert [video.video_id for video in videos] == [f"1K/{A}", f"1K/{B}"]
    assert (failure.video_id, failure.reason) == ("", "stray images")
    assert failure.detail == (
        f"{tmp_path / stray_in} holds images_8 and transforms.json beside scenes: a zip without a "
        "folder of its own was unpacked there. Remove them, and unpack that zip into a folder "
        "with the zip's name (unzip HASH.zip -d HASH)"
    )


def test_a_batch_of_zips_is_not_a_scene_because_one_was_unpacked_beside_them(
    tmp_path: Path,
) -> None:
    scene(tmp_path / "1K")
    (tmp_path / "1K" / f"{A}.zip").write_bytes(b"")
    scene(tmp_path / "2K" / B)
    (video,), failures = find(tmp_path)
    assert video.video_id == f"2K/{B}"
    assert [failure.reason for failure in failures] == ["not unpacked", "stray images"]


def test_a_scene_of_another_name_is_found_with_its_colmap_folder(tmp_path: Path) -> None:
    scene(tmp_path / "kitchen")
    (tmp_path / "kitchen/colmap/images").mkdir(parents=True)
    (video,), failures = find(tmp_path)
    assert (video.video_id, failures) == ("kitchen", [])


def test_a_zip_unpacked_into_a_folder_of_its_name_is_found_one_level_below(tmp_path: Path) -> None:
    scene(tmp_path / "1K" / A / A)
    (video,), failures = find(tmp_path)
    assert (video.video_id, video.sequence, failures) == (f"1K/{A}/{A}", f"dl3dv/{A}", [])


def test_an_empty_folder_of_images_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "1K" / A / "images_8").mkdir(parents=True)
    _, (failure,) = find(tmp_path)
    assert failure.detail == f"1K/{A} holds no images in images_8 (the folder is empty)"
    scene(tmp_path / "1K" / A, images="images_4")
    ((video,), _), (_, (failure,)) = find(tmp_path), find(tmp_path, images="images_8")
    assert video.image_files[0].split("/")[2] == "images_4"
    assert failure.detail == (
        f"1K/{A} holds no images in images_8 (the folder is empty); there is images_4 "
        "(see the option 'images')"
    )


def test_a_root_with_nothing_but_zips_asks_to_unpack_them(tmp_path: Path) -> None:
    (tmp_path / "1K").mkdir()
    (tmp_path / "1K" / f"{A}.zip").write_bytes(b"")
    with pytest.raises(PretrackError, match="have to be unpacked"):
        find(tmp_path)


def test_a_csv_of_another_kind_is_refused_in_one_sentence(tmp_path: Path) -> None:
    scene(tmp_path / A)
    (tmp_path / "DL3DV-valid.csv").write_text("x,y\n1,2\n")
    with pytest.raises(PretrackError, match="lacks the columns"):
        find(tmp_path)


def test_real_scenes_are_found(shared_data: Path) -> None:
    (bear, bedroom), (failure,) = find(shared_data / "dl3dv")
    assert bear.cameras is not None
    assert len(bear.image_files) == len(bear.cameras) == 14
    assert bedroom.cameras is not None
    assert [camera is None for camera in bedroom.cameras] == [False] * 3 + [True] * 2 + [False] * 3
    assert bedroom.frame_numbers == tuple(range(1, 9))
    assert (failure.video_id, failure.reason) == (bedroom.video_id, "poses missing for some frames")
    ((raw,), _) = find(shared_data / "dl3dv_video")
    assert raw.file.endswith("/video.mp4")
