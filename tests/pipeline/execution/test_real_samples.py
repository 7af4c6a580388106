"""Builds over real samples of all datasets, and over files that are each odd in another way."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from shards.reader import iterate_shard
from tests.pipeline.decode.test_video import ODD

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_cores")]
QUIET = Progress(quiet=True)


def test_all_datasets_in_one_build(shared_data: Path, tmp_path: Path) -> None:
    values = {
        "sources": [
            {"dataset": "co3d", "root": str(shared_data / "co3d_v2")},
            {"dataset": "dl3dv", "root": str(shared_data / "dl3dv")},
            {"dataset": "dl3dv", "name": "dl3dv_video", "root": str(shared_data / "dl3dv_video")},
            {
                "dataset": "youtube_vos",
                "root": str(shared_data / "youtube_vos"),
                "split": "train_all_frames",
            },
            {"dataset": "video_folder", "root": str(shared_data / "videos")},
        ],
        "frames": {"clip_frames": 24, "min_frames": 5, "short_side": 128},
        "tracks": {"tracker": "lucas_kanade", "grid": 8, "anchors": [0, 4]},
        "out": str(tmp_path),
    }
    settings = check_settings(BuildSettings, values, "test")
    first = build(settings, QUIET)
    assert verify_snapshot(first.snapshot, QUIET) == []
    again = build(settings, QUIET)
    assert (again.made, again.snapshot.name) == (0, first.snapshot.name)

    clips = {
        clip.info.key: clip
        for shard in first.snapshot.shards.column("shard").to_pylist()
        for clip in iterate_shard(first.snapshot.shard_path(shard))
    }
    assert len(clips) == len(first.snapshot.clips)
    infos = [clip.info for clip in clips.values()]
    assert {info.source for info in infos} == {
        "co3d",
        "dl3dv",
        "dl3dv_video",
        "youtube_vos",
        "video_folder",
    }
    assert all(info.terms for info in infos)

    (posed,) = [info for info in infos if info.video_id == "apple/189_20393_38136"]
    assert posed.frames == 20
    assert posed.cameras is not None
    assert posed.timestamps is not None
    scale = posed.width / posed.source_width
    assert all(
        camera is not None and 0 < camera.cx < posed.width and camera.fx * scale < 5000
        for camera in posed.cameras
    )
    bikes = sorted(
        (info.frame_numbers[0], info.frame_numbers[-1])
        for info in infos
        if info.video_id == "bikes.mp4"
    )
    cuts = (30, 76, 137, 187, 242)
    assert all(not any(start < cut <= end for cut in cuts) for start, end in bikes)
    assert bikes[-1] == (242, 249)
    reasons = Counter(first.snapshot.failures.column("reason").to_pylist())
    assert reasons == {"poses missing": 2, "poses missing for some frames": 1}
    # A sequence of the first release: ten frames of nine sizes.
    (plant,) = [info for info in infos if info.video_id == "plant/374_41993_84073"]
    assert (plant.frames, plant.width, plant.height) == (10, 128, 228)


def test_odd_videos_are_read_right_or_named(shared_data: Path, tmp_path: Path) -> None:
    values = {
        "sources": [{"dataset": "video_folder", "name": "odd", "root": str(shared_data / "odd")}],
        "frames": {"clip_frames": 100, "min_frames": 2, "short_side": 64},
        "tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]},
        "max_failed_videos": 1.0,
        "out": str(tmp_path),
    }
    snapshot = build(check_settings(BuildSettings, values, "test"), QUIET).snapshot
    assert verify_snapshot(snapshot, QUIET) == []
    frames: Counter[str] = Counter()
    for row in snapshot.clips.to_pylist():
        frames[row["video_id"]] += row["frames"]
    readable = {name: count for name, count in ODD.items() if isinstance(count, int) and count > 1}
    # Of 49 frames, those from the 29th on are damaged, up to the end.
    assert frames == {**readable, "corrupted.mp4": 29}
    failures = {row["video_id"]: row for row in snapshot.failures.to_pylist()}
    assert failures.keys() == {*(ODD.keys() - readable.keys()), "corrupted.mp4"}
    assert all(" " in row["detail"] and len(row["detail"]) < 200 for row in failures.values())


def test_bad_images_are_left_out_and_the_clip_goes_on(tmp_path: Path) -> None:
    """Among the images of a sequence: a black, a truncated, a missing, an empty and a text file."""
    folder = tmp_path / "videos" / "walk"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(20):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(buffer, "JPEG")
        (folder / f"{number:05d}.jpg").write_bytes(buffer.getvalue())
    Image.new("RGB", (64, 48)).save(folder / "00003.jpg")
    (folder / "00006.jpg").write_bytes((folder / "00006.jpg").read_bytes()[:900])
    (folder / "00009.jpg").unlink()
    (folder / "00012.jpg").write_bytes(b"")
    (folder / "00015.jpg").write_text("not an image")
    values = {
        "sources": [{"dataset": "video_folder", "root": str(tmp_path / "videos")}],
        "frames": {"clip_frames": 20},
        "tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]},
        "out": str(tmp_path / "out"),
    }
    snapshot = build(check_settings(BuildSettings, values, "test"), QUIET).snapshot
    (clip,) = [
        clip
        for shard in snapshot.shards.column("shard").to_pylist()
        for clip in iterate_shard(snapshot.shard_path(shard))
    ]
    assert clip.info.frame_numbers == tuple(n for n in range(20) if n not in (3, 6, 9, 12, 15))
    reasons = Counter(snapshot.failures.column("reason").to_pylist())
    assert reasons == {"unreadable image": 3, "black image": 1}
    assert all("walk/000" in detail for detail in snapshot.failures.column("detail").to_pylist())
