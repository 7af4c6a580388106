"""Samples: tracked points stay on the same spot of the image, and damaged clips are named."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import ShardError
from tests.helpers.clips import make_clip
from tests.trainer.conftest import panning_clip, publish
from trainer.data.augment import choose_frames
from trainer.data.batch import Batch, track_mask
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.encoded_clip import EncodedClip, decode_clip
from trainer.data.loader import Loader
from trainer.data.packed_batch import PackedBatch
from trainer.data.sampler import ClipSampler
from trainer.data.settings import DataSettings, TrackFilterSettings


def data(*out: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})


def dataset(settings: DataSettings, seed: int = 1) -> ClipDataset:
    return ClipDataset(open_snapshots(settings), settings, seed)


def test_a_sample_has_its_shapes_and_types(build: Path) -> None:
    sample = dataset(data(build))[0, 3]
    assert sample["frames"].shape == (4, 3, 64, 64)
    assert sample["frames"].dtype == torch.uint8
    assert sample["positions"].shape == (4, 36, 2)
    assert sample["positions"].dtype == torch.float32
    for name in ("visibility", "confidence", "inside"):
        assert sample[name].shape == (4, 36)
    assert sample["key"] == "made-03"


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "squash", "flip": 0.0},
        {"crop": "squash", "flip": 1.0},
        {"crop": "random", "flip": 0.5},
    ],
)
def test_points_stay_on_the_same_spot_of_the_image(build: Path, changes: dict[str, object]) -> None:
    clips = dataset(data(build, **changes))
    right, wrong = [], []
    for index in range(len(clips)):
        sample = clips[0, index]
        for frame in (1, 3):
            both = (
                track_mask(sample, TrackFilterSettings())[0]
                & track_mask(sample, TrackFilterSettings())[frame]
            )
            here = colours(sample, frame, sample["positions"][frame, both])
            right.append((here - colours(sample, 0, sample["positions"][0, both])).abs().mean())
            wrong.append((here - colours(sample, 0, sample["positions"][frame, both])).abs().mean())
    assert torch.stack(right).nanmean() < 8  # resampling and JPEG
    assert torch.stack(wrong).nanmean() > 30


def test_a_sample_has_the_stored_tracks_of_its_anchor(tmp_path: Path) -> None:
    clip = make_clip("made-noise", seed=3, frames=14)
    publish(tmp_path, [clip])
    settings = data(tmp_path, crop="squash", flip=0.0, size=64, step=2)
    anchors = set()
    for epoch in range(12):
        sample = dataset(settings)[epoch, 0]
        anchor, numbers = choose_frames(14, [0, 7], settings, np.random.default_rng([1, epoch, 0]))
        anchors.add(anchor)
        stored = clip.tracks.positions[anchor, numbers]
        expected = np.stack([(stored[..., 0] + 0.5) * 64 / 96 - 0.5, stored[..., 1]], axis=-1)
        np.testing.assert_allclose(sample["positions"], expected, atol=1 / 64)
        np.testing.assert_array_equal(
            (sample["visibility"] * 255).round(), clip.tracks.visibility[anchor, numbers]
        )
        np.testing.assert_array_equal(
            (sample["confidence"] * 255).round(), clip.tracks.confidence[anchor, numbers]
        )
    assert anchors == {0, 1}


def colours(sample: Batch, frame: int, points: torch.Tensor) -> torch.Tensor:
    """Sample an image bilinearly at points [n, 2] → [n, 3], written out."""
    image = sample["frames"][frame].float()
    low = points.floor().clamp(0, 62).long()
    part = (points.clamp(0, 63) - low).T
    x, y = low.T
    top = image[:, y, x] * (1 - part[0]) + image[:, y, x + 1] * part[0]
    bottom = image[:, y + 1, x] * (1 - part[0]) + image[:, y + 1, x + 1] * part[0]
    return (top * (1 - part[1]) + bottom * part[1]).T


def test_points_outside_the_crop_do_not_count(build: Path) -> None:
    sample = dataset(data(build, crop_scale=0.3, crop="random"))[0, 0]
    outside = ((sample["positions"] < -0.5) | (sample["positions"] > 63.5)).any(dim=-1)
    assert outside.any()
    assert not track_mask(sample, TrackFilterSettings())[outside].any()
    assert track_mask(sample, TrackFilterSettings(mask_outside=False))[0].all()


def test_the_same_item_is_the_same_sample_and_epochs_differ(build: Path) -> None:
    a, b, other = dataset(data(build))[2, 5], dataset(data(build))[2, 5], dataset(data(build))[3, 5]
    assert all(torch.equal(a[name], b[name]) for name in ("frames", "positions", "visibility"))  # type: ignore[literal-required]
    assert not torch.equal(a["positions"], other["positions"])


def test_batches_are_the_same_with_and_without_workers(build: Path) -> None:
    clips = dataset(data(build))
    order = ClipSampler(len(clips), 4, seed=1)
    alone = list(islice(Loader(clips, order), 5))
    shared = list(islice(Loader(clips, ClipSampler(len(clips), 4, seed=1), workers=2), 5))
    for a, b in zip(alone, shared, strict=True):
        assert a["key"] == b["key"]
        assert torch.equal(a["frames"], b["frames"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_clip_is_named(tmp_path: Path, workers: int) -> None:
    snapshot = publish(tmp_path, [panning_clip("made-bad", 0)])
    row = snapshot.clips.to_pylist()[0]
    with open(str(snapshot.shard_path(row["shard"])), "r+b") as shard:
        shard.seek(row["tracks_offset"])
        shard.write(bytes(row["tracks_size"]))
    with pytest.raises(ShardError, match=r"clip made-bad in .*made-000000.tar"):
        next(iter(Loader(dataset(data(tmp_path)), ClipSampler(1, 1, seed=0), workers)))


def test_all_clips_of_a_batch_are_read_before_any_is_decoded(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase then keeps its own working set in the CPU's caches."""
    clips = dataset(data(build))
    calls: list[str] = []
    read = ClipDataset.read
    decode = decode_clip

    def record_read(self: ClipDataset, index: tuple[int, int]) -> EncodedClip:
        calls.append("read")
        return read(self, index)

    def record_decode(
        clip: EncodedClip, batch: PackedBatch, slot: int, settings: DataSettings
    ) -> None:
        calls.append("decode")
        decode(clip, batch, slot, settings)

    monkeypatch.setattr(ClipDataset, "read", record_read)
    monkeypatch.setattr("trainer.data.dataset.decode_clip", record_decode)
    clips.batch([(0, 0), (0, 1), (0, 2)])
    assert calls == ["read"] * 3 + ["decode"] * 3
