"""Scores of tracks on static scenes with known cameras and planted faults, and on real frames."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.sources.cameras import viewpoint_camera
from pipeline.trackers.lucas_kanade import LucasKanadeSettings, LucasKanadeTracker
from shards.clip import Camera, ClipInfo, Tracks
from shards.geometry import FrameTransform, grid_points
from shards.track_scores import ScoredClip, score_clip
from tests.helpers.clips import make_clip
from tests.helpers.static_scene import (
    FAULTS,
    SIZE,
    StaticScene,
    area_under_curve,
    camera_of,
    moved_world,
    project,
    static_scene,
    with_confidence,
    with_drift,
    with_positions,
    with_wrong_poses,
)


def sideways_scene(frames: int = 3, step: float = 0.5) -> StaticScene:
    """Make the point (0, 0, 4), 300 px of focal length, before cameras that move to the right.

    A step of 0.5 moves it 37.5 px to the left.
    """
    cameras = [camera_of(np.eye(3), np.array([-step * t, 0.0, 0.0])) for t in range(frames)]
    width, height = SIZE
    info = replace(
        make_clip(frames=frames).info, width=width, height=height, cameras=tuple(cameras)
    )
    truth = project(cameras, np.array([[0.0, 0.0, 4.0]]))[None]
    seen = np.full((1, frames, 1), 255, np.uint8)
    tracks = Tracks(np.array([0], np.int32), truth.astype(np.float32), seen, seen)
    return StaticScene(info, truth, tracks)


def score(scene: StaticScene) -> ScoredClip:
    return score_clip(scene.tracks, scene.info)


def test_scores_have_the_values_that_geometry_gives() -> None:
    scene = sideways_scene()
    exact = score(scene)
    assert exact.tracks.epipolar[0, 0] == pytest.approx(0, abs=1e-4)
    assert exact.tracks.reprojection[0, 0] == pytest.approx(0, abs=1e-4)
    # From 1 to the side, a point at distance 4 is seen under atan(1 / 4).
    assert exact.tracks.parallax[0, 0] == pytest.approx(14.036, abs=1e-3)
    assert exact.clip.baseline == pytest.approx(1 / 4, abs=1e-4)
    assert exact.clip.turn == pytest.approx(0, abs=1e-4)

    # Epipolar lines are rows: 3 px below its row a point is 3 / sqrt(2) off, since half of the
    # error may be the query's.
    off = scene.truth + np.array([0, 3.0]) * (np.arange(3) == 2)[None, :, None, None]
    assert score(with_positions(scene, off)).tracks.epipolar[0, 0] == pytest.approx(
        3 / np.sqrt(2), abs=1e-3
    )
    # Along the line only triangulation sees it. A point of the world gives columns on a straight
    # line over time; the line through deviations of 0, 0 and -3 leaves 0.5, 1 and 0.5.
    off = scene.truth - np.array([3.0, 0]) * (np.arange(3) == 2)[None, :, None, None]
    scored = score(with_positions(scene, off))
    assert scored.tracks.epipolar[0, 0] == pytest.approx(0, abs=1e-4)
    assert scored.tracks.reprojection[0, 0] == pytest.approx(np.sqrt(1.5 / 3), abs=2e-3)


def test_hidden_points_do_not_count() -> None:
    scene = with_positions(static_scene(), static_scene().truth)
    positions = scene.tracks.positions.copy()
    positions[:, 20:30, ::4] += 40
    visibility = scene.tracks.visibility.copy()
    visibility[:, 20:30, ::4] = 127
    tracks = replace(scene.tracks, positions=positions, visibility=visibility)
    assert np.nanmax(score_clip(tracks, scene.info).tracks.epipolar) < 0.01
    visibility[:, 20:30, ::4] = 128
    seen = score_clip(replace(tracks, visibility=visibility), scene.info).tracks
    assert np.nanmin(seen.epipolar[:, ::4]) > 5
    assert np.nanmax(seen.epipolar[:, 1::4]) < 0.01


@pytest.mark.parametrize("turn", [8.0, 40.0])
@pytest.mark.parametrize("fault", FAULTS)
def test_scores_find_the_tracks_that_are_off(fault: str, turn: float) -> None:
    scene = with_confidence(FAULTS[fault](static_scene(turn=turn)))
    scores = score(scene).tracks
    off = (scene.errors > 2).ravel()
    both = np.fmax(scores.epipolar, scores.reprojection).ravel()
    known = ~np.isnan(both)
    assert known.mean() > 0.6
    assert 0.1 < off.mean() < 0.4
    found = area_under_curve(both[known], off[known])
    by_confidence = area_under_curve(
        -scene.tracks.confidence.min(axis=1).ravel()[known].astype(float), off[known]
    )
    assert found >= 0.95
    # It knows something, and much less.
    assert 0.5 < by_confidence <= found - 0.1


def test_frames_with_wrong_poses_are_named_and_left_out() -> None:
    right, wrong = static_scene(seed=4), with_wrong_poses(static_scene(seed=4), (5, 16, 30))
    scored = score(wrong)
    assert scored.wrong == (5, 16, 30)
    assert score(right).wrong == ()
    # The tracks of the wrong frame's own anchor have no score; the others lose only these frames.
    assert np.isnan(scored.tracks.epipolar[1]).all()
    assert np.nanmedian(scored.tracks.epipolar) == pytest.approx(
        np.nanmedian(score(right).tracks.epipolar), rel=0.1
    )


def test_drift_of_all_tracks_is_not_taken_for_wrong_poses() -> None:
    assert score(with_drift(static_scene(), part=0.4)).wrong == ()


@given(
    seed=st.integers(0, 50),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    shift=st.tuples(*[st.floats(-50, 50)] * 3),
    scale=st.floats(1e-3, 1e3),
)
@settings(max_examples=25)
def test_a_rigid_motion_and_scale_of_the_world_change_no_score(
    seed: int, angles: tuple[float, ...], shift: tuple[float, ...], scale: float
) -> None:
    scene = with_drift(static_scene(seed, frames=12, anchors=(0, 6), grid=6))
    rotation = cv2.Rodrigues(np.array(angles))[0]
    moved = moved_world(scene.info, rotation, np.array(shift), scale)
    before, after = score(scene), score_clip(scene.tracks, moved)
    for old, new in zip(before.tracks.planes, after.tracks.planes, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-3)
    assert vars(after.clip) == {
        name: pytest.approx(value, rel=1e-3) for name, value in vars(before.clip).items()
    }
    assert after.wrong == before.wrong


def replaced(info: ClipInfo, change: Callable[[int, Camera], Camera | None]) -> ClipInfo:
    """Change every camera of a clip."""
    cameras = tuple(change(t, camera) for t, camera in enumerate(info.cameras or ()) if camera)
    return replace(info, cameras=cameras)


def with_matrix(camera: Camera, matrix: NDArray[np.float64]) -> Camera:
    return replace(camera, world_to_camera=tuple(matrix.ravel().tolist()))


def matrix_of(camera: Camera) -> NDArray[np.float64]:
    return np.array(camera.world_to_camera).reshape(3, 4)


NO_POSES: dict[str, Callable[[int, Camera], Camera | None]] = {
    "none": lambda t, camera: None,
    "not finite": lambda t, camera: replace(camera, fx=np.nan),
    "infinite": lambda t, camera: with_matrix(
        camera, matrix_of(camera) + np.array([0, 0, 0, np.inf])
    ),
    "singular": lambda t, camera: with_matrix(camera, matrix_of(camera) * 0),
    "mirrored": lambda t, camera: with_matrix(camera, matrix_of(camera) * [[-1], [1], [1]]),
    "all equal": lambda t, camera: camera_of(np.eye(3), np.array([0.1, 0.2, 0.3])),
    "one alone": lambda t, camera: camera if t == 3 else None,
}


@pytest.mark.parametrize("kind", NO_POSES)
def test_without_usable_poses_a_clip_is_unposed_and_its_scores_are_null(kind: str) -> None:
    scene = static_scene()
    info = replaced(scene.info, NO_POSES[kind])
    scored = score_clip(scene.tracks, info)
    clip = scored.clip
    assert not clip.posed
    assert (clip.turn, clip.baseline, clip.epipolar_px, clip.epipolar_inliers) == (None,) * 4
    assert clip.reprojection_px is None
    assert np.isnan([scored.tracks.epipolar, scored.tracks.reprojection]).all()
    broken = kind in ("not finite", "infinite", "singular", "mirrored")
    assert len(scored.unusable) == (48 if broken else 0)


def test_a_camera_that_only_turns_is_posed_and_has_no_epipolar_lines() -> None:
    scene = static_scene()
    turning = [
        camera_of(cv2.Rodrigues(np.array([0, 0.01 * t, 0]))[0], np.zeros(3)) for t in range(48)
    ]
    clip = score_clip(scene.tracks, replace(scene.info, cameras=tuple(turning))).clip
    assert clip.posed
    assert clip.turn == pytest.approx(np.degrees(0.47), abs=1e-3)
    assert clip.epipolar_px is None
    assert clip.baseline is None


def test_another_scale_in_a_frame_is_named_and_in_all_frames_is_seen() -> None:
    scene = static_scene(noise=0.0)
    rng = np.random.default_rng(0)

    def one(t: int, camera: Camera) -> Camera:
        return with_matrix(camera, matrix_of(camera) * [1, 1, 1, 3 if t == 40 else 1])

    def every(_: int, camera: Camera) -> Camera:
        return with_matrix(camera, matrix_of(camera) * [1, 1, 1, rng.uniform(0.5, 2)])

    assert score_clip(scene.tracks, replaced(scene.info, one)).wrong == (40,)
    right, wrong = score(scene).clip, score_clip(scene.tracks, replaced(scene.info, every)).clip
    assert right.reprojection_px == pytest.approx(0, abs=1e-3)
    assert wrong.reprojection_px is not None
    assert wrong.reprojection_px > 5


@pytest.mark.slow
def test_tracks_of_real_frames_fit_the_right_poses_ten_times_better(shared_data: Path) -> None:
    root = shared_data / "co3d_v2"
    with gzip.open(root / "apple" / "frame_annotations.jgz", "rt") as file:
        rows = [row for row in json.load(file) if row["sequence_name"] == "189_20393_38136"]
    frames, cameras = [], []
    for row in sorted(rows, key=lambda row: row["frame_number"]):
        image = cv2.imread(str(root / row["image"]["path"]))
        assert image is not None
        height, width = image.shape[:2]
        transform = FrameTransform.whole(width, height, 256, round(256 * height / width))
        camera = viewpoint_camera(row["viewpoint"], width, height)
        assert camera
        frames.append(transform.frame(image[..., ::-1]))
        cameras.append(transform.camera(camera))
    stored = np.stack(frames)
    height, width = stored.shape[1:3]
    info = replace(
        make_clip(frames=len(frames)).info, width=width, height=height, cameras=tuple(cameras)
    )
    tracker = LucasKanadeTracker(LucasKanadeSettings(anchors=(0, 5, 10)))
    (tracks,) = tracker.track([stored], [info], (0, 5, 10), grid_points(16, width, height))
    right = score_clip(tracks, info).clip
    wrong = score_clip(tracks, replace(info, cameras=tuple(cameras[7:] + cameras[:7]))).clip
    assert right.epipolar_px is not None
    assert wrong.epipolar_px is not None
    assert right.epipolar_px < 0.6
    assert wrong.epipolar_px > 10 * right.epipolar_px
    assert right.epipolar_inliers is not None
    assert wrong.epipolar_inliers is not None
    assert right.epipolar_inliers > 0.8 > 0.4 > wrong.epipolar_inliers


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, -1e300, np.nan, np.inf, 1e9, 0.5, 300.0])


@pytest.mark.filterwarnings("error")
@given(
    numbers=st.lists(st.tuples(st.integers(0, 15), NUMBERS), min_size=12, max_size=12),
    far=st.booleans(),
)
@settings(max_examples=150)
def test_damaged_numbers_give_scores_or_none_and_no_warning(
    numbers: list[tuple[int, float]], far: bool
) -> None:
    """Two numbers of each camera are replaced; positions may be millions of pixels away."""
    scene = static_scene(frames=6, anchors=(0, 3), grid=3)

    def damaged(t: int, camera: Camera) -> Camera:
        values = [camera.fx, camera.fy, camera.cx, camera.cy, *camera.world_to_camera]
        for index, number in numbers[2 * t : 2 * t + 2]:
            values[index] = number
        fx, fy, cx, cy, *matrix = values
        return Camera(fx, fy, cx, cy, tuple(matrix))

    positions = scene.tracks.positions * np.float32(1e5 if far else 1)
    tracks = replace(scene.tracks, positions=positions)
    scored = score_clip(tracks, replaced(scene.info, damaged))
    assert all(value is None or np.isfinite(value) for value in vars(scored.clip).values())
    assert all((plane[~np.isnan(plane)] >= 0).all() for plane in scored.tracks.planes)
