"""uCO3D from end to end: the annotated frames of a video file, their cameras, depth and masks."""

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
from pipeline.planning.catalog import make_catalog
from shards import jpeg
from shards.reader import iterate_shard
from shards.stored_clip import StoredClip
from tests.helpers.panning import STEP, panning_frames
from tests.helpers.uco3d_files import (
    ANNOTATED,
    DISTANCE,
    FOLDER,
    FRAMES,
    HEIGHT,
    RATE,
    WIDTH,
    write_depths,
    write_masks,
    write_uco3d,
)

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.slow


def settings_for(root: Path, **frames: Any) -> BuildSettings:
    values = {
        "sources": [{"dataset": "uco3d", "root": str(root / "uco3d")}],
        "frames": {"clip_frames": 6, "min_frames": 2, "short_side": 120}
        | {"depth": True, "masks": True, **frames},
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
    # The depth map of one frame is missing, and the masks end before the last frame.
    write_depths(root / "uco3d" / FOLDER / "depth_maps.h5", missing=(3,))
    write_masks(root / "uco3d" / FOLDER / "mask_video.mkv", frames=17)
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


def test_depth_maps_and_masks_are_those_of_each_frame(built: Path) -> None:
    number = 0
    for clip in clips_of(open_snapshot(str(built / "out"))):
        depths, masks = clip.depth(), clip.masks()
        assert depths is not None
        assert masks is not None
        assert depths.shape == masks.shape == (6, HEIGHT, WIDTH)
        for index, depth, mask in zip(clip.info.frame_numbers, depths, masks, strict=True):
            # The map has half the frame's resolution, and the column of metadata.sqlite says 1.5.
            expected = 0.0 if number == 3 else 1.5 * (1 + number / 4)
            assert depth[10, [0, 79]] == pytest.approx([expected] * 2, rel=2e-3)
            assert depth[10, [80, 159]] == pytest.approx([10 * expected] * 2, rel=2e-3)
            inside = np.flatnonzero(mask[50] == 255).tolist()
            first = 20 + 4 * index
            assert inside == ([] if index == 18 else list(range(first, first + 20)))
            number += 1


def test_the_build_is_clean_repeatable_and_says_its_terms(built: Path) -> None:
    snapshot = open_snapshot(str(built / "out"))
    assert verify_snapshot(snapshot, QUIET) == []
    assert {row["dataset"] for row in snapshot.clips.to_pylist()} == {"uco3d"}
    assert {clip.info.terms[:23] for clip in clips_of(snapshot)} == {"uCO3D: CC BY 4.0; attri"}
    details = {row["reason"]: row["detail"] for row in snapshot.failures.to_pylist()}
    assert sorted(details) == ["depth unknown", "mask unknown", "missing videos"]
    assert details["depth unknown"].endswith(
        f"frame 5 ({FOLDER}/depth_maps.h5!4: it has no dataset '4')"
    )
    assert details["mask unknown"].endswith(
        f"frame 18 ({FOLDER}/mask_video.mkv!0.72: the video ends at 0.64 s, before 0.72 s)"
    )
    again = build(settings_for(built), QUIET)
    assert (again.made, again.kept) == (0, 1)
    # New masks make the clips new; without masks they are not looked at.
    identities = [make_catalog(settings_for(built, masks=asked), QUIET) for asked in (True, False)]
    write_masks(built / "uco3d" / FOLDER / "mask_video.mkv")
    for asked, before in zip((True, False), identities, strict=True):
        after = make_catalog(settings_for(built, masks=asked), QUIET)
        same = after.videos["identity"].to_pylist() == before.videos["identity"].to_pylist()
        assert same is not asked
