"""uCO3D in the layout of its own downloader: what is listed, and what is said to be missing."""

from __future__ import annotations

import math
import os
import sqlite3
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.rows import Failure
from manifests.settings import check_settings
from manifests.terms import licence_of_video
from pipeline.config import BuildSettings
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.chosen_frames import choose_frames
from pipeline.sources.uco3d import Uco3d
from pipeline.sources.video import Video
from shards.errors import PretrackError
from tests.helpers.uco3d_files import (
    ANNOTATED,
    FOCAL,
    FOLDER,
    HEIGHT,
    PRINCIPAL,
    RATE,
    WIDTH,
    insert_frame,
    insert_sequence,
    write_uco3d,
)


def listed(root: Path, **options: Any) -> tuple[list[Video], list[Failure]]:
    source = check_settings(Uco3d, {"dataset": "uco3d", "root": str(root), **options}, "test")
    found = list(source.find_videos())
    return (
        [video for video in found if isinstance(video, Video)],
        [failure for failure in found if isinstance(failure, Failure)],
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_uco3d(tmp_path / "uco3d")
    return tmp_path / "uco3d"


def metadata_of(root: Path) -> Any:
    return closing(sqlite3.connect(root / "metadata.sqlite"))


def test_a_sequence_is_the_frames_of_its_video_that_have_annotations(root: Path) -> None:
    (video,), failures = listed(root)
    assert (video.video_id, video.sequence) == (FOLDER, "uco3d/1-2-3")
    assert (video.file, video.image_files) == (f"{FOLDER}/rgb_video.mp4", ())
    assert video.timestamps == tuple(index / RATE for index in ANNOTATED)
    assert (video.size, video.viewpoint_quality) == ((WIDTH, HEIGHT), 0.75)
    assert video.terms.startswith("uCO3D: CC BY 4.0; attribute Liu et al.")
    assert licence_of_video(video.dataset, video.terms).id == "CC-BY-4.0"
    assert "do not agree between views" in video.terms
    assert [(failure.reason, failure.detail) for failure in failures] == [
        (
            "missing videos",
            "1 of 2 videos of tools are not here (first: tools/saw/4-5-6): download the modality "
            "rgb_videos of this super-category, or leave it out with 'super_categories'",
        )
    ]


def test_cameras_project_as_pytorch3d_does(root: Path) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    with metadata_of(root) as metadata, metadata:
        insert_frame(metadata, FOLDER, 90, 0.9, R=rotation, T=(0.3, -0.2, 5.0))
    (video,), _ = listed(root)
    camera = video.cameras[-1] if video.cameras else None
    assert camera is not None
    for point in [(0.0, 0.0, 0.0), (0.5, -0.25, 0.125), (-1.0, 0.75, 0.5)]:
        # Row vector times R; x to the left, y up. NDC's unit is half the shorter side.
        left, up, depth = np.array(point) @ rotation + (0.3, -0.2, 5.0)
        from_left = WIDTH / 2 - (FOCAL[0] * left / depth + PRINCIPAL[0]) * HEIGHT / 2
        from_top = HEIGHT / 2 - (FOCAL[1] * up / depth + PRINCIPAL[1]) * HEIGHT / 2
        matrix = np.reshape(camera.world_to_camera, (3, 4))
        x, y, z = matrix[:, :3] @ point + matrix[:, 3]
        # The centre of the top left pixel is half a pixel from the borders.
        assert camera.fx * x / z + camera.cx == pytest.approx(from_left - 0.5, abs=1e-4)
        assert camera.fy * y / z + camera.cy == pytest.approx(from_top - 0.5, abs=1e-4)
        assert z == pytest.approx(depth, abs=1e-5)


def test_depth_maps_and_masks_are_named_where_they_are_here(root: Path) -> None:
    (video,), _ = listed(root)
    assert video.depth is None
    assert video.mask_files is not None
    assert video.mask_files[2] == f"{FOLDER}/mask_video.mkv!0.12"
    (root / FOLDER / "depth_maps.h5").touch()
    (root / FOLDER / "mask_video.mkv").unlink()
    (video,), _ = listed(root)
    assert video.mask_files is None
    assert video.depth is not None
    # The official loader reads the dataset of the frame's number plus 1.
    assert video.depth.files[2] == f"{FOLDER}/depth_maps.h5!3"
    assert set(video.depth.scales) == {1.5}
    assert video.depth.encoding == "float"


def test_frames_without_a_pose_or_a_time_of_their_own_are_counted(root: Path) -> None:
    with metadata_of(root) as metadata, metadata:
        insert_frame(metadata, FOLDER, 50, 18 / RATE)  # the time of the last frame again
        insert_frame(metadata, FOLDER, 51, None)
        insert_frame(metadata, FOLDER, 52, 0.9, _viewpoint_T=None)
        insert_frame(metadata, FOLDER, 53, 0.92, _viewpoint_R=struct.pack("9f", *[math.nan] * 9))
        insert_frame(metadata, FOLDER, 54, 0.94, _depth_scale_adjustment=None)
    (video,), failures = listed(root)
    assert video.timestamps is not None
    assert video.timestamps[-4:] == (18 / RATE, 0.9, 0.92, 0.94)
    assert video.cameras is not None
    assert [camera is None for camera in video.cameras[-4:]] == [False, True, True, False]
    details = {failure.reason: failure.detail for failure in failures}
    assert video.size == (WIDTH, HEIGHT)
    assert details["timestamps missing"].startswith("2 of 17 frames have no time of their own")
    assert details["poses missing for some frames"].startswith("2 of 15 frames have no pose")


def test_a_sequence_without_any_frame_is_named(root: Path) -> None:
    (root / "tools/saw/4-5-6").mkdir(parents=True)
    (root / "tools/saw/4-5-6/rgb_video.mp4").touch()
    videos, (failure,) = listed(root)
    assert [video.video_id for video in videos] == [FOLDER]
    assert (failure.video_id, failure.detail) == (
        "tools/saw/4-5-6",
        "metadata.sqlite describes no frame of it",
    )


def test_set_lists_categories_and_quality_choose_sequences(root: Path) -> None:
    (root / "tools/saw/4-5-6").mkdir(parents=True)
    (root / "tools/saw/4-5-6/rgb_video.mp4").write_bytes(b"x")
    with metadata_of(root) as metadata, metadata:
        insert_frame(metadata, "tools/saw/4-5-6", 0, 0.0)

    def ids(**options: Any) -> list[str]:
        return [video.video_id for video in listed(root, **options)[0]]

    assert ids() == [FOLDER, "tools/saw/4-5-6"]
    assert ids(categories=["saw"]) == ["tools/saw/4-5-6"]
    assert ids(super_categories=["tools"], categories=["hammer"]) == [FOLDER]
    assert ids(set_list="static-categories") == [FOLDER, "tools/saw/4-5-6"]
    assert ids(set_list="static-categories", subsets=["val"]) == ["tools/saw/4-5-6"]
    assert ids(min_viewpoint_quality=0.5) == [FOLDER]
    with pytest.raises(PretrackError, match="names no category 'pear': correct 'categories'"):
        listed(root, categories=["pear"])
    with pytest.raises(PretrackError, match="no sequence of the subsets test: correct 'subsets'"):
        listed(root, set_list="static-categories", subsets=["test"])
    with pytest.raises(PretrackError, match=r"correct 'set_list' \(there are static-categories\)"):
        listed(root, set_list="dynamic-categories")


def test_what_a_half_finished_download_lacks_is_one_sentence(root: Path) -> None:
    (root / "_in_progress").mkdir()
    (root / "_in_progress/tools_001.zip").touch()
    with metadata_of(root) as metadata, metadata:
        for name in range(40):
            insert_sequence(metadata, f"fruit/apple/{name:02d}")
    _, failures = listed(root)
    assert [failure.reason for failure in failures] == ["not unpacked", *["missing videos"] * 2]
    assert "1 unfinished downloads (first: tools_001.zip)" in failures[0].detail
    assert failures[1].detail.startswith("40 of 40 videos of fruit are not here (first: fruit/")
    (root / FOLDER / "rgb_video.mp4").unlink()
    with pytest.raises(PretrackError, match=r"holds none of the videos that its metadata\.sqlite"):
        listed(root)


def test_missing_and_damaged_metadata_are_one_sentence(root: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrackError, match=r"the uco3d root .*none does not exist: set 'root'"):
        listed(tmp_path / "none")
    with metadata_of(root) as metadata, metadata:
        metadata.execute("ALTER TABLE frame_annots DROP COLUMN _viewpoint_R")
    with pytest.raises(PretrackError, match=r"cannot be read \(no such column: _viewpoint_R\)"):
        listed(root)
    (root / "metadata.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(PretrackError, match="download uCO3D's metadata again"):
        listed(root)
    (root / "metadata.sqlite").unlink()
    with pytest.raises(PretrackError, match=r"holds no uCO3D: expected metadata\.sqlite"):
        listed(root)


def test_listing_writes_nothing_and_follows_no_path_out_of_the_root(root: Path) -> None:
    (root.parent / "private.mp4").write_bytes(b"x")
    with metadata_of(root) as metadata, metadata:
        insert_sequence(metadata, "tools/axe/7", _video_path="../private.mp4")
        insert_frame(metadata, "tools/axe/7", 0, 0.0)
    before = sorted(os.listdir(root))
    os.chmod(root, 0o500)
    try:
        videos, _ = listed(root)
    finally:
        os.chmod(root, 0o700)
    assert [video.video_id for video in videos] == [FOLDER]
    assert sorted(os.listdir(root)) == before


def test_depth_maps_without_h5py_are_refused_before_any_video_is_scanned(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / FOLDER / "depth_maps.h5").touch()
    values = {"sources": [{"dataset": "uco3d", "root": str(root)}], "out": str(root / "out")}
    settings = check_settings(BuildSettings, {**values, "frames": {"depth": True}}, "test")
    monkeypatch.setitem(sys.modules, "h5py", None)  # as if it were not installed
    with pytest.raises(PretrackError, match=r"not installed here: pip install 'pretrack\[uco3d\]'"):
        make_catalog(settings, Progress(quiet=True))


def chosen(times: list[float], size: tuple[int, int] = (0, 0), **changes: Any) -> Any:
    row = {
        "source": "uco3d",
        "video_id": "v",
        "file": "v.mp4",
        "width": 80,
        "height": 60,
        "timestamps": [0.0, 0.1, 0.2, 0.3, 0.4],
        "cuts": [3],
        "cameras": [f"camera at {time}" for time in times],
        "mask_files": None,
        "depth": {"files": [f"{time}" for time in times], "scales": [1.0] * len(times)}
        | {"masks": [], "encoding": "float"},
    }
    return choose_frames({**row, **changes}, times, size)


def test_frames_are_chosen_by_the_nearest_time_and_keep_what_belongs_to_them() -> None:
    row, failures = chosen([0.06, 0.14, 0.31, 0.45, 0.6])
    assert row["frame_numbers"] == [1, 3, 4]
    assert row["timestamps"] == [0.1, 0.3, 0.4]
    assert (row["frames"], row["cuts"]) == (3, [1])
    assert row["cameras"] == ["camera at 0.06", "camera at 0.31", "camera at 0.45"]
    assert row["depth"]["files"] == ["0.06", "0.31", "0.45"]
    (failure,) = failures
    assert (failure.stage, failure.reason) == ("scan", "missing frames")
    assert failure.detail.startswith("2 of 5 frames with annotations have no frame of their own")
    assert "whose 5 frames end at 0.40 s" in failure.detail
    assert chosen([0.6])[0] is None


def test_cameras_of_frames_of_another_size_are_not_used() -> None:
    row, failures = chosen([0.1], (80, 60))
    assert (row["cameras"], failures) == (["camera at 0.1"], [])
    row, (failure,) = chosen([0.1], (160, 120))
    assert row["cameras"] is None
    assert failure.reason == "poses missing"
    assert "for frames of 160x120 pixels, and v.mp4 has 80x60" in failure.detail
