"""TAPVid-3D's arrays, against worked-out values and the geometry of a rendered scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.inspection.export import export_clip
from shards.clip import Camera, Tracks
from shards.errors import PretrackError
from shards.frame_maps import FrameMaps, encode_depth
from shards.stored_clip import StoredClip
from tests.helpers.clips import HEIGHT, WIDTH, make_clip
from tests.helpers.published import publish_clips
from tests.helpers.scene_clip import ANCHORS, FRAMES, SceneClip, scene_clip

Floats = NDArray[np.float64]

TRUTH = '{"tracker":"truth"}'


def export(
    folder: Path, clip: StoredClip, tracks_settings: str = "{}", **options: int
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Publish a clip and export it; return the arrays and the notes."""
    snapshot = publish_clips(folder / "out", [clip], tracks_settings=tracks_settings)
    exported = export_clip(snapshot, clip.info.key, "tapvid3d", folder / "clip.npz", **options)
    with np.load(exported.file, allow_pickle=False) as arrays:
        return dict(arrays), exported.notes


def plane_clip(*, depth: float = 2.0) -> StoredClip:
    """Make a clip of 3 frames of a wall 2 units before a camera that moves 0.5 to the right."""
    clip = make_clip(frames=3, points=4)
    cameras = tuple(
        Camera(80.0, 40.0, 47.5, 31.5, (1, 0, 0, -0.5 * t, 0, 1, 0, 0, 0, 0, 1, 0))
        for t in range(3)
    )
    starts = np.array([(55.5, 31.5), (47.5, 51.5), (87.5, 11.5), (67.5, 31.5)], np.float32)
    shifts = np.array([(-20 * t, 0) for t in range(3)], np.float32)
    tracks = Tracks(
        np.array([0], np.int32),
        (starts + shifts[:, None])[None],
        np.full((1, 3, 4), 255, np.uint8),
        np.full((1, 3, 4), 255, np.uint8),
    )
    maps = FrameMaps((encode_depth(np.full((HEIGHT, WIDTH), depth, np.float32), 1 / 1024),) * 3)
    return StoredClip(
        replace(clip.info, cameras=cameras, depth_scale=1 / 1024), tracks, clip.jpegs, maps
    )


