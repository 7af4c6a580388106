"""Resizing on the device gives the frames that workers would have made, from real photographs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from shards import jpeg
from shards.errors import PretrackError, SettingsError
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip
from tests.trainer.conftest import publish
from trainer.data.augment import choose_transform, largest_box
from trainer.data.batch import Batch, slice_batch
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.device_frames import make_frames
from trainer.data.device_resize import resize_boxes
from trainer.data.loader import Loader
from trainer.data.packed_batch import BatchShape, PackedBatch
from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg")
SIZES = ((240, 180), (180, 240), (97, 61), (333, 250), (420, 300))


def photograph(name: str, width: int, height: int) -> NDArray[np.uint8]:
    path = metadata.distribution("scikit-image").locate_file(f"skimage/data/{name}")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


@cache  # a large photograph takes a tenth of a second
def photographed_clip(number: int) -> StoredClip:
    """Make a clip of 6 photographs of one size: landscape, portrait, small or large."""
    width, height = SIZES[number % len(SIZES)]
    made = make_clip(f"photo-{number}", number, frames=6)
    names = [PHOTOGRAPHS[(number + k) % len(PHOTOGRAPHS)] for k in range(6)]
    return StoredClip(
        replace(made.info, width=width, height=height),
        made.tracks,
        tuple(jpeg.encode(photograph(name, width, height), 92) for name in names),
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of 10 clips of photographs, in 5 sizes from 97x61 to 420x300."""
    out = tmp_path_factory.mktemp("photographs")
    publish(out, [photographed_clip(number) for number in range(10)])
    return out


def opened(out: Path | str, **changes: object) -> ClipDataset:
    values = {"out": out, "size": 84, "step": 1, "frames": 3, "resize": "device"}
    settings = DataSettings.model_validate(values | changes)
    return ClipDataset(open_snapshots(settings), settings, seed=3)


def both(
    out: Path, workers: int = 0, batches: int = 10, **changes: object
) -> list[tuple[Batch, Batch]]:
    """Load the same batches, resized by workers and on the device."""
    of_device, of_workers = opened(out, **changes), opened(out, **{**changes, "resize": "worker"})
    streams = [
        islice(Loader(dataset, dataset.sampler(4), count), batches)
        for dataset, count in ((of_workers, 0), (of_device, workers))
    ]
    return [
        (expected, make_frames(loaded, of_device.settings))
        for expected, loaded in zip(*streams, strict=True)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "random", "flip": 0.5},
        {"crop": "random", "flip": 0.5, "size": 56},  # some frames are decoded at half scale
        {"crop": "random", "crop_per_frame": True, "crop_scale": 0.05},
        {"crop": "centre", "flip": 1.0, "size": 300},  # enlarged
        {"crop": "native", "flip": 0.5, "size": 60},
        {"crop": "squash", "flip": 0.0, "reduced_decoding": False},
        {"crop": "squash", "size": 32, "colour": {"student_only": True}},
    ],
    ids=["random", "reduced", "per frame", "enlarged", "native", "squash", "teacher"],
)
def test_frames_are_the_same_wherever_they_are_resized(
    photographs: Path, changes: dict[str, Any]
) -> None:
    for expected, batch in both(photographs, **changes):
        assert batch.keys() == expected.keys()
        assert batch["key"] == expected["key"]
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(batch[name], value), name  # type: ignore[literal-required]


COLOURS: dict[str, dict[str, Any]] = {
    "all": {"jitter": 0.8, "grey": 0.2, "blur": 0.5},
    "strong": {"jitter": 1, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5},
    "per frame": {"jitter": 0.7, "grey": 0.3, "blur": 0.5, "per_frame": True},
    "blur": {"blur": 1, "blur_sigma": (0.1, 5.0)},
    "grey": {"grey": 0.5},
}


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS.keys())
def test_colours_are_the_same_to_one_grey_level(photographs: Path, colour: dict[str, Any]) -> None:
    pairs = both(photographs, colour=colour | {"student_only": True})
    plain = both(photographs, colour={"student_only": True})
    pixels = differing = unchanged = 0
    for (expected, batch), (_, original) in zip(pairs, plain, strict=True):
        assert torch.equal(batch["teacher_frame"], expected["teacher_frame"])
        difference = (batch["frames"].int() - expected["frames"].int()).abs()
        pixels += difference.numel()
        differing += int((difference > 1).sum())
        # Almost all are equal, or rounding is not that of the workers.
        assert (difference > 0).float().mean() < 2e-4
        same = (batch["frames"] == original["frames"]).flatten(2).all(2)
        unchanged += int(same.sum())
    assert differing < 1e-4 * pixels
    assert unchanged < 0.7 * sum(len(batch["key"]) * 3 for _, batch in pairs)


def test_workers_processes_send_the_same_crops(photographs: Path) -> None:
    """Only the pixels of a crop are copied out of memory that other batches have used."""
    colour = {"jitter": 0.5, "grey": 0.5}
    for expected, batch in both(photographs, workers=2, batches=14, colour={"student_only": True}):
        for name in ("frames", "teacher_frame", "positions", "visibility", "inside"):
            assert torch.equal(batch[name], expected[name]), name  # type: ignore[literal-required]
    alone, sent = (both(photographs, n, batches=6, colour=colour) for n in (0, 2))
    for (_, batch), (_, other) in zip(alone, sent, strict=True):
        assert torch.equal(batch["frames"], other["frames"])


