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
    assert failures == []
    walk = videos[2]
    assert (walk.file, walk.image_files, walk.frame_numbers) == (
        "",
        ("walk/9.JPG", "walk/10.jpg"),
        (9, 10),
    )
    assert (videos[0].file, videos[0].image_files, videos[0].frame_numbers) == ("b.MP4", (), ())
    assert {video.terms for video in videos} == {"mine"}
    assert len({video.identity for video in videos}) == 4


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
