"""YouTube-VOS: the layouts it comes in, and what can be missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.rows import Failure
from pipeline.sources.video import Video
from pipeline.sources.youtube_vos import YoutubeVos
from shards.errors import PretrackError


def find(root: Path, split: str = "train") -> tuple[list[Video], list[Failure]]:
    found = list(YoutubeVos(dataset="youtube_vos", root=root, split=split).find_videos())
    return [item for item in found if isinstance(item, Video)], [
        item for item in found if isinstance(item, Failure)
    ]


def frames(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("layout", ["train", "train/train", "."])
def test_the_split_is_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    frames(tmp_path / layout / "JPEGImages" / "b1", "00015.jpg", "00005.jpg", "00110.jpg")
    frames(tmp_path / layout / "JPEGImages" / "a1", "00000.jpg")
    videos, failures = find(tmp_path)
    assert failures == []
    assert [video.video_id for video in videos] == ["a1", "b1"]
    video = videos[1]
    prefix = "" if layout == "." else f"{layout}/"
    assert video.image_files == tuple(
        f"{prefix}JPEGImages/b1/{name}.jpg" for name in ("00005", "00015", "00110")
    )
    assert video.frame_numbers == (5, 15, 110)
    assert video.timestamps == (5 / 30, 0.5, 110 / 30)
    assert (video.sequence, video.cameras, video.file) == ("youtube_vos/b1", None, "")
    assert "must not be redistributed" in video.terms


def test_all_frames_of_a_video_are_the_same_sequence(tmp_path: Path) -> None:
    frames(tmp_path / "train/JPEGImages/a1", "00000.jpg", "00005.jpg")
    frames(tmp_path / "train_all_frames/JPEGImages/a1", *(f"{i:05d}.jpg" for i in range(8)))
    ((few,), _), ((all_,), _) = find(tmp_path), find(tmp_path, "train_all_frames")
    assert few.sequence == all_.sequence
    assert len(all_.image_files) == 8


def test_a_missing_split_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    frames(tmp_path / "valid/JPEGImages/a1", "00000.jpg")
    with pytest.raises(
        PretrackError, match=r"no YouTube-VOS split 'train': expected .*there is valid"
    ):
        find(tmp_path)
    (tmp_path / "test/JPEGImages").mkdir(parents=True)
    with pytest.raises(PretrackError, match="holds no videos"):
        find(tmp_path, "test")


def test_what_meta_json_names_and_the_disk_lacks_is_counted(tmp_path: Path) -> None:
    frames(tmp_path / "train/JPEGImages/a1", "00000.jpg", "00005.jpg")
    objects = {
        "1": {"category": "cat", "frames": ["00000", "00005"]},
        "2": {"frames": ["00010", "00015"]},
    }
    meta = {"videos": {"a1": {"objects": objects}, "b1": {"objects": {}}, "c1": {"objects": {}}}}
    (tmp_path / "train/meta.json").write_text(json.dumps(meta))
    (video,), (videos, images) = find(tmp_path)
    assert video.frame_numbers == (0, 5)
    assert (videos.video_id, videos.reason) == ("", "missing videos")
    assert videos.detail.startswith("2 videos of ")
    assert "first: b1" in videos.detail
    assert (images.video_id, images.reason) == ("a1", "missing images")
    assert images.detail == "2 frames of a1 in meta.json are not on disk (first: 00010)"


@pytest.mark.parametrize("text", ["{", "[]", '{"videos": {"a1": 3}}'])
def test_a_broken_meta_json_is_named_and_the_frames_are_used(tmp_path: Path, text: str) -> None:
    frames(tmp_path / "train/JPEGImages/a1", "00000.jpg")
    (tmp_path / "train/meta.json").write_text(text)
    (video,), (failure,) = find(tmp_path)
    assert video.video_id == "a1"
    assert (failure.video_id, failure.reason) == ("", "unreadable meta.json")


def test_odd_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    frames(
        tmp_path / "train/JPEGImages/a1",
        "00000.jpg",
        "00000.png",
        "cover.jpg",
        "00003.jpg",
        "._00003.jpg",
        "x.txt",
    )
    frames(tmp_path / "train/JPEGImages/b1")
    (video,), (odd, empty) = find(tmp_path)
    assert video.image_files == ("train/JPEGImages/a1/00000.jpg", "train/JPEGImages/a1/00003.jpg")
    assert (odd.video_id, odd.reason) == ("a1", "images without a frame number")
    assert odd.detail.startswith("2 images")
    assert (empty.video_id, empty.reason) == ("b1", "no images")


def test_real_videos_are_found(shared_data: Path) -> None:
    root = shared_data / "youtube_vos"
    videos, failures = find(root)
    assert failures == []
    assert [(video.video_id, len(video.image_files)) for video in videos] == [
        ("3f1c0a92be", 5),
        ("8b27d4e061", 4),
    ]
    assert [len(video.image_files) for video in find(root, "train_all_frames")[0]] == [21, 16]
    ((valid,), _) = find(root, "valid")
    assert valid.frame_numbers == tuple(range(0, 81, 5))
