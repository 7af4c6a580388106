"""Geometry: what is drawn at a point is found where the track says, whatever the view; and colours change when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shards import jpeg
from shards.errors import ShardError
from shards.geometry import FrameTransform
from trainer.config import ColourSettings, DataSettings
from trainer.data.augment import change_colours, choose_transforms, decode_and_transform
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": "x", "frames": 3, **changes})


def show(
    views: list[FrameTransform], images: list[bytes], size: tuple[int, int], reduce: bool
) -> NDArray[np.uint8]:
    into = np.empty((len(views), 3, views[0].out_height, views[0].out_width), np.uint8)
    return decode_and_transform(images, views, size=size, reduce=reduce, into=into)


def dot(width: int, height: int, x: float, y: float, sigma: float) -> bytes:
    """A frame with a white dot on black, as a JPEG."""
    rows, columns = np.mgrid[:height, :width]
    value = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return jpeg.encode(np.repeat(value.round().astype(np.uint8)[..., None], 3, axis=2), 98)


def centre_of(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(x, y) of the middle of what is bright in a frame [3, H, W]."""
    weight = np.clip(frame[1].astype(np.float64) - 30, 0, None)
    rows, columns = np.mgrid[: frame.shape[1], : frame.shape[2]]
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


@examples(max_examples=300)
@given(
    width=st.integers(64, 420),
    height=st.integers(64, 420),
    size=st.integers(24, 64),
    crop=st.sampled_from(["random", "centre", "native", "squash"]),
    scale=st.floats(0.2, 1),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    per_frame=st.booleans(),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 10_000),
)
def test_a_dot_is_where_its_track_says(
    width: int,
    height: int,
    size: int,
    crop: str,
    scale: float,
    flip: float,
    per_frame: bool,
    place: tuple[float, float],
    seed: int,
) -> None:
    s = settings(size=size, crop=crop, crop_scale=scale, flip=flip, crop_per_frame=per_frame)
    views = choose_transforms(width, height, s, np.random.default_rng(seed))
    sigma = max(
        1.5,
        *(2 * view.width / view.out_width for view in views),
        *(2 * view.height / view.out_height for view in views),
    )
    # Somewhere in the first view, so far from all borders that the dot is whole.
    box, margin = views[0], 3 * sigma
    assume(box.width > 2 * margin + 1 and box.height > 2 * margin + 1)
    x = box.left + margin + place[0] * (box.width - 1 - 2 * margin)
    y = box.top + margin + place[1] * (box.height - 1 - 2 * margin)
    shown = show(views, [dot(width, height, x, y, sigma)] * 3, (width, height), s.reduced_decoding)
    for view, frame in zip(views, shown, strict=True):
        left, top = x - view.left, y - view.top
        if min(left, top, view.width - 1 - left, view.height - 1 - top) < margin:
            continue
        event(f"decoded 1/{view.reduction}, {crop}")
        expected = view.points(np.array([x, y], np.float32))
        assert np.abs(centre_of(frame) - expected).max() < 0.5


