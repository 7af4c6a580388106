"""uCO3D from end to end: the annotated frames of a video file, with their cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.settings import check_settings
from manifests.snapshot import Snapshot, open_snapshot
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from shards import jpeg
from shards.reader import iterate_shard
from shards.stored_clip import StoredClip
from tests.helpers.panning import STEP, panning_frames
from tests.helpers.uco3d_files import ANNOTATED, DISTANCE, FRAMES, HEIGHT, RATE, WIDTH, write_uco3d

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.slow


def settings_for(root: Path, **frames: Any) -> BuildSettings:
    values = {
        "sources": [{"dataset": "uco3d", "root": str(root / "uco3d")}],
        "frames": {"clip_frames": 6, "min_frames": 2, "short_side": 120, **frames},
        "tracks": {"tracker": "lucas_kanade", "grid": 6, "anchors": [0]},
        "split": {"eval_fraction": 0.0},
        "out": str(root / "out"),
    }
    return check_settings(BuildSettings, values, "test")


def clips_of(snapshot: Snapshot) -> list[StoredClip]:
    (shard,) = snapshot.shards["shard"].to_pylist()
    return sorted(iterate_shard(snapshot.shard_path(shard)), key=lambda clip: clip.info.key)


@pytest.fixture(scope="module")
def built(two_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uco3d")
    write_uco3d(root / "uco3d")
    build(settings_for(root), QUIET)
    return root


def test_clips_hold_the_annotated_frames_with_their_numbers_and_times(built: Path) -> None:
    clips = clips_of(open_snapshot(str(built / "out")))
    assert [clip.info.frame_numbers for clip in clips] == [ANNOTATED[:6], ANNOTATED[6:]]
    assert clips[1].info.timestamps == pytest.approx([index / RATE for index in ANNOTATED[6:]])
    pictures = panning_frames(7, FRAMES, WIDTH, HEIGHT)
    for clip in clips:
        for index, data in zip(clip.info.frame_numbers, clip.jpegs, strict=True):
            stored = jpeg.decode(data).astype(float)
            errors = [np.abs(stored - pictures[other]).mean() for other in range(FRAMES)]
            assert int(np.argmin(errors)) == index


def test_each_frame_has_its_own_camera_and_tracks_agree_with_them(built: Path) -> None:
    snapshot = open_snapshot(str(built / "out"))
    for clip in clips_of(snapshot):
        cameras = clip.info.cameras
        assert cameras is not None
        for index, camera in zip(clip.info.frame_numbers, cameras, strict=True):
            assert camera is not None
            # PyTorch3D's x and y point the other way.
            sideways, down, ahead = np.reshape(camera.world_to_camera, (3, 4))[:, 3]
            assert sideways == pytest.approx(index * STEP[0] * DISTANCE / 150, abs=1e-6)
            assert down == pytest.approx(index * STEP[1] * DISTANCE / 150, abs=1e-6)
            assert ahead == pytest.approx(DISTANCE)
            assert (camera.fx, camera.cx, camera.cy) == pytest.approx((150, 64.5, 67))
    # The content moves exactly as the cameras say; Lucas-Kanade's error is a fraction of a pixel.
    for row in snapshot.clips.to_pylist():
        assert row["posed"] is True
        assert row["epipolar_px"] < 0.3
        assert row["reprojection_px"] < 0.3
        assert row["viewpoint_quality"] == 0.75


def test_the_build_is_clean_repeatable_and_says_its_terms(built: Path) -> None:
    snapshot = open_snapshot(str(built / "out"))
    assert verify_snapshot(snapshot, QUIET) == []
    assert {row["dataset"] for row in snapshot.clips.to_pylist()} == {"uco3d"}
    assert {clip.info.terms[:23] for clip in clips_of(snapshot)} == {"uCO3D: CC BY 4.0; attri"}
    assert [row["reason"] for row in snapshot.failures.to_pylist()] == ["missing videos"]
    again = build(settings_for(built), QUIET)
    assert (again.made, again.kept) == (0, 1)
