"""A point drawn into a frame lands where its transform says, to half a pixel's convention."""

from __future__ import annotations

from dataclasses import replace

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
    stored_transform,
)


def blob(width: int, height: int, x: float, y: float) -> np.ndarray:
    """Draw a frame with a soft white spot centred at (x, y)."""
    ys, xs = np.mgrid[:height, :width]
    spot = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 4.0**2))
    return np.repeat(spot[..., None], 3, axis=2).round().astype(np.uint8)


def centre(frame: np.ndarray) -> tuple[float, float]:
    """Compute the spot's centre of mass, in pixels."""
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
    transform = FrameTransform(left, top, 160 - 2 * left, 140 - 2 * top, *out, flip)
    spot = centre(transform.frame(blob(160, 140, x, y)))
    point = transform.points(np.array([[x, y]], np.float32))[0]
    assert abs(spot[0] - point[0]) < 0.5
    assert abs(spot[1] - point[1]) < 0.5


def test_borders_stay_borders() -> None:
    corners = np.array([[-0.5, -0.5], [159.5, 119.5]], np.float32)
    assert np.allclose(
        FrameTransform.whole(160, 120, 224, 56).points(corners), [[-0.5, -0.5], [223.5, 55.5]]
    )
    assert np.allclose(
        FrameTransform.whole(160, 120, 224, 56).flipped().points(corners),
        [[223.5, -0.5], [-0.5, 55.5]],
    )


@pytest.mark.parametrize(("flip", "x"), [(False, [-0.5, 0.5, 199.5]), (True, [199.5, 198.5, -0.5])])
def test_crop_resize_and_flip_keep_pixel_centres(flip: bool, x: list[float]) -> None:
    """A 100x50 box at (10, 20) becomes 200x25: x' = (x - 10 + 0.5) * 2 - 0.5, likewise y by 1/2."""
    transform = FrameTransform(10, 20, 100, 50, 200, 25, flip)
    points = np.array([[9.5, 19.5], [10, 20], [109.5, 69.5]], np.float32)
    expected = np.stack([x, [-0.5, -0.25, 24.5]], axis=-1)
    assert transform.points(points).tolist() == expected.tolist()


def test_a_camera_follows_crop_and_resize() -> None:
    camera = Camera(500.0, 400.0, 60.0, 45.0, tuple(map(float, range(12))))
    expected = replace(camera, fx=1000.0, fy=200.0, cx=100.5, cy=12.25)
    assert FrameTransform(10, 20, 100, 50, 200, 25).camera(camera) == expected


@pytest.mark.parametrize(
    ("left", "width", "out_width", "reduction"),
    [
        (0, 64, 8, 8),
        (0, 64, 9, 4),
        (0, 64, 16, 4),
        (0, 64, 17, 2),
        (0, 64, 32, 2),
        (0, 64, 33, 1),
        (4, 64, 8, 4),
        (2, 64, 8, 2),
        (1, 64, 8, 1),
        (0, 62, 8, 2),
    ],
)
def test_frames_are_decoded_smaller_only_where_the_box_still_shrinks_and_fits_whole_pixels(
    left: int, width: int, out_width: int, reduction: int
) -> None:
    assert FrameTransform(left, 0, width, 64, out_width, 8).reduction == reduction
    assert FrameTransform(0, left, 64, width, 8, out_width).reduction == reduction


def test_a_reduced_transform_maps_a_smaller_frame_to_the_same_pixels() -> None:
    transform = FrameTransform(8, 16, 64, 32, 16, 8)
    assert transform.reduced(4) == FrameTransform(2, 4, 16, 8, 16, 8)
    points = np.array([[8, 16], [30.25, 20.5]], np.float32)
    smaller = ((points + 0.5) / 4 - 0.5).astype(np.float32)
    np.testing.assert_allclose(
        transform.reduced(4).points(smaller), transform.points(points), atol=1e-6
    )
    with pytest.raises(
        ValueError, match="does not lie on whole pixels of a frame 16 times smaller"
    ):
        transform.reduced(16)