def test_a_frame_is_decoded_smaller_where_its_view_is_much_smaller() -> None:
    random = np.random.default_rng(3)
    reductions = {
        choose_transforms(640, 360, settings(size=size), random)[0].reduction
        for size in (200, 100, 50, 25)
        for _ in range(30)
    }
    assert reductions == {1, 2, 4, 8}
    assert {
        choose_transforms(640, 360, settings(size=25, reduced_decoding=False), random)[0].reduction
        for _ in range(30)
    } != {8}


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("width", "height"), [(256, 192), (251, 187)])
def test_reduced_decoding_shows_the_same_picture(factor: int, width: int, height: int) -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    picture = FrameTransform.whole(8, 6, width, height).frame(coarse)
    image = jpeg.encode(picture, 95)
    view = FrameTransform(factor * 2, factor, 160, 128, 160 // factor - 3, 128 // factor - 2)
    whole, reduced = (
        show([view], [image], (width, height), reduce)[0].astype(int) for reduce in (False, True)
    )
    assert view.reduction == factor
    assert np.abs(whole - reduced).mean() < 2
    assert (
        np.abs(whole[..., 1:] - reduced[..., :-1]).mean() > 2 * np.abs(whole - reduced).mean()
    )  # a pixel aside it is another


def test_views_of_a_moment_differ_and_their_points_correspond(build: Path) -> None:
    s = DataSettings.model_validate(
        {
            "out": build,
            "size": 64,
            "step": 0,
            "crop_per_frame": True,
            "flip": 0.5,
            "anchor": "first",
        }
    )
    dataset = ClipDataset(open_snapshots(s), s, seed=1)
    sample = dataset[0, 0]
    stored = dataset.clips[0]
    assert not torch.equal(sample["frames"][0], sample["frames"][1])
    assert not torch.equal(sample["positions"][0], sample["positions"][1])
    views = choose_views_of(s, stored.width, stored.height)
    grids = [
        unmapped(view, positions)
        for view, positions in zip(views, sample["positions"].numpy(), strict=True)
    ]
    for grid in grids[1:]:
        np.testing.assert_allclose(grid, grids[0], atol=1e-3)


def choose_views_of(s: DataSettings, width: int, height: int) -> list[FrameTransform]:
    """The views of sample (0, 0) of seed 1: the anchor was drawn before them."""
    random = np.random.default_rng([1, 0, 0])
    random.integers(2)  # forward or backward
    return choose_transforms(width, height, s, random)


def unmapped(view: FrameTransform, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of a view in the frame's pixels again."""
    x = view.out_width - 1 - points[:, 0] if view.flip else points[:, 0]
    scale = np.array([view.width / view.out_width, view.height / view.out_height], np.float32)
    corner = np.array([view.left, view.top], np.float32)
    return ((np.stack([x, points[:, 1]], axis=-1) + 0.5) * scale - 0.5 + corner).astype(np.float32)


def test_frames_are_resized_as_published() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    image = jpeg.encode(picture, 90)
    shown = show([FrameTransform.whole(121, 90, 56, 56)], [image], (121, 90), False)[0].astype(int)
    published = np.asarray(
        Image.fromarray(jpeg.decode(image)).resize((56, 56), Image.Resampling.BILINEAR)
    ).transpose(2, 0, 1)
    assert np.abs(shown - published).max() <= 1


def test_native_pixels_are_not_touched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    image = jpeg.encode(picture, 90)
    s = settings(size=64, crop="native", flip=0.0)
    shown = show(
        choose_transforms(121, 90, s, np.random.default_rng(0)), [image] * 3, (121, 90), True
    )
    np.testing.assert_array_equal(shown[0], jpeg.decode(image)[13:77, 28:92].transpose(2, 0, 1))


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ShardError, match="an image has 40x30 pixels and should have 41x30"):
        show([FrameTransform.whole(41, 30, 20, 20)], [dot(40, 30, 20, 15, 3)], (41, 30), False)


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8)
    ).repeat(3, 1, 1, 1)


@pytest.mark.parametrize("chance", ["jitter", "grey", "blur"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_colours_change_for_the_clip_or_for_each_frame(
    frames: torch.Tensor, chance: str, per_frame: bool
) -> None:
    colour = ColourSettings.model_validate({chance: 1.0, "per_frame": per_frame})
    changed = change_colours(frames, colour, np.random.default_rng(1))
    assert changed.shape == frames.shape
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, frames)
    alike = torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    assert alike == (not per_frame or chance == "grey")
    assert torch.equal(changed, change_colours(frames, colour, np.random.default_rng(1)))


def test_grey_has_no_colour_and_blur_is_smoother(frames: torch.Tensor) -> None:
    grey = change_colours(frames, ColourSettings(grey=1), np.random.default_rng(0))
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    blurred = change_colours(
        frames, ColourSettings(blur=1, blur_sigma=(1.5, 1.5)), np.random.default_rng(0)
    )
    assert blurred.float().std() < 0.4 * frames.float().std()


def test_chances_hold(frames: torch.Tensor) -> None:
    random = np.random.default_rng(5)
    grey = [change_colours(frames[:1], ColourSettings(grey=0.25), random) for _ in range(400)]
    assert 70 < sum(torch.equal(frame[:, 0], frame[:, 1]) for frame in grey) < 130


def test_the_teacher_may_see_its_own_colours(build: Path) -> None:
    plain = {"out": build, "size": 64, "step": 2}
    clean, changed = (
        ClipDataset(open_snapshots(s), s, seed=1)[0, 3]
        for s in (
            DataSettings.model_validate(plain),
            DataSettings.model_validate(
                plain | {"colour": {"jitter": 1, "grey": 1, "student_only": True}}
            ),
        )
    )
    assert "teacher_frame" not in clean
    assert torch.equal(changed["teacher_frame"], clean["frames"][0])
    assert not torch.equal(changed["frames"][0], clean["frames"][0])
    assert torch.equal(changed["positions"], clean["positions"])