def test_arrays_of_a_wall_have_the_worked_out_values(tmp_path: Path) -> None:
    clip = plane_clip()
    clip.tracks.visibility[0, 1, 2] = 100
    arrays, notes = export(tmp_path, clip)
    assert {name: (a.dtype.kind, a.shape) for name, a in arrays.items()} == {
        "images_jpeg_bytes": ("S", (3,)),
        "queries_xyt": ("f", (4, 3)),
        "tracks_XYZ": ("f", (3, 4, 3)),
        "visibility": ("b", (3, 4)),
        "fx_fy_cx_cy": ("f", (4,)),
        "extrinsics_w2c": ("f", (3, 4, 4)),
    }
    assert arrays["images_jpeg_bytes"].tolist() == list(clip.jpegs)
    assert arrays["fx_fy_cx_cy"].tolist() == [80, 40, 48, 32]
    assert arrays["queries_xyt"].tolist() == [[56, 32, 0], [48, 52, 0], [88, 12, 0], [68, 32, 0]]
    # 8 pixels to the right of the centre, at depth 2 and focal length 80: 0.2; then 0.5 less.
    xyz = arrays["tracks_XYZ"]
    np.testing.assert_allclose(xyz[:, 0], [(0.2, 0, 2), (-0.3, 0, 2), (-0.8, 0, 2)], atol=1e-6)
    np.testing.assert_allclose(xyz[0, 1:], [(0, 1, 2), (1, -1, 2), (0.5, 0, 2)], atol=1e-6)
    assert np.isnan(xyz[1, 2]).all()
    assert np.isfinite(np.delete(xyz.reshape(12, 3), 4 + 2, axis=0)).all()
    assert np.argwhere(~arrays["visibility"]).tolist() == [[1, 2]]
    assert arrays["extrinsics_w2c"][2].tolist() == [
        [1, 0, 0, -1],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert notes == ("3 frames, 4 tracks",)


def test_points_without_a_depth_are_counted(tmp_path: Path) -> None:
    """One lacks it at its query, another in frame 2, where its surface ends."""
    clip = plane_clip()
    first, last = (np.full((HEIGHT, WIDTH), 2, np.float32) for _ in range(2))
    first[29:35, 65:71] = 0  # the last point's query is at (67.5, 31.5)
    last[:, 47:48] = 0  # the third point is at (47.5, 11.5) in frame 2
    maps = FrameMaps(
        (encode_depth(first, 1 / 1024), clip.maps.depths[1], encode_depth(last, 1 / 1024))
    )
    arrays, notes = export(tmp_path, StoredClip(clip.info, clip.tracks, clip.jpegs, maps))
    assert notes == (
        "3 frames, 3 tracks",
        "left out: 1 track without a depth at its query",
        "written as not visible: 1 point without a depth",
    )
    assert arrays["queries_xyt"][:, 0].tolist() == [56, 48, 88]
    assert np.argwhere(~arrays["visibility"]).tolist() == [[2, 2]]
    assert np.argwhere(np.isnan(arrays["tracks_XYZ"][..., 2])).tolist() == [[2, 2]]


@pytest.fixture(scope="module")
def made() -> SceneClip:
    return scene_clip("moving")


def by_frame(values: NDArray[Any]) -> NDArray[Any]:
    """[A, T, N, ...] to [T, A * N, ...]."""
    return np.concatenate(list(values), axis=1)


def test_stored_depth_gives_the_places_of_what_is_seen(made: SceneClip, tmp_path: Path) -> None:
    arrays, notes = export(tmp_path, made.clip)
    visible, xyz = arrays["visibility"], arrays["tracks_XYZ"]
    true_visible = by_frame(made.clip.tracks.visibility > 127)
    starts = by_frame(made.clip.tracks.positions)
    queries = {tuple(query) for query in arrays["queries_xyt"].tolist()}
    anchors = np.repeat(ANCHORS, 64)
    kept = [
        n
        for n, anchor in enumerate(anchors.tolist())
        if (*(starts[anchor, n] + 0.5).tolist(), anchor) in queries
    ]
    # Tracks at the edges of objects have no depth at their query.
    assert 90 < len(kept) == len(arrays["queries_xyt"]) < 128
    assert notes[0] == f"8 frames, {len(kept)} tracks"
    assert notes[1] == f"left out: {128 - len(kept)} tracks without a depth at its query"
    assert not (visible & ~true_visible[:, kept]).any()
    assert visible.sum() > 0.9 * true_visible[:, kept].sum()
    assert (np.isnan(xyz).any(axis=-1) == ~visible).all()
    truth = by_frame(made.in_cameras())[:, kept]
    errors = np.linalg.norm(xyz - truth, axis=-1)[visible]
    assert np.median(errors) < 0.002
    assert np.quantile(errors, 0.99) < 0.05
    fx, fy, cx, cy = arrays["fx_fy_cx_cy"]
    pixels = xyz[visible][:, :2] / xyz[visible][:, 2:] * (fx, fy) + (cx, cy)
    # Positions are stored to 1/64 px.
    np.testing.assert_allclose(pixels, starts[:, kept][visible] + 0.5, rtol=0, atol=0.016)


def test_exact_tracks_of_a_scene_have_exact_places_also_where_hidden(
    made: SceneClip, tmp_path: Path
) -> None:
    info = replace(made.clip.info, depth_scale=None)
    arrays, notes = export(tmp_path, StoredClip(info, made.clip.tracks, made.clip.jpegs), TRUTH)
    assert notes == ("8 frames, 128 tracks",)
    assert (arrays["visibility"] == by_frame(made.clip.tracks.visibility > 127)).all()
    assert 0.05 < (~arrays["visibility"]).mean() < 0.5
    errors = np.linalg.norm(arrays["tracks_XYZ"] - by_frame(made.in_cameras()), axis=-1)
    assert errors.max() < 1e-5
    # The room stands still: by the extrinsics, its points stay where they are in the world.
    matrices = np.linalg.inv(arrays["extrinsics_w2c"])
    world = np.einsum("tij,tnj->tni", matrices[:, :3, :3], arrays["tracks_XYZ"])
    world += matrices[:, None, :3, 3]
    moves = np.ptp(by_frame(made.places), axis=0).max(axis=-1)
    still = moves < 1e-9
    assert 20 < still.sum() < 120
    assert np.ptp(world[:, still], axis=0).max() < 1e-4
    assert np.ptp(world[:, ~still], axis=0).max() > 0.01


def test_one_anchor_is_exported_alone(made: SceneClip, tmp_path: Path) -> None:
    arrays, _ = export(tmp_path, made.clip, TRUTH, anchor=1)
    assert arrays["queries_xyt"].shape == (64, 3)
    assert set(arrays["queries_xyt"][:, 2]) == {5.0}
    assert arrays["tracks_XYZ"].shape == (FRAMES, 64, 3)


def with_cameras(clip: StoredClip, *cameras: Camera | None) -> StoredClip:
    return StoredClip(replace(clip.info, cameras=cameras), clip.tracks, clip.jpegs, clip.maps)


@pytest.mark.parametrize("fault", ["depth", "camera", "zoom"])
def test_what_a_clip_lacks_is_one_sentence(fault: str, tmp_path: Path) -> None:
    clip = plane_clip()
    first, *others = clip.info.cameras or ()
    assert first
    zoomed = replace(first, fx=first.fx * (1 + 0.6 / WIDTH))
    clip, says = {
        "depth": (
            StoredClip(replace(clip.info, depth_scale=None), clip.tracks, clip.jpegs),
            r"has no depth maps, which TAPVid-3D's tracks need: .* frames\.depth: true",
        ),
        "camera": (with_cameras(clip, first, None, first), "has 1 frame without a usable camera"),
        "zoom": (with_cameras(clip, zoomed, *others), "the intrinsics of the clip .* change"),
    }[fault]
    snapshot = publish_clips(tmp_path / "out", [clip])
    with pytest.raises(PretrackError, match=says):
        export_clip(snapshot, "made", "tapvid3d", tmp_path / "clip.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
