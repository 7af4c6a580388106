"""CO3D: trees and zips, annotations that are partial, broken or absent, and poses."""

from __future__ import annotations

import gzip
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.rows import DepthFiles, Failure
from pipeline.sources.co3d import Co3d
from pipeline.sources.video import Video
from shards.errors import PretrackError

SEQUENCE = "10_20_30"


def find(root: Path, **options: Any) -> tuple[list[Video], list[Failure]]:
    found = list(Co3d(dataset="co3d", root=root, **options).find_videos())
    return [item for item in found if isinstance(item, Video)], [
        item for item in found if isinstance(item, Failure)
    ]


def reasons(failures: list[Failure]) -> list[tuple[str, str]]:
    return [(failure.video_id, failure.reason) for failure in failures]


def image(number: int, sequence: str = SEQUENCE, category: str = "apple") -> str:
    return f"{category}/{sequence}/images/frame{number:06d}.jpg"


def annotation(number: int, **change: Any) -> dict[str, Any]:
    """Make the row of frame_annotations.jgz for image `number`; its frame_number is one less."""
    viewpoint = {
        "R": np.eye(3).tolist(),
        "T": [0.0, 0.0, 5.0],
        "focal_length": [2.0, 2.0],
        "principal_point": [0.0, 0.0],
        "intrinsics_format": "ndc_isotropic",
    }
    row = {
        "sequence_name": SEQUENCE,
        "frame_number": number - 1,
        "frame_timestamp": (number - 1) / 10,
    }
    return {
        **row,
        "image": {"path": image(number), "size": [200, 100]},
        "mask": None,
        "viewpoint": viewpoint,
        **change,
    }


def packed(rows: list[Any]) -> bytes:
    return gzip.compress(json.dumps(rows).encode())


