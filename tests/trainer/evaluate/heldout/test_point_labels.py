"""Viewing angles, epipolar lines and objects of points, against worked-out scenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.clip import ClipInfo
from shards.frame_maps import encode_mask
from tests.helpers.clips import make_clip
from tests.helpers.static_scene import SIZE, camera_of, project
from trainer.evaluate.heldout.point_labels import PointLabels, label_points

CENTRE = (np.array(SIZE) - 1) / 2


def looking_at_the_point(degrees: list[float]) -> ClipInfo:
    """A clip whose cameras stand on a circle of radius 2 around (0, 0, 2), at these angles."""
    cameras = []
    for angle in np.radians(degrees):
        c, s = np.cos(angle), np.sin(angle)
        rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        middle = np.array([0, 0, 2.0])
        cameras.append(camera_of(rotation, middle - rotation @ middle))
    width, height = SIZE
    info = make_clip("made-circle-000000", 0, len(degrees)).info
    return replace(info, width=width, height=height, cameras=tuple(cameras))


def labels_of(
    info: ClipInfo, points: list[list[float]], numbers: list[int], **changes: NDArray[np.float64]
) -> PointLabels:
    """The labels of points of the world, tracked exactly; `shift` is added to their tracks."""
    tracks = project([c for c in info.cameras or () if c], np.array(points))
    tracks = tracks + changes.get("shift", 0.0)
    visibility = np.full(tracks.shape[:2], 255, np.uint8)
    return label_points(info, numbers, tracks.astype(np.float32), visibility, None)


def test_the_viewing_angle_of_a_point_is_between_the_rays_to_it() -> None:
    """The middle of the circle is seen 30 and 90 degrees apart; a point half as far, further."""
    info = looking_at_the_point([0, 30, 60, 90])
    found = labels_of(info, [[0, 0, 2], [0, 0, 1]], [0, 1, 3]).angles
    assert found[:, 0] == pytest.approx([0, 30, 90], abs=0.01)
    # The camera at 90 degrees stands at (-2, 0, 2): one behind (0, 0, 1), and two aside.
    assert found[2, 1] == pytest.approx(90 + np.degrees(np.arctan(0.5)), abs=0.01)
    # Angles count from the anchor, and have no sign.
    assert labels_of(info, [[0, 0, 2]], [2, 0, 3]).angles[:, 0] == pytest.approx(
        [0, 60, 30], abs=0.01
    )


def test_points_that_are_not_where_they_were_have_no_viewing_angle() -> None:
    info = looking_at_the_point([0, 10, 20, 30])
    shift = np.zeros((4, 2, 2))
    shift[2, 0] = (0, 40)  # one frame of the first point; the other stays known
    found = labels_of(info, [[0, 0, 2], [0.1, 0, 2]], [0, 1, 2, 3], shift=shift).angles
    assert np.isnan(found[2, 0])
    assert np.isfinite(found[:, 1]).all()


def test_points_that_only_two_frames_show_are_seen_along_their_rays() -> None:
    info = looking_at_the_point([0, 30, 60])
    points = np.array([[0, 0, 2.0], [0.2, 0.1, 2.0]])
    tracks = project([c for c in info.cameras or () if c], points)
    tracks[2, 1] += (0, 9)  # off its epipolar line
    visibility = np.array([[255, 255], [0, 0], [255, 255]], np.uint8)
    found = label_points(info, [0, 2], tracks.astype(np.float32), visibility, None).angles
    assert found[:, 0] == pytest.approx([0, 60], abs=0.01)
    assert found[0, 1] == 0
    assert np.isnan(found[1, 1])


def test_without_poses_nothing_is_known_and_a_turning_camera_sees_from_one_side() -> None:
    info = looking_at_the_point([0, 10, 20])
    tracks = np.tile(CENTRE.astype(np.float32), (3, 1, 1))
    visible = np.full((3, 1), 255, np.uint8)
    for cameras in (None, (None, *(info.cameras or ())[1:]), (info.cameras or ())[:1] * 3):
        unposed = replace(info, cameras=cameras)
        found = label_points(unposed, [0, 2], tracks, visible, None)
        assert np.isnan(found.angles).all()
        assert np.isnan(found.lines).all()
        assert found.objects is None


def test_right_matches_lie_on_epipolar_lines_and_others_as_far_off_as_they_are() -> None:
    info = looking_at_the_point([0, 20, 40])
    points = [[0.3, 0.2, 1.7], [-0.2, 0.4, 2.5], [0.0, -0.3, 2.0]]
    shown = project([c for c in info.cameras or () if c], np.array(points))
    lines = labels_of(info, points, [0, 1, 2]).lines
    assert np.isnan(lines[0]).all()  # a frame has no lines with itself
    distances = (lines[..., :2] * shown).sum(axis=-1) + lines[..., 2]
    assert distances[1:] == pytest.approx(0, abs=1e-3)
    moved = shown + 5 * lines[..., :2]
    distances = (lines[..., :2] * moved).sum(axis=-1) + lines[..., 2]
    assert distances[1:] == pytest.approx(5, abs=1e-3)


def test_the_mask_of_the_anchor_frame_tells_what_lies_on_an_object() -> None:
    width, height = SIZE
    info = replace(make_clip("made-flat-000000", 0, 2).info, width=width, height=height)
    mask = np.zeros((height, width), np.uint8)
    mask[100:, 200:] = 3
    x_y = [[199.4, 150], [199.6, 150], [250, 99.4], [250, 99.6], [width - 0.5, height - 0.5]]
    positions = np.zeros((2, 5, 2), np.float32)
    positions[1] = x_y  # the anchor is the second frame
    visible = np.full((2, 5), 255, np.uint8)
    found = label_points(info, [1, 0], positions, visible, encode_mask(mask)).objects
    assert found is not None
    assert found.tolist() == [False, True, False, True, True]