def test_a_part_of_a_batch_is_resized_alone(photographs: Path) -> None:
    dataset = opened(photographs, colour={"grey": 0.5})
    batch = next(iter(Loader(dataset, dataset.sampler(4))))
    whole = make_frames(batch, dataset.settings)["frames"]
    part = make_frames(slice_batch(batch, slice(1, 3)), dataset.settings)
    assert torch.equal(part["frames"], whole[1:3])
    again = make_frames(part, dataset.settings)
    assert again is part


def test_an_item_has_frames_wherever_the_loader_has_them_resized(photographs: Path) -> None:
    changed = opened(photographs)[0, 3]
    plain = opened(photographs, resize="worker")[0, 3]
    assert torch.equal(changed["frames"], plain["frames"])
    assert changed.keys() == plain.keys()


@examples(max_examples=150)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.sampled_from([14, 32, 83, 224]),
    flip=st.booleans(),
    chunk=st.sampled_from([1, 1 << 28]),
    seed=st.integers(0, 1000),
)
def test_any_box_is_resized_as_torch_does_on_a_cpu(
    height: int, width: int, size: int, flip: bool, chunk: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Two extreme pictures: noise, and black and white stripes, which round at .5.
    pictures = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    pictures[1] = 255 * (np.arange(width)[:, None] % 2)
    crops = np.full((2, height * width + 40, 3), 255, np.uint8)  # what follows has no effect
    crops[:, : height * width] = pictures.reshape(2, -1, 3)
    boxes = np.array([[height, width, flip]] * 2, np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.data.device_resize.CHUNK_BYTES", chunk)
        resized = resize_boxes(torch.from_numpy(crops), boxes, size)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    expected = interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    expected = expected.flip(-1) if flip else expected
    if max(height, width) <= 4 * size:
        assert torch.equal(resized, expected)
    else:  # the sums are too large for float32 to hold them exactly
        difference = (resized.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference[0] > 0).sum() <= 2 + 1e-3 * difference[0].numel()


@examples(max_examples=150)
@given(
    sides=st.tuples(st.floats(1, 9), st.floats(0.3, 1), st.booleans()),
    size=st.integers(14, 250),
    crop=st.sampled_from(["random", "random", "centre", "squash"]),
    scale=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
    reduce=st.sampled_from([True, True, False]),
    seed=st.integers(0, 10_000),
)
def test_no_box_is_larger_than_the_memory_for_it(
    sides: tuple[float, float, bool], size: int, crop: str, scale: float, reduce: bool, seed: int
) -> None:
    width, height = round(size * sides[0]), round(size * sides[0] * sides[1])
    width, height = (height, width) if sides[2] else (width, height)
    s = DataSettings.model_validate(
        {"out": "x", "size": size, "crop": crop, "crop_scale": scale, "reduced_decoding": reduce}
    )
    widest, tallest = largest_box(width, height, s)
    assert widest <= width
    assert tallest <= height
    random = np.random.default_rng(seed)
    for _ in range(100):
        transform = choose_transform(width, height, s, random)
        box = transform.reduced(transform.reduction) if reduce else transform
        assert box.width <= widest
        assert box.height <= tallest


def test_memory_for_boxes_of_large_frames_is_small() -> None:
    """Frames of 1920x1080 are decoded at half or quarter scale for 224 px."""
    s = DataSettings.model_validate({"out": "x", "size": 224})
    assert largest_box(1920, 1080, s) == (605, 605)
    assert largest_box(455, 256, s) == (396, 256)
    whole = s.model_copy(update={"reduced_decoding": False})
    assert largest_box(1920, 1080, whole) == (1664, 1080)
    assert largest_box(1920, 1080, whole.model_copy(update={"crop": "native"})) == (224, 224)
    assert largest_box(1920, 1080, whole.model_copy(update={"crop": "centre"})) == (1080, 1080)
    assert largest_box(1920, 1080, s.model_copy(update={"crop": "squash"})) == (480, 270)


def test_memory_of_a_batch_of_crops_is_what_was_worked_out_by_hand() -> None:
    shape = BatchShape(2, 4, 8, 5, teacher_frames=True, crop_pixels=160)
    # 40 points of 8 + 1 + 1 bytes; 8 frames of 10 * 8, of 3 * 4 and of 160 * 3 bytes
    assert shape.num_bytes == 400 + 8 * (80 + 12 + 480)
    batch = PackedBatch.empty(shape, torch.zeros(9000, dtype=torch.uint8))
    names = ("positions", "visibility", "confidence", "colours", "boxes", "crops")
    for number, name in enumerate(names):
        getattr(batch, name)[:] = number + 1
    for number, name in enumerate(names):  # no part overlaps another
        assert (getattr(batch, name) == number + 1).all(), name
    assert batch.crops.shape == (2, 4, 160, 3)
    assert batch.frames.numel() == batch.teacher_frame.numel() == 0


def test_tables_that_claim_impossible_frames_are_refused(tmp_path: Path) -> None:
    clip = photographed_clip(0)
    for number, (width, height) in enumerate(((100_000, 100_000), (0, 40))):
        out = tmp_path / str(number)
        publish(out, [replace(clip, info=replace(clip.info, width=width, height=height))])
        dataset = opened(out)
        with pytest.raises(
            PretrackError, match=rf"are damaged: no clip has frames of {width}x{height} pixels"
        ):
            Loader(dataset, dataset.sampler(1))


def test_streamed_tars_are_resized_by_workers_only(photographs: Path) -> None:
    settings = opened(photographs).settings
    with pytest.raises(SettingsError, match=r"'data\.resize: device' needs a build's tables"):
        StreamedClips(str(photographs), settings, seed=1)