def write(
    root: Path,
    *names: str,
    frames: list[Any] | None = None,
    scores: dict[str, float | None] | None = None,
) -> None:
    """Write images and annotation files of the category apple."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    if frames is not None:
        (root / "apple/frame_annotations.jgz").write_bytes(packed(frames))
    if scores is not None:
        rows = [
            {"sequence_name": name, "category": "apple", "viewpoint_quality_score": score}
            for name, score in scores.items()
        ]
        (root / "apple/sequence_annotations.jgz").write_bytes(packed(rows))


def pack(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_annotations_give_numbers_times_and_cameras(tmp_path: Path) -> None:
    numbers = [2, 10, 9, 1]  # with a gap, and not in order
    write(tmp_path, *map(image, numbers), frames=[annotation(number) for number in numbers])
    (video,), failures = find(tmp_path)
    assert failures == []
    assert (video.video_id, video.sequence) == (f"apple/{SEQUENCE}", f"co3d/{SEQUENCE}")
    assert video.image_files == tuple(map(image, (1, 2, 9, 10)))
    assert video.frame_numbers == (0, 1, 8, 9)
    assert video.timestamps == (0.0, 0.1, 0.8, 0.9)
    assert video.cameras is not None
    camera = video.cameras[0]
    assert camera is not None
    # The annotation's size is [H, W] = [200, 100]: the centre of 100 pixels is at 49.5.
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (100.0, 100.0, 49.5, 99.5)
    assert "CC BY-NC 4.0" in video.terms


def test_a_viewpoint_that_lacks_a_part_leaves_only_its_frame_without_a_pose(
    tmp_path: Path,
) -> None:
    rows = [annotation(number) for number in (1, 2, 3)]
    del rows[1]["viewpoint"]["focal_length"]
    write(tmp_path, *map(image, (1, 2, 3)), frames=rows)
    (video,), (failure,) = find(tmp_path)
    assert video.cameras is not None
    assert [camera is None for camera in video.cameras] == [False, True, False]
    assert failure.detail.startswith("1 of 3 frames have no pose")


def test_depth_maps_and_masks_are_those_that_annotations_name(tmp_path: Path) -> None:
    """A frame may lack them, and they may be in a zip while the images are not."""
    folder = f"apple/{SEQUENCE}"
    depth: dict[str, Any] = {
        "path": f"{folder}/depths/a.png",
        "scale_adjustment": 0.5,
        "mask_path": f"{folder}/depth_masks/a.png",
    }
    rows = [annotation(1, depth=depth, mask={"path": f"{folder}/masks/a.png"}), annotation(2)]
    write(tmp_path, image(1), image(2), frames=rows)
    zipped = f"{SEQUENCE}/masks/a.png"  # a zip in the category's folder may leave the category out
    pack(tmp_path / "apple/apple_000.zip", {zipped: b"mask"})
    (video,), _ = find(tmp_path)
    assert video.depth == DepthFiles(
        encoding="float16",
        files=(depth["path"], ""),
        scales=(0.5, 1.0),
        masks=(depth["mask_path"], ""),
    )
    assert video.mask_files == (f"apple/apple_000.zip!{zipped}", "")


def test_maps_that_are_no_files_of_the_root_are_left_out(tmp_path: Path) -> None:
    rows = [
        annotation(1, depth={"path": "/etc/passwd"}, mask={"path": f"apple/{SEQUENCE}/../../x"}),
        annotation(2, depth={"path": 5, "scale_adjustment": "wide"}, mask=["path"]),
        annotation(3, depth={"path": "apple/a.png", "scale_adjustment": None}),
    ]
    write(tmp_path, *map(image, (1, 2, 3)), frames=rows)
    (video,), failures = find(tmp_path)
    assert failures == []
    assert video.mask_files is None
    assert video.depth is not None
    assert video.depth.files == ("", "", "apple/a.png")
    assert math.isnan(video.depth.scales[2])


def test_frame_numbers_are_the_annotations_own(tmp_path: Path) -> None:
    rows = [
        annotation(1, frame_number=7, frame_timestamp=0.1),
        annotation(2, frame_number=4, frame_timestamp=0.0),
    ]
    write(tmp_path, image(1), image(2), frames=rows)
    (video,), _ = find(tmp_path)
    assert (video.frame_numbers, video.image_files) == ((4, 7), (image(2), image(1)))


def test_without_annotations_the_files_are_the_frames(tmp_path: Path) -> None:
    write(tmp_path, *map(image, (1, 12, 5)))
    (video,), (failure,) = find(tmp_path)
    assert (video.frame_numbers, video.timestamps, video.cameras) == ((1, 5, 12), None, None)
    assert failure.reason == "poses missing"
    assert failure.detail == (
        "3 of 3 frames have no pose: there is no apple/frame_annotations.jgz; "
        "their times are not known either"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(b"{}"),
        gzip.compress(b'[{"a": 1}]'),
        gzip.compress(b"[3]"),
        packed([annotation(1)])[:-20],
    ],
    ids=["empty", "no gzip", "no list", "other fields", "no annotations", "cut short"],
)
def test_with_broken_annotations_the_files_are_used_and_the_damage_is_named(
    tmp_path: Path, data: bytes
) -> None:
    write(tmp_path, image(1), image(2))
    (tmp_path / "apple/frame_annotations.jgz").write_bytes(data)
    (video,), (failure,) = find(tmp_path)
    assert len(video.image_files) == 2
    assert "apple/frame_annotations.jgz cannot be read" in failure.detail


def test_images_without_annotation_and_annotations_without_image_are_counted(
    tmp_path: Path,
) -> None:
    rows = [annotation(number) for number in (1, 2, 3, 4)] + [
        annotation(1, sequence_name="40_50_60"),
        annotation(2, frame_number=3),
    ]
    write(tmp_path, *map(image, (2, 3, 8, 9)), frames=rows)
    (video,), (sequences, absent, extra) = find(tmp_path)
    # Image 2 is annotated twice: the first row counts.
    assert video.image_files == (image(2), image(3))
    assert video.frame_numbers == (1, 2)
    assert (sequences.video_id, sequences.reason) == ("", "missing sequences")
    assert "first: 40_50_60" in sequences.detail
    assert (absent.video_id, absent.reason) == (video.video_id, "missing images")
    assert absent.detail.endswith(f"(first: {image(1)})")
    assert extra.reason == "images without annotation"
    assert extra.detail.startswith("2 images")


def test_a_sequence_without_any_annotated_image_is_no_video(tmp_path: Path) -> None:
    write(tmp_path, image(9), image(1, "09_1_1"), frames=[annotation(1)])
    videos, failures = find(tmp_path)
    assert [video.video_id for video in videos] == ["apple/09_1_1"]
    assert reasons(failures) == [
        ("apple/09_1_1", "poses missing"),
        (f"apple/{SEQUENCE}", "missing images"),
        (f"apple/{SEQUENCE}", "images without annotation"),
    ]


def test_missing_viewpoints_and_times_are_named(tmp_path: Path) -> None:
    rows = [annotation(1), annotation(2, viewpoint=None), annotation(3, frame_timestamp=math.nan)]
    write(tmp_path, *map(image, (1, 2, 3)), frames=rows)
    (video,), failures = find(tmp_path)
    assert video.cameras is not None
    assert [camera is None for camera in video.cameras] == [False, True, False]
    assert video.timestamps is None
    assert [reason for _, reason in reasons(failures)] == [
        "poses missing for some frames",
        "timestamps missing",
    ]


def test_a_failed_reconstruction_gives_no_cameras(tmp_path: Path) -> None:
    far = annotation(2)
    far["viewpoint"]["T"] = [0.0, -90_000.0, 20_000.0]
    write(tmp_path, image(1), image(2), frames=[annotation(1), far])
    (video,), (failure,) = find(tmp_path)
    assert video.cameras is None
    assert failure.reason == "poses missing"
    assert "reconstruction failed" in failure.detail


def test_sequences_of_low_or_unknown_viewpoint_quality_are_left_out(tmp_path: Path) -> None:
    scores = {"1_1_1": 0.7, "2_2_2": math.nan, "3_3_3": 0.4, "4_4_4": None, "6_6_6": 0.5}
    write(tmp_path, *(image(1, f"{i}_{i}_{i}") for i in range(1, 7)), scores=scores)
    assert len(find(tmp_path)[0]) == 6
    videos, failures = find(tmp_path, min_viewpoint_quality=0.5)
    assert [video.video_id for video in videos] == ["apple/1_1_1", "apple/6_6_6"]
    low = [failure for failure in failures if failure.reason == "low viewpoint quality"]
    assert [failure.video_id[-1] for failure in low] == ["2", "3", "4", "5"]
    (tmp_path / "apple/sequence_annotations.jgz").unlink()
    with_none = find(tmp_path, min_viewpoint_quality=0.5)
    assert with_none[0] == []
    assert "not known (there is no apple/sequence_annotations.jgz)" in with_none[1][0].detail


def test_frames_are_gathered_across_zips_and_folders(tmp_path: Path) -> None:
    write(tmp_path, image(1))
    pack(
        tmp_path / "apple_000.zip",
        {image(1): b"other", image(2): b"2", f"apple/{SEQUENCE}/masks/frame000002.png": b"m"},
    )
    pack(
        tmp_path / "apple_001.zip",
        {image(3): b"3", "apple/frame_annotations.jgz": packed([annotation(i) for i in (1, 2, 3)])},
    )
    pack(
        tmp_path / "plant/plant_000.zip",
        {"1_1_1/images/frame000001.jpg": b"x", "frame_annotations.jgz": b"", "LICENSE": b""},
    )
    (apple, plant), (failure,) = find(tmp_path)
    assert apple.image_files == (image(1), f"apple_000.zip!{image(2)}", f"apple_001.zip!{image(3)}")
    assert apple.frame_numbers == (0, 1, 2)
    assert apple.cameras is not None
    assert plant.image_files == ("plant/plant_000.zip!1_1_1/images/frame000001.jpg",)
    assert "plant/plant_000.zip!frame_annotations.jgz cannot be read" in failure.detail


def test_annotations_may_lie_in_a_zip_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, image(1))
    pack(
        tmp_path / "METADATA.zip",
        {
            "apple/frame_annotations.jgz": packed([annotation(1)]),
            "car/frame_annotations.jgz": b"not read",
        },
    )
    (video,), (failure,) = find(tmp_path)
    assert video.cameras is not None
    assert (failure.video_id, failure.reason) == ("", "missing sequences")
    assert "car" in failure.detail


def test_identity_of_zip_members_is_their_content(tmp_path: Path) -> None:
    def identity(content: bytes) -> str:
        pack(tmp_path / "apple_000.zip", {image(1): content, image(2): b"2"})
        ((video,), _) = find(tmp_path)
        return video.identity

    assert identity(b"a") == identity(b"a")
    assert identity(b"a") != identity(b"b")


def test_a_broken_zip_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    pack(tmp_path / "apple_000.zip", {image(1): b"1"})
    (tmp_path / "apple_001.zip").write_bytes((tmp_path / "apple_000.zip").read_bytes()[:-30])
    (video,), failures = find(tmp_path)
    assert video.image_files == (f"apple_000.zip!{image(1)}",)
    assert reasons(failures)[0] == ("apple_001.zip", "unreadable zip")


def test_only_the_categories_asked_for_are_read(tmp_path: Path) -> None:
    write(tmp_path, image(1), image(1, category="plant"))
    pack(tmp_path / "car_000.zip", {image(1, category="car"): b"1"})
    assert [video.video_id for video in find(tmp_path)[0]] == [
        f"{name}/{SEQUENCE}" for name in ("apple", "car", "plant")
    ]
    assert [video.video_id for video in find(tmp_path, categories=["car"])[0]] == [
        f"car/{SEQUENCE}"
    ]
    with pytest.raises(PretrackError, match="no category 'aple'"):
        find(tmp_path, categories=["aple"])


def test_real_sequences_are_found_unpacked_and_in_zips(shared_data: Path, tmp_path: Path) -> None:
    (orbit, dense, plant), failures = find(shared_data / "co3d_v2")
    assert [len(video.image_files) for video in (orbit, dense, plant)] == [20, 50, 10]
    assert orbit.frame_numbers[:2] == (6, 11)
    assert orbit.cameras is not None
    # The cameras circle the apple, which is at the world's origin: all see it.
    for camera in orbit.cameras:
        assert camera is not None
        matrix = np.array(camera.world_to_camera).reshape(3, 4)
        x, y, z = matrix[:, 3]
        assert z > 0
        assert 0 < camera.fx * x / z + camera.cx < 1066
        assert 0 < camera.fy * y / z + camera.cy < 1896
    assert reasons(failures) == [
        (dense.video_id, "poses missing"),
        (plant.video_id, "poses missing"),
    ]
    _, failures = find(shared_data / "co3d_v2", min_viewpoint_quality=0.5)
    assert reasons(failures)[-1] == (plant.video_id, "low viewpoint quality")

    # The same from zips, with one sequence's frames in two of them.
    files = sorted(path for path in (shared_data / "co3d_v2").rglob("*") if path.is_file())
    for part in (0, 1):
        members = {
            path.relative_to(shared_data / "co3d_v2").as_posix(): path.read_bytes()
            for path in files[part::2]
        }
        pack(tmp_path / f"apple_{part:03d}.zip", members)
    zipped, _ = find(tmp_path)
    assert [video.video_id for video in zipped] == [orbit.video_id, dense.video_id, plant.video_id]
    assert [video.cameras for video in zipped] == [orbit.cameras, None, None]
    assert [name.split("!")[1] for name in zipped[0].image_files] == list(orbit.image_files)