def test_frames_shrink_by_averaging_and_are_cropped_and_flipped_exactly() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[..., 0] = np.arange(24).reshape(4, 6) * 4
    crop = FrameTransform(1, 1, 4, 2, 4, 2)
    assert crop.frame(frame)[..., 0].tolist() == [[28, 32, 36, 40], [52, 56, 60, 64]]
    assert crop.flipped().frame(frame)[..., 0].tolist() == [[40, 36, 32, 28], [64, 60, 56, 52]]
    half = FrameTransform(1, 1, 4, 2, 2, 1)
    assert half.frame(frame)[..., 0].tolist() == [[42, 50]]


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_a_shrunk_pixel_is_the_mean_of_all_pixels_under_it(shape: tuple[int, int]) -> None:
    """Interpolation between the middle two, which are 120, would leave the outer two out."""
    frame = np.repeat(np.array([0, 120, 120, 40], np.uint8)[:, None], 3, axis=1)
    height, width = shape
    shrunk = FrameTransform.whole(width, height, 1, 1).frame(frame.reshape(height, width, 3))
    assert shrunk.tolist() == [[[70, 70, 70]]]


@pytest.mark.parametrize("out_width", [2, 4, 8])
def test_a_frame_enlarged_along_a_side_is_bilinear(out_width: int) -> None:
    """Rows of 0 and 200 become four, whose centres lie at -0.25, 0.25, 0.75 and 1.25."""
    frame = np.zeros((2, 4, 3), np.uint8)
    frame[1] = 200
    enlarged = FrameTransform.whole(4, 2, out_width, 4).frame(frame)
    assert enlarged.shape == (4, out_width, 3)
    assert (enlarged == np.array([0, 50, 150, 200])[:, None, None]).all()


