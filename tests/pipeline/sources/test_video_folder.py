"""Folder trees of videos and images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from manifests.rows import Failure
from pipeline.config import BuildSettings
from pipeline.sources.video import Video
from pipeline.sources.video_folder import VideoFolder


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def find(root: Path, **options: str) -> tuple[list[Video], list[Failure]]:
    found = list(VideoFolder(dataset="video_folder", root=root, **options).find_videos())
    return [item for item in found if isinstance(item, Video)], [
        item for item in found if isinstance(item, Failure)
    ]


def test_videos_and_image_folders_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in (
        "b.MP4",
        "deep/er/a.mkv",
        "walk/10.jpg",
        "walk/9.JPG",
        "walk/clip.mov",
        "one/1.png",
        ".hidden/c.mp4",
        "._b.mp4",
        "notes.txt",
    ):
        touch(tmp_path / name)
    videos, failures = find(tmp_path, terms="mine")
    assert [video.video_id for video in videos] == [
        "b.MP4",
        "deep/er/a.mkv",
        "walk",
        "walk/clip.mov",
    ]
    (ignored,) = failures
    assert (ignored.video_id, ignored.reason) == ("", "ignored files")
    assert ignored.detail.startswith(
        "2 files are ignored: 1 .png alone in its folder, 1 .txt (first: notes.txt)"
    )
    walk = videos[2]
    assert (walk.file, walk.image_files, walk.frame_numbers) == (
        "",
        ("walk/9.JPG", "walk/10.jpg"),
        (9, 10),
    )
    assert (videos[0].file, videos[0].image_files, videos[0].frame_numbers) == ("b.MP4", (), ())
    assert {video.terms for video in videos} == {"mine"}
    assert len({video.identity for video in videos}) == 4


def test_every_common_suffix_is_read(tmp_path: Path) -> None:
    for suffix in ("mpg", "mpeg", "flv", "wmv", "mts", "m2ts", "3gp", "gif", "ogv", "MTS"):
        touch(tmp_path / f"clip.{suffix}")
    images = ["1.bmp", "2.jfif", "3.jpeg", "4.jpg", "5.png", "6.tif", "7.tiff", "8.WEBP"]
    for name in images:
        touch(tmp_path / "walk" / name)
    videos, failures = find(tmp_path)
    assert failures == []
    assert len(videos) == 11
    assert videos[-1].image_files == tuple(f"walk/{name}" for name in images)


def test_files_that_are_not_read_are_counted_by_suffix_in_one_row(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    for name in ("a.json", "b/b.json", "b/README", "b/c.TXT", "b/d/e.json"):
        touch(tmp_path / name)
    _, (ignored,) = find(tmp_path)
    assert ignored.detail == (
        f"5 files are ignored: 3 .json, 1 .txt, 1 without a suffix (first: a.json) in {tmp_path}"
    )


def test_files_of_a_build_into_the_same_tree_are_not_part_of_the_source(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    for name in ("build.lock", "current.json", "shards/x.tar", "snapshots/000001/clips.parquet"):
        touch(tmp_path / "out" / name)
    (video,), failures = find(tmp_path)
    assert (video.video_id, failures) == ("a.mp4", [])


def test_a_file_that_was_written_again_has_another_identity(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4")
    ((before,), _), ((again,), _) = find(tmp_path), find(tmp_path)
    os.utime(path, ns=(1, 1))
    ((after,), _) = find(tmp_path)
    assert before == again
    assert before.identity != after.identity


def test_images_in_the_root_are_a_video(tmp_path: Path) -> None:
    touch(tmp_path / "f1.png")
    touch(tmp_path / "f2.png")
    ((video,), _) = find(tmp_path)
    assert (video.video_id, video.image_files) == (".", ("f1.png", "f2.png"))


def test_links_are_followed_once_and_dead_ones_named(tmp_path: Path) -> None:
    touch(tmp_path / "real/a.mp4")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/self").symlink_to("self")
    (tmp_path / "z").symlink_to(tmp_path / "real")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "same.mp4").symlink_to("real/a.mp4")
    videos, failures = find(tmp_path)
    assert [video.video_id for video in videos] == ["real/a.mp4", "same.mp4"]
    assert [(failure.video_id, failure.reason) for failure in failures] == [
        ("gone.mp4", "unreadable file")
    ]


def test_a_source_name_that_cannot_be_part_of_file_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        VideoFolder(dataset="video_folder", name="my videos", root=tmp_path)


def test_one_dataset_can_be_several_sources(tmp_path: Path) -> None:
    sources = [{"dataset": "video_folder", "name": name, "root": tmp_path} for name in ("a", "b")]
    settings = BuildSettings.model_validate({"sources": sources, "out": tmp_path})
    assert [source.name for source in settings.sources] == ["a", "b"]


def test_real_videos_are_found(shared_data: Path) -> None:
    videos, failures = find(shared_data / "videos")
    assert [video.file for video in videos] == [
        "apple.mp4",
        "bear.mp4",
        "bikes.mp4",
        "carphone_pristine.mp4",
        "flipping_a_pancake.mkv",
    ]
    assert failures == []
    assert len(find(shared_data / "odd")[0]) == 16


def test_folders_of_images_that_were_stored_wrongly(shared_data: Path) -> None:
    videos, failures = find(shared_data / "bugs")
    tum, scenes = (
        next(video for video in videos if video.video_id == name)
        for name in ("tum/rgb", "7scenes/seq-01")
    )
    times = [float(Path(name).stem) for name in tum.image_files]
    assert times == sorted(times)
    assert len(times) == 24
    colour = tuple(f"7scenes/seq-01/frame-{number:06d}.color.png" for number in range(24))
    assert scenes.image_files == colour
    assert [(failure.video_id, failure.reason) for failure in failures] == [
        ("7scenes/seq-01", "other kinds of pictures"),
        ("grey16", "scaled to eight bits"),
        ("rgba", "transparent images"),
        ("", "ignored files"),
    ]
    assert failures[0].detail.endswith(
        "24 images beside the video's 24 frame-*.color.png are of other kinds and left out: "
        "24 frame-*.depth.png (16-bit grey)"
    )
