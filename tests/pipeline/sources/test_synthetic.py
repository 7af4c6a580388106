"""The synthetic dataset as a source, and built with its true tracks."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.sources import synthetic_scene as scenes
from pipeline.sources.rendering import render_missing
from pipeline.sources.synthetic import Synthetic
from pipeline.sources.synthetic_scene import SceneId, make_scene, render, true_tracks
from pipeline.sources.video import Video
from pipeline.trackers.ground_truth import GroundTruthSettings
from shards.errors import PretrackError
from shards.geometry import FrameTransform, grid_points
from shards.reader import iterate_shard
from tests.helpers.clips import make_clip

QUIET = Progress(quiet=True)


def test_the_source_lists_without_rendering_and_renders_once(tmp_path: Path) -> None:
    root = tmp_path / "frames"
    settings = Synthetic(dataset="synthetic", root=root, videos=2, frames=3, width=48, height=32)
    first = list(settings.find_videos())
    assert not root.exists()
    video = first[1]
    assert isinstance(video, Video)
    assert video.video_id == "v1-seed0-scene0001-3f-48x32"
    assert video.sequence == "synthetic/seed0-scene0001"
    assert video.timestamps == (0.0, 1 / 24, 2 / 24)
    assert video.cameras is not None
    rendered: list[int] = []
    render_missing(
        "synthetic", str(root), video.image_files, on_progress=lambda: rendered.append(1)
    )
    assert len(rendered) == 3
    path = root / video.image_files[2]
    before = path.read_bytes()
    expected = render(make_scene(SceneId.parse(video.video_id)), 2)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), expected)
    stamps = {name: (root / name).stat().st_mtime_ns for name in video.image_files[:2]}
    path.unlink()
    render_missing(
        "synthetic", str(root), video.image_files, on_progress=lambda: rendered.append(1)
    )
    # Progress is also reported for each of the two files that were found whole.
    assert len(rendered) == 3 + 3
    assert path.read_bytes() == before
    assert {name: (root / name).stat().st_mtime_ns for name in stamps} == stamps
    assert list(settings.find_videos()) == first
    assert [folder.name for folder in root.iterdir()] == ["v1-seed0-scene0001-3f-48x32"]


def test_the_source_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PretrackError, match="is not a folder"):
        next(Synthetic(dataset="synthetic", root=tmp_path / "file").find_videos())

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    scenes._texture.cache_clear()
    with pytest.raises(PretrackError, match=r"pip install 'pretrack\[synthetic\]'"):
        next(Synthetic(dataset="synthetic", root=tmp_path / "frames").find_videos())
    assert not (tmp_path / "frames").exists()


def test_only_synthetic_clips_have_true_tracks() -> None:
    clip = make_clip()
    tracker = GroundTruthSettings(tracker="truth").load()
    with pytest.raises(
        PretrackError,
        match="of the dataset video_folder, and only clips of scenes and synthetic ones have",
    ):
        tracker.track(
            [np.zeros((6, 64, 96, 3), np.uint8)], [clip.info], [0], grid_points(2, 96, 64)
        )


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_a_build_with_true_tracks(tmp_path: Path) -> None:
    """Here clips start in the middle of a video, skip frames, and are stored smaller."""
    values: dict[str, Any] = {
        "sources": [
            {
                "dataset": "synthetic",
                "root": str(tmp_path / "frames"),
                "videos": 2,
                "width": 128,
                "height": 96,
            }
        ],
        "frames": {"clip_frames": 6, "stride": 2, "min_frames": 5, "short_side": 48},
        "tracks": {"tracker": "truth", "grid": 6, "anchors": [0, 4]},
        "out": str(tmp_path / "out"),
    }
    snapshot = build(check_settings(BuildSettings, values, "test"), QUIET).snapshot
    assert verify_snapshot(snapshot, QUIET) == []
    # The surfaces swing, so tracks and cameras disagree; but rendered cameras are exact.
    assert snapshot.failures.to_pylist() == []
    clips = [
        clip
        for shard in snapshot.shards.column("shard").to_pylist()
        for clip in iterate_shard(snapshot.shard_path(shard))
    ]
    assert len(clips) == 4
    view = FrameTransform.whole(128, 96, 64, 48)
    for clip in clips:
        info, tracks = clip.info, clip.tracks
        scene = make_scene(SceneId.parse(info.video_id))
        numbers = list(info.frame_numbers)
        assert (info.width, info.height, numbers[1] - numbers[0]) == (64, 48, 2)
        assert info.cameras is not None
        for camera, number in zip(info.cameras, numbers, strict=True):
            assert camera is not None
            expected = view.camera(scene.cameras[number])
            assert (camera.fx, camera.fy, camera.cx, camera.cy) == (
                expected.fx,
                expected.fy,
                expected.cx,
                expected.cy,
            )
            assert camera.world_to_camera == pytest.approx(expected.world_to_camera, abs=1e-6)
        queries = FrameTransform.whole(64, 48, 128, 96).points(grid_points(6, 64, 48))
        for row, anchor in enumerate((0, 4)):
            positions, seen = true_tracks(scene, numbers[anchor], queries)
            # Far outside the frame, stored positions are clipped.
            near = np.abs(tracks.positions[row]).max(axis=-1) < 60
            error = np.abs(
                tracks.positions[row] - view.points(positions.astype(np.float32))[numbers]
            )
            assert error[near].max() < 1 / 60
            assert near.mean() > 0.8
            assert (tracks.visibility[row] == 255 * seen[numbers]).all()
        assert (tracks.confidence == 255).all()
