"""Cameras in samples: those of what is shown, after crop, resize and flip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manifests.snapshot import Snapshot
from shards.clip import Camera, read_cameras
from shards.errors import ShardError
from shards.geometry import FrameTransform, shown_cameras
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import SIZE, arc, project, static_scene, stored_scene
from trainer.data.batch import Batch
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips
from trainer.model.camera_rays import from_first_camera, plucker_rays, rays_through

WIDTH, HEIGHT = SIZE
FRAMES = 12


@st.composite
def transforms(draw: st.DrawFn) -> FrameTransform:
    """Draw a box of a frame, another size for it, and a flip."""
    left, top = draw(st.integers(0, WIDTH - 20)), draw(st.integers(0, HEIGHT - 20))
    return FrameTransform(
        left=left,
        top=top,
        width=draw(st.integers(10, WIDTH - left)),
        height=draw(st.integers(10, HEIGHT - top)),
        out_width=draw(st.integers(8, 400)),
        out_height=draw(st.integers(8, 400)),
        flip=draw(st.booleans()),
    )


def tensors(camera: Camera | None) -> tuple[Tensor, Tensor]:
    """Return intrinsics [3, 3] and world to camera [3, 4] in float64."""
    assert camera
    intrinsics = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
    matrix = torch.tensor(camera.world_to_camera, dtype=torch.float64).view(3, 4)
    return torch.tensor(intrinsics, dtype=torch.float64), matrix


@given(st.lists(transforms(), min_size=2, max_size=4), st.floats(0, 90), st.integers(0, 99))
@settings(max_examples=50)
def test_rays_of_what_is_shown_meet_the_point_that_is_shown(
    drawn: list[FrameTransform], turn: float, seed: int
) -> None:
    """For every crop, resize and flip, of all frames or of some, within 1e-9."""
    cameras = arc(len(drawn), turn)
    world = np.random.default_rng(seed).uniform([-1, -1, 3], [1, 1, 5], (20, 3))
    stored = project(cameras, world)
    all_flipped = all(transform.flip for transform in drawn)
    mirror = np.array([-1.0 if all_flipped else 1.0, 1, 1])
    shown = shown_cameras(drawn, cameras)
    for transform, camera, points in zip(drawn, shown, stored, strict=True):
        x = (points[:, 0] - transform.left + 0.5) * transform.out_width / transform.width - 0.5
        y = (points[:, 1] - transform.top + 0.5) * transform.out_height / transform.height - 0.5
        x = transform.out_width - 1 - x if transform.flip else x
        intrinsics, world_to_camera = tensors(camera)
        rays = rays_through(intrinsics, world_to_camera, torch.from_numpy(np.stack([x, y], -1)))
        direction, moment = rays[:, :3].numpy(), rays[:, 3:].numpy()
        met = np.cross(world * mirror, direction)
        np.testing.assert_allclose(met, moment, rtol=0, atol=1e-9 * np.abs(world).max())
        rotation = world_to_camera[:, :3].numpy()
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert (intrinsics[0, 0] < 0) == (transform.flip and not all_flipped)


def test_rays_go_through_the_centres_of_cells() -> None:
    """A frame of 4x4 pixels in 2x2 cells, with the camera at (1, 0, 0) looking along z."""
    intrinsics = torch.tensor([[2.0, 0, 1.5], [0, 2.0, 1.5], [0, 0, 1]], dtype=torch.float64)
    world_to_camera = torch.eye(3, 4, dtype=torch.float64)
    world_to_camera[0, 3] = -1
    rays = plucker_rays(intrinsics, world_to_camera, (2, 2), 4)
    assert rays.shape == (6, 2, 2)
    # The upper right cell has its centre at (2.5, 0.5), so x = (0.5, -0.5, 1).
    direction = torch.tensor([0.5, -0.5, 1], dtype=torch.float64) / 1.5**0.5
    torch.testing.assert_close(rays[:3, 0, 1], direction)
    # (1, 0, 0) x d = (0, -d_z, d_y)
    moment = torch.stack([torch.zeros((), dtype=torch.float64), -direction[2], direction[1]])
    torch.testing.assert_close(rays[3:, 0, 1], moment)


def published(out: Path, **changes: Any) -> Snapshot:
    scene = static_scene(7, frames=FRAMES, anchors=(0, 6), grid=6, turn=30.0, noise=0.0)
    info = replace(scene.info, **changes)
    return publish_clips(out, [stored_scene(replace(scene, info=info), "clip")])


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return published(tmp_path_factory.mktemp("posed") / "out")


def settings_for(snapshot: Snapshot, **changes: Any) -> DataSettings:
    values = {"out": str(snapshot.out), "frames": 3, "step": 4, "size": 96, "cameras": True}
    return DataSettings.model_validate(values | changes)


def largest_gap(item: Batch) -> float:
    """Return how far rays of frame 0 miss those of other frames to the same points, at most.

    Two lines meet if d1 . m2 + d2 . m1 = 0; that over |d1 x d2| is their distance.
    """
    rays = rays_through(
        item["intrinsics"].double(), item["world_to_camera"].double(), item["positions"].double()
    )
    (d1, m1), (d2, m2) = (part.split(3, dim=-1) for part in (rays[:1], rays[1:]))
    apart = ((d1 * m2).sum(-1) + (d2 * m1).sum(-1)).abs()
    return float((apart / torch.linalg.cross(d1.expand_as(d2), d2).norm(dim=-1)).max())


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": 0.0},
        {"flip": 1.0},
        {"flip": 0.5, "crop_per_frame": True},
        {"flip": 1.0, "crop": "squash"},
        {"flip": 1.0, "resize": "device"},
    ],
)
def test_rays_through_a_track_meet_in_one_point(posed: Snapshot, changes: dict[str, Any]) -> None:
    """The scene is 3 to 5 units away, so a hundredth of a pixel is 1e-4 of a unit."""
    dataset = ClipDataset([posed], settings_for(posed, **changes), seed=5)
    for number in range(4):
        item = dataset[number, 0]
        assert item["intrinsics"].shape == (3, 3, 3)
        assert item["world_to_camera"].shape == (3, 3, 4)
        assert bool(item["posed"])
        assert largest_gap(item) < 2e-3
        # With the cameras of other frames they miss each other.
        moved = item["world_to_camera"].roll(1, dims=0)
        assert largest_gap({**item, "world_to_camera": moved}) > 0.02


def test_frames_without_a_usable_camera_make_a_clip_unposed(tmp_path: Path) -> None:
    cameras = arc(FRAMES, 30.0)
    mirrored = replace(cameras[0], world_to_camera=(-1.0, *cameras[0].world_to_camera[1:]))
    for number, kept in enumerate((None, (None, *cameras[1:]), (mirrored, *cameras[1:]))):
        snapshot = published(tmp_path / str(number), cameras=kept)
        item = ClipDataset([snapshot], settings_for(snapshot, anchor="first"), seed=5)[0, 0]
        assert not bool(item["posed"])
        torch.testing.assert_close(item["intrinsics"][0], torch.eye(3))
        torch.testing.assert_close(item["world_to_camera"][0], torch.eye(3, 4))


def test_batches_of_workers_and_streams_have_cameras_and_others_have_none(posed: Snapshot) -> None:
    dataset = ClipDataset([posed], settings_for(posed), seed=5)
    batch = next(iter(Loader(dataset, dataset.sampler(1), workers=1)))
    torch.testing.assert_close(batch["intrinsics"][0], dataset[0, 0]["intrinsics"])
    torch.testing.assert_close(batch["world_to_camera"][0], dataset[0, 0]["world_to_camera"])
    assert batch["posed"].tolist() == [True]
    assert isinstance(posed.out, Path)
    (tar,) = (posed.out / "shards").glob("*.tar")
    streamed = next(iter(StreamedClips(str(tar), settings_for(posed), seed=5, buffer=1)))
    assert bool(streamed["posed"])
    assert largest_gap(streamed) < 2e-3
    plain = ClipDataset([posed], settings_for(posed, cameras=False), seed=5)[0, 0]
    assert {"intrinsics", "world_to_camera", "posed"}.isdisjoint(plain)
    torch.testing.assert_close(plain["frames"], dataset[0, 0]["frames"], rtol=0, atol=0)


def test_the_first_camera_can_be_the_world() -> None:
    cameras = [tensors(camera)[1] for camera in arc(4, 60.0)]
    relative = from_first_camera(torch.stack(cameras)[None])[0]
    torch.testing.assert_close(relative[0], torch.eye(3, 4, dtype=torch.float64))
    point = torch.tensor([0.3, -0.2, 4.0], dtype=torch.float64)
    in_first = cameras[0][:, :3] @ point + cameras[0][:, 3]
    for before, after in zip(cameras, relative, strict=True):
        expected = before[:, :3] @ point + before[:, 3]
        torch.testing.assert_close(after[:, :3] @ in_first + after[:, 3], expected)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"cameras": [null]}', b'{"cameras": [{}, {}, {}]}'])
def test_a_description_without_the_cameras_of_its_frames_is_refused(data: bytes) -> None:
    with pytest.raises(ShardError, match="not a clip description"):
        read_cameras(data, [0, 2])
