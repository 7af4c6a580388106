"""A point drawn into a frame lands where the view says it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.clip import Camera
from shards.geometry import (
    FrameTransform,
    grid_points,
    inside,
    normalised,
    normalised_corners,
    stored_size,
)


def blob(width: int, height: int, x: float, y: float) -> np.ndarray:
    """A frame with a soft white spot centred at (x, y)."""
    ys, xs = np.mgrid[:height, :width]
    spot = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 4.0**2))
    return np.repeat(spot[..., None], 3, axis=2).round().astype(np.uint8)


def centre(frame: np.ndarray) -> tuple[float, float]:
    """The spot's centre of mass, in pixels."""
    weight = frame[..., 0].astype(float)
    ys, xs = np.mgrid[: frame.shape[0], : frame.shape[1]]
    return float((xs * weight).sum() / weight.sum()), float((ys * weight).sum() / weight.sum())


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(60, 100),
    y=st.floats(60, 80),
    left=st.integers(0, 25),
    top=st.integers(0, 25),
    out=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    flip=st.booleans(),
)
def test_points_follow_pixels(
    x: float, y: float, left: int, top: int, out: tuple[int, int], flip: bool
) -> None:
    view = FrameTransform(left, top, 160 - 2 * left, 140 - 2 * top, *out, flip)
    seen = centre(view.frame(blob(160, 140, x, y)))
    told = view.points(np.array([[x, y]], np.float32))[0]
    assert abs(seen[0] - told[0]) < 0.5
    assert abs(seen[1] - told[1]) < 0.5


def test_borders_stay_borders() -> None:
    corners = np.array([[-0.5, -0.5], [159.5, 119.5]], np.float32)
    assert np.allclose(
        FrameTransform.whole(160, 120, 224, 56).points(corners), [[-0.5, -0.5], [223.5, 55.5]]
    )
    assert np.allclose(
        FrameTransform.whole(160, 120, 224, 56).flipped().points(corners),
        [[223.5, -0.5], [-0.5, 55.5]],
    )


def test_inside_counts_the_half_pixel_border() -> None:
    points = np.array([[-0.5, 0], [-0.51, 0], [9.5, 4.5], [9.51, 4.5], [5, 4.6]], np.float32)
    assert inside(points, 10, 5).tolist() == [True, False, True, False, False]


def test_a_camera_sees_the_same_through_a_view() -> None:
    camera = Camera(500.0, 510.0, 300.0, 200.0, (1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0))
    view = FrameTransform(40, 20, 400, 300, 224, 200)
    point = np.array([0.1, -0.2, 2.0])
    pixel = np.array(
        [[camera.fx * point[0] / 2 + camera.cx, camera.fy * point[1] / 2 + camera.cy]], np.float32
    )
    seen = view.camera(camera)
    assert np.allclose(
        view.points(pixel)[0],
        [seen.fx * point[0] / 2 + seen.cx, seen.fy * point[1] / 2 + seen.cy],
        atol=1e-3,
    )
    with pytest.raises(ValueError, match="mirrored"):
        view.flipped().camera(camera)


def test_stored_size_shrinks_and_never_enlarges() -> None:
    assert stored_size(1280, 720, 256) == (455, 256)
    assert stored_size(1066, 1896, 256) == (256, 455)
    assert stored_size(176, 144, 256) == (176, 144)


def test_grid_is_cotrackers() -> None:
    points = grid_points(16, 512, 384)
    assert points.shape == (256, 2)
    assert points[0].tolist() == [8, 8]
    assert points[15].tolist() == [504, 8]
    assert points[-1].tolist() == [504, 376]
    assert grid_points(1, 512, 384).tolist() == [[256, 192]]
    small = grid_points(16, 224, 224)
    assert np.allclose(small[0], [3.49, 4.66], atol=0.01)
    assert np.allclose(small[-1], [219.95, 218.92], atol=0.01)


def test_sampling_coordinates() -> None:
    assert normalised(-0.5, 10) == pytest.approx(-1)
    assert normalised(9.5, 10) == pytest.approx(1)
    assert normalised_corners(0, 10) == -1
    assert normalised_corners(9, 10) == 1


def test_a_box_outside_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a frame of 20x10"):
        FrameTransform(15, 0, 10, 10, 10, 10).frame(np.zeros((10, 20, 3), np.uint8))
