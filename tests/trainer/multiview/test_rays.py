"""Rays say where each camera looks, whatever world its pose is given in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from shards.clip import Camera
from shards.geometry import FrameTransform, shown_cameras
from tests.helpers.static_scene import SIZE, arc, project
from trainer.model.camera_rays import from_first_camera, plucker_rays
from trainer.multiview.multiview_model import cameras_from_view_0, ray_map

VIEWS, SIDE = 4, 24


def shown(transforms: list[FrameTransform] | None = None) -> tuple[Tensor, Tensor]:
    """Return the cameras of a set, float64 [1, M, 3, 3] and [1, M, 3, 4], as frames show them."""
    whole = FrameTransform.whole(*SIZE, SIDE, SIDE)
    cameras = shown_cameras(transforms or [whole] * VIEWS, arc(VIEWS, 60.0))
    return stacked([camera for camera in cameras if camera])


def stacked(cameras: list[Camera]) -> tuple[Tensor, Tensor]:
    intrinsics = [[[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]] for c in cameras]
    poses = [np.reshape(c.world_to_camera, (3, 4)) for c in cameras]
    return torch.tensor([intrinsics], dtype=torch.float64), torch.from_numpy(np.array([poses]))


def turned(degrees: float) -> Tensor:
    """Return a rotation about an axis between x, y and z."""
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / 3**0.5
    return torch.linalg.matrix_exp(axis * np.radians(degrees))


def in_world(poses: Tensor, rotation: Tensor, shift: Tensor, scale: float) -> Tensor:
    """Return the same cameras in a world that is turned, moved and scaled."""
    axes = poses[..., :3] @ rotation.T
    return torch.cat([axes, scale * poses[..., 3:] - axes @ shift[:, None]], dim=-1)


def rays(cameras: tuple[Tensor, Tensor], scale: str = "largest_distance") -> Tensor:
    return ray_map(*cameras, (SIDE, SIDE), scale)


@pytest.mark.parametrize("scale", ["largest_distance", "first_view"])
def test_the_worlds_axes_origin_and_unit_do_not_matter(scale: str) -> None:
    intrinsics, poses = shown()
    moved = in_world(poses, turned(70), torch.tensor([3.0, -2, 9]).double(), 1.0)
    expected = rays((intrinsics, poses), scale)
    assert (rays((intrinsics, moved), scale) - expected).abs().max() < 1e-12
    scaled = in_world(poses, torch.eye(3).double(), torch.zeros(3).double(), 250.0)
    assert (rays((intrinsics, scaled), scale) - expected).abs().max() < 1e-12
    # Another view 0 is another map: views 1.. may change places, and view 0 may not.
    order = torch.tensor([0, 3, 1, 2])
    swapped = rays((intrinsics[:, order], poses[:, order]), scale)
    assert torch.equal(swapped, expected[:, order])
    order = torch.tensor([1, 0, 2, 3])
    swapped = rays((intrinsics[:, order], poses[:, order]), scale)
    assert (swapped - expected[:, order]).abs().max() > 0.1


def test_rays_through_a_point_have_it_on_them_in_every_view() -> None:
    """X x d = m, for crops of other sizes and shapes too, within 1e-12."""
    point = np.array([[0.3, -0.2, 4.1]])
    transforms = [
        FrameTransform.whole(*SIZE, SIDE, SIDE),
        FrameTransform(40, 30, 200, 180, SIDE, SIDE),
        FrameTransform(100, 60, 150, 190, SIDE, SIDE),
        FrameTransform(0, 0, 320, 200, SIDE, SIDE),
    ]
    intrinsics, poses = shown(transforms)
    pixels = project(arc(VIEWS, 60.0), point)[:, 0]
    to_view_0, positions = cameras_from_view_0(poses, "largest_distance")
    unit = (positions[0, :, None] - positions[0, None]).norm(dim=-1).max()
    assert unit == pytest.approx(1, abs=1e-12)
    # X in view 0's axes and in the set's unit.
    in_0 = poses[0, 0, :, :3] @ torch.from_numpy(point[0]) + poses[0, 0, :, 3]
    centres = -(poses[0, :, :, :3].mT @ poses[0, :, :, 3:])[..., 0]
    in_0 = in_0 / torch.cdist(centres, centres).max()
    for view, (transform, pixel) in enumerate(zip(transforms, pixels, strict=True)):
        x, y = transform.points(pixel.astype(np.float32)).astype(np.float64)
        exact = (pixel + 0.5 - [transform.left, transform.top]) * [
            transform.out_width / transform.width,
            transform.out_height / transform.height,
        ] - 0.5
        np.testing.assert_allclose([x, y], exact, atol=1e-4)
        # A camera whose pixel (0, 0) is where the point is shown.
        at_zero = intrinsics.clone()
        at_zero[0, :, :2, 2] -= torch.from_numpy(exact)
        ray = ray_map(at_zero, poses, (1, 1), "largest_distance")[0, view, :, 0, 0]
        assert (torch.linalg.cross(in_0, ray[:3]) - ray[3:]).abs().max() < 1e-12
    assert torch.equal(to_view_0[0, 0].round(decimals=12), torch.eye(3).double())


def test_the_map_is_that_of_plain_rays_in_the_first_cameras_world() -> None:
    intrinsics, poses = shown()
    plain = plucker_rays(intrinsics, from_first_camera(poses), (SIDE, SIDE), SIDE)
    ours = rays((intrinsics, poses))
    unit = cameras_from_view_0(poses, "largest_distance")[1][0, 3].norm()
    apart = (
        poses[0, 3, :, :3].T @ poses[0, 3, :, 3] - poses[0, 0, :, :3].T @ poses[0, 0, :, 3]
    ).norm()
    torch.testing.assert_close(ours[:, :, :3], plain[:, :, :3])
    torch.testing.assert_close(ours[:, :, 3:], plain[:, :, 3:] * unit / apart)


def test_a_mirrored_set_has_mirrored_rays() -> None:
    """Of mirrored frames in a mirrored world: columns in reverse, and d_x, m_y and m_z negated."""
    whole = FrameTransform.whole(*SIZE, SIDE, SIDE)
    expected = rays(shown()).flip(-1)
    expected[:, :, [0, 4, 5]] *= -1
    mirrored = shown([whole.flipped()] * VIEWS)
    assert (rays(mirrored) - expected).abs().max() < 1e-12
    assert torch.linalg.det(mirrored[1][0, :, :, :3]).tolist() == pytest.approx([1] * VIEWS)


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_cameras_in_one_place_have_no_moments(far: float) -> None:
    """Also if rounding moves them a little apart: float32, a thousand units from the origin."""
    intrinsics, poses = shown()
    poses = poses.clone()
    poses[..., 3:] = -poses[..., :3] @ torch.tensor([far, 2.0, -far]).double()[:, None]
    found = rays((intrinsics.float(), poses.float()))
    assert found[:, :, 3:].abs().max() == 0
    torch.testing.assert_close(found[:, :, :3].norm(dim=2), torch.ones(1, VIEWS, SIDE, SIDE))


def test_the_published_unit_is_half_the_first_cameras_distance_from_the_centre() -> None:
    """Cameras at x = 0, 1, 2 and 3: the centre is 1.5 from the first, so positions are x / 0.75."""
    cameras = [
        replace(camera, world_to_camera=(1.0, 0, 0, -x, 0, 1, 0, 0, 0, 0, 1, 0))
        for x, camera in enumerate(arc(4, 0.0))
    ]
    _, positions = cameras_from_view_0(stacked(cameras)[1], "first_view")
    torch.testing.assert_close(positions[0, :, 0], torch.arange(4).double() / 0.75)
    _, positions = cameras_from_view_0(stacked(cameras)[1], "largest_distance")
    torch.testing.assert_close(positions[0, :, 0], torch.arange(4).double() / 3)