@pytest.mark.parametrize(
    ("width", "height", "out_width", "out_height"),
    [
        (96, 54, 32, 18),  # by a whole number
        (97, 61, 40, 25),
        (97, 61, 97, 25),  # along one side
        (40, 30, 55, 64),
        (40, 64, 55, 30),  # higher and narrower
        (7, 5, 1, 1),
    ],
)
def test_the_matrices_of_a_resize_do_what_it_does(
    width: int, height: int, out_width: int, out_height: int
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    transform = FrameTransform.whole(width, height, out_width, out_height)
    rows, columns = transform.resize_weights()
    assert rows.shape == (out_height, height)
    assert columns.shape == (out_width, width)
    multiplied = np.einsum("yh,hwc,xw->yxc", rows, frame.astype(np.float32), columns)
    assert np.abs(np.rint(multiplied) - transform.frame(frame)).max() <= 1


def test_a_reduced_transform_takes_the_same_box_of_a_smaller_frame() -> None:
    transform = FrameTransform(2, 2, 4, 2, 2, 1)
    frame = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    averaged = FrameTransform.whole(8, 6, 4, 3).frame(frame)
    assert (transform.reduced(2).frame(averaged) == transform.frame(frame)).all()


def test_points_of_all_anchors_and_frames_are_mapped_at_once() -> None:
    points = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    mapped = FrameTransform.whole(10, 10, 20, 10).points(points)
    assert mapped.shape == points.shape
    assert mapped.dtype == np.float32
    assert mapped[1, 2, 1].tolist() == [44.5, 23.0]  # of (22, 23)


def test_a_stored_frame_is_shrunk_or_resized_to_a_given_size() -> None:
    assert stored_transform(1280, 720, 256) == FrameTransform(0, 0, 1280, 720, 455, 256)
    assert stored_transform(1280, 720, 256, (64, 48)) == FrameTransform(0, 0, 1280, 720, 64, 48)


def test_inside_counts_the_half_pixel_border() -> None:
    first = np.array([[-0.5, 0], [-0.51, 0], [0, -0.5], [0, -0.51]], np.float32)
    assert inside(first, 10, 5).tolist() == [True, False, True, False]
    last = np.array([[9.5, 4.5], [9.51, 4.5], [5, 4.6]], np.float32)
    assert inside(last, 10, 5).tolist() == [True, False, False]


def test_a_camera_projects_a_point_to_the_same_pixel_after_a_transform() -> None:
    camera = Camera(500.0, 510.0, 300.0, 200.0, (1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0))
    transform = FrameTransform(40, 20, 400, 300, 224, 200)
    point = np.array([0.1, -0.2, 2.0])
    pixel = np.array(
        [[camera.fx * point[0] / 2 + camera.cx, camera.fy * point[1] / 2 + camera.cy]], np.float32
    )
    mapped = transform.camera(camera)
    assert np.allclose(
        transform.points(pixel)[0],
        [mapped.fx * point[0] / 2 + mapped.cx, mapped.fy * point[1] / 2 + mapped.cy],
        atol=1e-3,
    )
    with pytest.raises(ValueError, match=r"^a mirrored view has no pinhole camera$"):
        transform.flipped().camera(camera)


def test_stored_size_shrinks_and_never_enlarges() -> None:
    assert stored_size(1280, 720, 256) == (455, 256)
    assert stored_size(1066, 1896, 256) == (256, 455)
    assert stored_size(1000, 720, 256) == (356, 256), "355.6 is rounded up"
    assert stored_size(300, 256, 256) == (300, 256)
    assert stored_size(176, 144, 256) == (176, 144)


def test_grid_is_cotrackers() -> None:
    points = grid_points(16, 512, 384)
    assert points.shape == (256, 2)
    assert points[0].tolist() == [8, 8]
    assert points[15].tolist() == [504, 8]
    assert points[-1].tolist() == [504, 376]
    assert points.dtype == np.float32
    assert grid_points(1, 512, 384).tolist() == [[256, 192]]
    assert grid_points(2, 512, 384).tolist() == [[8, 8], [504, 8], [8, 376], [504, 376]]
    small = grid_points(16, 224, 224)
    assert np.allclose(small[0], [3.49, 4.66], atol=0.01)
    assert np.allclose(small[-1], [219.95, 218.92], atol=0.01)


def test_sampling_coordinates() -> None:
    assert normalised(-0.5, 10) == pytest.approx(-1)
    assert normalised(9.5, 10) == pytest.approx(1)
    assert normalised_corners(0, 10) == -1
    assert normalised_corners(9, 10) == 1
    assert normalised(2, 10) == pytest.approx(-0.5)
    assert normalised_corners(2, 9) == pytest.approx(-0.5)


def test_a_grid_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least 1 point per side, not 0"):
        grid_points(0, 512, 384)


def test_values_that_must_not_be_mixed_are_taken_at_the_centres_of_pixels() -> None:
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    # Pixels of the result cover 2 x 3 of the box from (2, 0) on; their centres are in rows 1 and 4.
    transform = FrameTransform(2, 0, 6, 6, 3, 2)
    expected = [[11, 13, 15], [35, 37, 39]]
    assert transform.nearest(values).tolist() == expected
    assert transform.flipped().nearest(values).tolist() == [row[::-1] for row in expected]
    enlarged = FrameTransform.whole(8, 6, 16, 12).nearest(values)
    assert enlarged[::2, ::2].tolist() == enlarged[1::2, 1::2].tolist() == values.tolist()


def test_depth_on_an_edge_is_unknown_and_a_slope_is_none() -> None:
    depth = np.full((9, 9), 2.0, np.float32)
    depth[:, 4:] = 3.0  # an edge within the second of three pixels
    depth[7, 7] = 0  # no depth at the centre of the last
    third = FrameTransform.whole(9, 9, 3, 3)
    assert third.depth(depth).tolist() == [[2, 0, 3], [2, 0, 3], [2, 0, 0]]
    assert third.flipped().depth(depth).tolist() == [[3, 0, 2], [3, 0, 2], [0, 0, 2]]
    # At its own size a frame keeps its depth, edges included.
    assert FrameTransform.whole(9, 9, 9, 9).depth(depth).tolist() == depth.tolist()
    # Unknown neighbours are no edge, and steps of up to 5 % are none.
    depth[:, 4:] = 2.09
    depth[:, 5] = 0
    assert third.depth(depth)[0].tolist() == pytest.approx([2, 2.09, 2.09])
    depth[:, 4:] = 2.11
    assert third.depth(depth)[0].tolist() == pytest.approx([2, 0, 2.11])


def test_a_box_outside_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit a frame of 20x10"):
        FrameTransform(15, 0, 10, 10, 10, 10).frame(np.zeros((10, 20, 3), np.uint8))
