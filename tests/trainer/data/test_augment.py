"""Augmentation: a dot is where its track says after any crop, resize and flip.

Frames step away from an anchor as worked out by hand, and colours change only when asked.
"""

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
from trainer.data.augment import choose_frames, choose_transforms, decode_and_transform
from trainer.data.clip_table import open_snapshots
from trainer.data.colour import change_colours
from trainer.data.dataset import ClipDataset
from trainer.data.settings import ColourSettings, DataSettings


def settings(**changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": "x", "frames": 3, **changes})


def decoded(
    transforms: list[FrameTransform], images: list[bytes], size: tuple[int, int], reduce: bool
) -> NDArray[np.uint8]:
    t = transforms[0]
    into = np.empty((len(transforms), 3, t.out_height, t.out_width), np.uint8)
    return decode_and_transform(images, transforms, size=size, reduce=reduce, into=into)


def dot(width: int, height: int, x: float, y: float, sigma: float) -> bytes:
    """Make a JPEG of a white Gaussian dot on black."""
    rows, columns = np.mgrid[:height, :width]
    value = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return jpeg.encode(np.repeat(value.round().astype(np.uint8)[..., None], 3, axis=2), 98)


def centre_of(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the centroid (x, y) of the bright pixels of a frame [3, H, W]."""
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
    transforms = choose_transforms(width, height, s, np.random.default_rng(seed))
    sigma = max(
        1.5,
        *(2 * transform.width / transform.out_width for transform in transforms),
        *(2 * transform.height / transform.out_height for transform in transforms),
    )
    # Somewhere in the first crop, far enough from its borders that the dot is whole.
    box, margin = transforms[0], 3 * sigma
    assume(box.width > 2 * margin + 1 and box.height > 2 * margin + 1)
    x = box.left + margin + place[0] * (box.width - 1 - 2 * margin)
    y = box.top + margin + place[1] * (box.height - 1 - 2 * margin)
    shown = decoded(
        transforms, [dot(width, height, x, y, sigma)] * 3, (width, height), s.reduced_decoding
    )
    for transform, frame in zip(transforms, shown, strict=True):
        left, top = x - transform.left, y - transform.top
        if min(left, top, transform.width - 1 - left, transform.height - 1 - top) < margin:
            continue
        event(f"decoded 1/{transform.reduction}, {crop}")
        expected = transform.points(np.array([x, y], np.float32))
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
def test_reduced_decoding_gives_the_same_image(factor: int, width: int, height: int) -> None:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (6, 8, 3), np.uint8)
    picture = FrameTransform.whole(8, 6, width, height).frame(coarse)
    image = jpeg.encode(picture, 95)
    transform = FrameTransform(factor * 2, factor, 160, 128, 160 // factor - 3, 128 // factor - 2)
    whole, reduced = (
        decoded([transform], [image], (width, height), reduce)[0].astype(int)
        for reduce in (False, True)
    )
    assert transform.reduction == factor
    assert np.abs(whole - reduced).mean() < 2
    assert (
        np.abs(whole[..., 1:] - reduced[..., :-1]).mean() > 2 * np.abs(whole - reduced).mean()
    )  # shifted by one pixel it is another image


def test_crops_of_one_moment_differ_and_their_points_correspond(build: Path) -> None:
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
    transforms = transforms_of_first_sample(s, stored.width, stored.height)
    grids = [
        unmapped(transform, positions)
        for transform, positions in zip(transforms, sample["positions"].numpy(), strict=True)
    ]
    for grid in grids[1:]:
        np.testing.assert_allclose(grid, grids[0], atol=1e-3)


def transforms_of_first_sample(s: DataSettings, width: int, height: int) -> list[FrameTransform]:
    """Draw the transforms of sample (0, 0) with seed 1 again; the anchor is drawn before them."""
    random = np.random.default_rng([1, 0, 0])
    random.integers(2)  # forward or backward
    return choose_transforms(width, height, s, random)


def unmapped(transform: FrameTransform, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map points of a transformed frame back to the stored frame's pixels."""
    x = transform.out_width - 1 - points[:, 0] if transform.flip else points[:, 0]
    scale = np.array(
        [transform.width / transform.out_width, transform.height / transform.out_height], np.float32
    )
    corner = np.array([transform.left, transform.top], np.float32)
    return ((np.stack([x, points[:, 1]], axis=-1) + 0.5) * scale - 0.5 + corner).astype(np.float32)


def test_frames_are_resized_as_published() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    image = jpeg.encode(picture, 90)
    shown = decoded([FrameTransform.whole(121, 90, 56, 56)], [image], (121, 90), False)[0].astype(
        int
    )
    published = np.asarray(
        Image.fromarray(jpeg.decode(image)).resize((56, 56), Image.Resampling.BILINEAR)
    ).transpose(2, 0, 1)
    assert np.abs(shown - published).max() <= 1


def test_native_crops_are_not_resampled() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    image = jpeg.encode(picture, 90)
    s = settings(size=64, crop="native", flip=0.0)
    shown = decoded(
        choose_transforms(121, 90, s, np.random.default_rng(0)), [image] * 3, (121, 90), True
    )
    np.testing.assert_array_equal(shown[0], jpeg.decode(image)[13:77, 28:92].transpose(2, 0, 1))


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ShardError, match="an image has 40x30 pixels and should have 41x30"):
        decoded([FrameTransform.whole(41, 30, 20, 20)], [dot(40, 30, 20, 15, 3)], (41, 30), False)


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8)
    ).repeat(3, 1, 1, 1)


