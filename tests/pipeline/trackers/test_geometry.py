"""Tracks from depth and cameras: exact on static scenes, and honest where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.trackers.geometry import GeometrySettings
from shards.clip import Tracks
from shards.errors import PretrackError, SettingsError
from shards.geometry import grid_points
from tests.helpers.co3d_files import SEQUENCE, write_co3d
from tests.helpers.pictures import write_images
from tests.helpers.static_planes import StaticPlanes, static_planes

ANCHORS = (0, 24)
QUERIES = grid_points(16, 320, 240)


def track(scene: StaticPlanes, depths: NDArray[np.float32] | None = None, **options: Any) -> Tracks:
    tracker = GeometrySettings(tracker="geometry", **options).load()
    given = scene.depths if depths is None else depths
    (tracks,) = tracker.track_depth([given], [scene.info], ANCHORS, QUERIES)
    return tracks


def track_points(
    scene: StaticPlanes, depths: NDArray[np.float32], queries: list[list[float]]
) -> Tracks:
    tracker = GeometrySettings(tracker="geometry").load()
    points = np.array(queries, np.float32)
    (tracks,) = tracker.track_depth([depths], [scene.info], (0,), points)
    return tracks


@pytest.fixture(scope="module", params=[10.0, 90.0], ids=["10 degrees", "90 degrees"])
def scene(request: pytest.FixtureRequest) -> StaticPlanes:
    return static_planes(seed=0, frames=48, turn=request.param)


def test_tracks_are_exact_and_so_is_what_is_hidden(scene: StaticPlanes) -> None:
    tracks = track(scene)
    truth = [scene.true_tracks(anchor, QUERIES) for anchor in ANCHORS]
    positions = np.stack([positions for positions, _ in truth])
    visible = np.stack([visible for _, visible in truth])
    error = np.linalg.norm(tracks.positions - positions, axis=-1)
    called_visible = tracks.visibility >= 128
    assert np.median(error[visible]) <= 1e-4
    assert np.percentile(error[visible & called_visible], 99) <= 0.01
    assert (called_visible == visible).mean() >= 0.99
    # Points whose surface is doubtful, next to an edge, have at most half of the confidence. What
    # is left are surfaces that cross, within 1 % of each other's depth.
    assert error[called_visible & visible & (tracks.confidence > 128)].max() <= 0.5


def test_points_on_an_edge_of_the_anchor_frame_have_half_the_confidence() -> None:
    scene = static_planes(seed=0, frames=2, turn=1.0)
    depths = np.full_like(scene.depths, 4.0)
    depths[:, :, 160:] = 3.0
    tracks = track_points(scene, depths, [[159.4, 100.0], [157.0, 100.0]])
    assert tracks.confidence[0, 1, 0] <= 128 < tracks.confidence[0, 1, 1]


def test_a_point_behind_something_is_hidden_and_one_in_front_of_what_is_seen_is_not_believed() -> (
    None
):
    scene = static_planes(seed=0, frames=3, turn=0.0)
    cameras = (scene.info.cameras or ())[:1] * 3
    scene = replace(scene, info=replace(scene.info, cameras=cameras))
    depths = np.full_like(scene.depths, 4.0)
    depths[1], depths[2] = 3.0, 5.0
    tracks = track_points(scene, depths, [[100.0, 100.0]])
    assert tracks.positions[0, :, 0].tolist() == [[100.0, 100.0]] * 3
    assert (tracks.visibility[0, 1:, 0] < 10).all()
    # Depth 3 hides the point, so that its position stays possible; depth 5 contradicts it.
    assert tracks.confidence[0, :, 0].tolist() == [255, 128, 3]
    # At the tolerance of 2 %, it is as likely visible as not.
    depths[1] = 4.0 / 1.02
    assert track_points(scene, depths, [[100.0, 100.0]]).visibility[0, 1, 0] in (127, 128)


@pytest.mark.parametrize(("shift", "visibility"), [(1.0, 129), (2.0, 52)])
def test_what_is_seen_must_lie_at_the_query_when_it_is_projected_back(
    shift: float, visibility: int
) -> None:
    """Two cameras beside each other, with a focal length of 320 pixels, before a plane.

    Its depth is 4 in the first frame and 4.05 in the second, which is within the tolerance of 2 %.
    Projected back, a point is 320 * shift * (1/4 - 1/4.05) pixels off: 0.988 or 1.975.
    """
    scene = static_planes(seed=0, frames=2, turn=0.0)
    matrices = ((1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0), (1.0, 0, 0, shift, 0, 1, 0, 0, 0, 0, 1, 0))
    (first, _) = scene.info.cameras or ()
    assert first
    assert first.fx == 320.0
    cameras = tuple(replace(first, world_to_camera=matrix) for matrix in matrices)
    scene = replace(scene, info=replace(scene.info, cameras=cameras))
    depths = np.full_like(scene.depths, 4.0)
    depths[1] = 4.05
    tracks = track_points(scene, depths, [[100.0, 50.0]])
    assert tracks.positions[0, 1, 0].tolist() == [100.0 + 80 * shift, 50.0]
    assert tracks.visibility[0, 1, 0] == visibility


def test_unknown_depths_and_missing_cameras_give_no_visible_points() -> None:
    scene = static_planes(seed=0, frames=48, turn=10.0)
    cameras = list(scene.info.cameras or ())
    cameras[5] = None
    depths = scene.depths.copy()
    depths[0, :, :160] = 0
    scene = replace(scene, info=replace(scene.info, cameras=tuple(cameras)))
    tracks = track(scene, depths)
    left = QUERIES[:, 0] < 155
    others = np.arange(1, 48)
    assert not tracks.visibility[0, others][:, left].any()
    assert not tracks.visibility[:, 5].any()
    assert not tracks.confidence[:, 5].any()
    assert (tracks.positions[0, others][:, left] == QUERIES[left]).all()
    assert (tracks.positions[:, 5] == QUERIES).all()
    assert (tracks.visibility[0, 0] == 255).all()
    assert np.isfinite(tracks.positions).all()


def test_frames_before_the_anchor_are_left_out_when_asked() -> None:
    scene = static_planes(seed=0, frames=48, turn=10.0)
    tracks = track(scene, directions="forward")
    assert not tracks.visibility[1, :24].any()
    assert tracks.visibility[1, 25].any()


def test_clips_without_depth_or_cameras_are_refused_in_a_sentence() -> None:
    scene = static_planes(seed=0, frames=2, turn=10.0)
    without = {
        "has no depth maps: only sources that have them": replace(scene.info, depth_scale=None),
        "has no two usable cameras": replace(scene.info, cameras=None),
    }
    for sentence, info in without.items():
        with pytest.raises(PretrackError, match=sentence):
            track_points(replace(scene, info=info), scene.depths, [[1.0, 1.0]])


def test_sources_and_videos_without_depth_are_refused_before_anything_is_decoded(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "videos" / "a", 0, 10)
    values: dict[str, Any] = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(tmp_path / "videos")}],
        "frames": {"clip_frames": 8, "depth": True},
        "tracks": {"tracker": "geometry", "anchors": [0]},
        "out": str(tmp_path / "out"),
    }
    with pytest.raises(PretrackError, match="none of the 1 video of source pans has depth maps"):
        make_catalog(check_settings(BuildSettings, values, "test"), Progress(quiet=True))
    with pytest.raises(SettingsError, match="geometry needs depth maps: set frames"):
        check_settings(BuildSettings, {**values, "frames": {"clip_frames": 8}}, "test")
    # Of a source in which only one of two sequences has depth, the other is left out and named.
    root = tmp_path / "co3d"
    write_co3d(root)
    write_images(root / "apple/1_2_3/images", 0, 10)
    values["sources"] = [{"dataset": "co3d", "root": str(root)}]
    catalog = make_catalog(check_settings(BuildSettings, values, "test"), Progress(quiet=True))
    assert catalog.videos["video_id"].to_pylist() == [f"apple/{SEQUENCE}"]
    rows = catalog.failures.to_pylist()
    details = [row["detail"] for row in rows if row["reason"] == "no depth"]
    assert details == [
        "tracks.tracker geometry needs depth maps and cameras, and it has no depth maps: choose "
        "another tracker for its source"
    ]
