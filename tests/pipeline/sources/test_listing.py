"""Order, numbers and identity of listed files; the streaming JSON reader; video folders."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from manifests.rows import Failure
from pipeline.config import BuildSettings
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.sources import Source
from pipeline.sources.json_stream import items
from pipeline.sources.listing import ListedFile, identity_of, number_frames, trailing_number
from pipeline.sources.video import Video
from pipeline.sources.video_folder import VideoFolder
from shards.errors import PretrackError


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def find(root: Path, **options: str) -> tuple[list[Video], list[Failure]]:
    found = list(VideoFolder(dataset="video_folder", root=root, **options).find_videos())
    return [item for item in found if isinstance(item, Video)], [
        item for item in found if isinstance(item, Failure)
    ]


def order(*names: str) -> list[tuple[int, str]]:
    return [
        (number, file.name)
        for number, file in number_frames(ListedFile(name, 1, 1) for name in names)
    ]


def test_frames_are_ordered_by_number() -> None:
    assert order("f10.jpg", "f9.jpg", "f2.jpg") == [(2, "f2.jpg"), (9, "f9.jpg"), (10, "f10.jpg")]
    assert order("a7.jpg", "b3.png") == [(3, "b3.png"), (7, "a7.jpg")]


def test_frames_without_numbers_of_their_own_are_counted() -> None:
    assert order("1.jpg", "1.png", "2.jpg") == [(0, "1.jpg"), (1, "1.png"), (2, "2.jpg")]
    assert order("x10_a.jpg", "x9_a.jpg") == [(0, "x9_a.jpg"), (1, "x10_a.jpg")]
    assert order("end.jpg", "2.jpg") == [(0, "2.jpg"), (1, "end.jpg")]


def test_a_number_must_fit_a_table() -> None:
    assert trailing_number("frame_00012") == 12
    assert trailing_number("12_frame") is None
    assert trailing_number("9" * 18) == 10**18 - 1
    assert trailing_number("1" * 19) is None


def test_identity_changes_with_name_size_and_stamp() -> None:
    identities = {
        identity_of([ListedFile(*file)])
        for file in (("a", 1, 1), ("b", 1, 1), ("a", 2, 1), ("a", 1, 2), ("a", 11, 0))
    }
    assert len(identities) == 5
    assert identity_of([ListedFile("a", 1, 1)]) in identities


def test_json_list_is_streamed_across_chunks() -> None:
    rows = [{"i": i, "text": 'é]} " ,' * (i % 7), "score": float("inf")} for i in range(40_000)]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    assert len(text) > 3 << 20
    assert list(items(io.StringIO(text))) == rows
    assert list(items(io.StringIO(" [ ] "))) == []
    assert str(next(items(io.StringIO('[{"score": NaN}]')))["score"]) == "nan"


def test_an_item_may_be_longer_than_a_chunk() -> None:
    rows = [{"text": "x" * (5 << 20)}, {"text": "y"}]
    assert list(items(io.StringIO(json.dumps(rows)))) == rows


@pytest.mark.parametrize("text", ["", "{}", "[{}", '[{"a": 1}, {"a"', "[{} nonsense]"])
def test_broken_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the text is the decoder's)
        list(items(io.StringIO(text)))


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


def test_identity_follows_the_file(tmp_path: Path) -> None:
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


def test_links_are_followed_once_and_broken_ones_named(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("video_folder", "{}"),
        ("co3d", "apple/{}/images"),
        ("youtube_vos", "train/JPEGImages/{}"),
        ("dl3dv", "1K/{}/images_8"),
    ],
)
def test_a_name_that_is_no_text_is_a_failure(tmp_path: Path, dataset: str, folder: str) -> None:
    for name in ("good", os.fsdecode(b"b\xff")):
        for number in (1, 2):
            touch(tmp_path / folder.format(name) / f"frame{number:05d}.jpg")
    settings = BuildSettings.model_validate(
        {"sources": [{"dataset": dataset, "root": tmp_path}], "out": tmp_path / "out"}
    )
    found = make_catalog(settings, Progress(quiet=True))
    (video_id,) = found.videos["video_id"].to_pylist()
    named = [row for row in found.failures.to_pylist() if row["reason"] == "unusable name"]
    assert [row["video_id"] for row in named] == [video_id.replace("good", "b\\udcff")]
    assert found.videos_found == 2


def test_a_missing_or_empty_root_is_one_sentence(tmp_path: Path) -> None:
    for dataset in ("co3d", "dl3dv", "youtube_vos", "video_folder"):
        source = TypeAdapter(Source).validate_python(
            {"dataset": dataset, "root": tmp_path / "none"}
        )
        with pytest.raises(
            PretrackError, match=f"the {dataset} root .*none does not exist: set 'root'"
        ):
            list(source.find_videos())
        source = TypeAdapter(Source).validate_python({"dataset": dataset, "root": tmp_path})
        with pytest.raises(PretrackError, match=r"holds no .*expected"):
            list(source.find_videos())
    with pytest.raises(PretrackError, match="is not a folder"):
        find(touch(tmp_path / "file"))


def test_a_name_is_part_of_file_names(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        VideoFolder(dataset="video_folder", name="my videos", root=tmp_path)


def test_one_dataset_can_be_several_sources(tmp_path: Path) -> None:
    sources = [{"dataset": "video_folder", "name": name, "root": tmp_path} for name in ("a", "b")]
    settings = BuildSettings.model_validate({"sources": sources, "out": tmp_path})
    assert [source.name for source in settings.sources] == ["a", "b"]


def test_real_tree(shared_data: Path) -> None:
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