@pytest.mark.parametrize("chance", ["jitter", "grey", "blur"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_colours_change_alike_in_a_clip_or_per_frame(
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


def test_grey_is_as_frequent_as_its_chance(frames: torch.Tensor) -> None:
    random = np.random.default_rng(5)
    grey = [change_colours(frames[:1], ColourSettings(grey=0.25), random) for _ in range(400)]
    assert 70 < sum(torch.equal(frame[:, 0], frame[:, 1]) for frame in grey) < 130


def test_with_student_only_the_teacher_sees_the_original_colours(build: Path) -> None:
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


@given(
    frames=st.integers(4, 60),
    anchors=st.lists(st.integers(0, 59), min_size=1, max_size=4, unique=True),
    step=st.integers(1, 12),
    direction=st.sampled_from(["both", "forward"]),
    seed=st.integers(0, 1000),
)
def test_frames_step_away_from_an_anchor(
    frames: int, anchors: list[int], step: int, direction: str, seed: int
) -> None:
    anchors = sorted(a for a in anchors if a < frames) or [0]
    room = max(max(frames - 1 - a, a if direction == "both" else 0) for a in anchors)
    if room < 3:
        return  # such clips are left out beforehand
    settings = DataSettings.model_validate({"out": "x", "step": step, "direction": direction})
    place, numbers = choose_frames(frames, anchors, settings, np.random.default_rng(seed))
    steps = set(np.diff(numbers))
    assert numbers[0] == anchors[place]
    assert all(0 <= n < frames for n in numbers)
    assert len(numbers) == 4
    assert len(steps) == 1
    assert 1 <= abs(steps.pop()) <= step
    assert direction == "both" or numbers[1] > numbers[0]


def test_a_short_clip_gets_the_published_step() -> None:
    settings = DataSettings.model_validate({"out": "x", "anchor": "first", "direction": "forward"})
    random = np.random.default_rng(0)
    assert choose_frames(40, [0, 8], settings, random) == (0, [0, 10, 20, 30])
    assert choose_frames(39, [0, 8], settings, random) == (0, [0, 9, 18, 27])
    assert choose_frames(4, [0], settings, random) == (0, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("frames", "anchors", "step", "direction", "expected"),
    [
        # backward from frame 9 there are 9 frames, forward only 2: just enough for step 3
        (12, [9], 3, "both", [9, 6, 3, 0]),
        # 9 frames would be needed and 8 are available: 8 // 3 = 2
        (12, [3], 3, "forward", [3, 5, 7, 9]),
        # 6 would be needed: 5 forward and 4 backward are available, so forward with 5 // 3 = 1
        (10, [4], 2, "both", [4, 5, 6, 7]),
        # 6 are needed: after frame 5 there are 5, after frame 3 there are 7
        (11, [5, 3], 2, "forward", [3, 5, 7, 9]),
        # transforms of one moment
        (12, [5], 0, "forward", [5, 5, 5, 5]),
    ],
)
def test_frames_are_those_worked_out_by_hand(
    frames: int, anchors: list[int], step: int, direction: str, expected: list[int]
) -> None:
    s = settings(frames=4, step=step, direction=direction)
    for seed in range(20):
        index, numbers = choose_frames(frames, anchors, s, np.random.default_rng(seed))
        assert (anchors[index], numbers) == (expected[0], expected)
