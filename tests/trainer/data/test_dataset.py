"""Samples: the right frames, points that stay on what they are on, and an order that follows from the seed alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import PretrackError, ShardError
from tests.helpers.clips import make_clip
from tests.trainer.conftest import panning_clip, publish
from trainer.config import DataSettings, TrackFilterSettings, TrainSettings
from trainer.data.augment import choose_frames
from trainer.data.batch import Batch, track_mask
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.sampler import ClipSampler


def data(*out: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})


def dataset(settings: DataSettings, seed: int = 1) -> ClipDataset:
    return ClipDataset(open_snapshots(settings), settings, seed)


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
def test_points_stay_on_the_same_spot_of_the_picture(
    build: Path, changes: dict[str, object]
) -> None:
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


def test_a_sample_holds_what_is_stored_of_its_anchor(tmp_path: Path) -> None:
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
    """Bilinear pixel values at points [n, 2]: [n, 3], written out."""
    image = sample["frames"][frame].float()
    low = points.floor().clamp(0, 62).long()
    part = (points.clamp(0, 63) - low).T
    x, y = low.T
    top = image[:, y, x] * (1 - part[0]) + image[:, y, x + 1] * part[0]
    bottom = image[:, y + 1, x] * (1 - part[0]) + image[:, y + 1, x + 1] * part[0]
    return (top * (1 - part[1]) + bottom * part[1]).T


def test_points_that_leave_the_view_do_not_count(build: Path) -> None:
    sample = dataset(data(build, crop_scale=0.3, crop="random"))[0, 0]
    outside = ((sample["positions"] < -0.5) | (sample["positions"] > 63.5)).any(dim=-1)
    assert outside.any()
    assert not track_mask(sample, TrackFilterSettings())[outside].any()
    assert track_mask(sample, TrackFilterSettings(mask_outside=False))[0].all()


def test_thresholds() -> None:
    sample = Batch(
        frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        positions=torch.zeros(2, 3, 2),
        visibility=torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.95, 0.95]]),
        confidence=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        inside=torch.ones(2, 3, dtype=torch.bool),
        key="a",
    )
    assert track_mask(sample, TrackFilterSettings())[1].tolist() == [False, True, False]
    assert track_mask(sample, TrackFilterSettings(confidence=0))[1].tolist() == [False, True, True]


def test_the_same_item_is_the_same_sample_and_epochs_differ(build: Path) -> None:
    a, b, other = dataset(data(build))[2, 5], dataset(data(build))[2, 5], dataset(data(build))[3, 5]
    assert all(torch.equal(a[name], b[name]) for name in ("frames", "positions", "visibility"))  # type: ignore[literal-required]
    assert not torch.equal(a["positions"], other["positions"])


def test_workers_change_nothing(build: Path) -> None:
    clips = dataset(data(build))
    order = ClipSampler(len(clips), 4, seed=1)
    alone = list(islice(Loader(clips, order), 5))
    shared = list(islice(Loader(clips, ClipSampler(len(clips), 4, seed=1), workers=2), 5))
    for a, b in zip(alone, shared, strict=True):
        assert a["key"] == b["key"]
        assert torch.equal(a["frames"], b["frames"])


def test_order_covers_an_epoch_and_goes_on_where_it_was() -> None:
    whole = list(islice(ClipSampler(10, 3, seed=7), 9))
    for epoch in range(3):
        seen = [index for batch in whole[3 * epoch : 3 * epoch + 3] for index in batch]
        assert len(set(seen)) == 9
        assert {e for e, _ in seen} == {epoch}
    assert whole[0] != whole[3]
    assert list(islice(ClipSampler(10, 3, seed=7, start=5), 4)) == whole[5:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_every_batch(world: int) -> None:
    whole = list(islice(ClipSampler(21, 4, seed=7), 12))
    ranks = [
        list(islice(ClipSampler(21, 4, seed=7, rank=r, world=world), 12)) for r in range(world)
    ]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert {len(part) for part in parts} == {4 // world}
        assert sorted(item for part in parts for item in part) == sorted(batch)


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(
        PretrackError, match=r"'run.batch_size: 32' is more than the 10 clips there are"
    ):
        ClipSampler(10, 32, seed=0)
    with pytest.raises(PretrackError, match="cannot be shared by 3 ranks"):
        ClipSampler(10, 4, seed=0, world=3)


def test_filters_say_what_they_leave_out(build: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "trainer.data.clip_selection"):
        assert len(dataset(data(build))) == 10
    assert "4 clips left out: split other than 'train'" in caplog.text
    assert len(dataset(data(build, split="eval"))) == 4
    with pytest.raises(
        PretrackError, match=r"no clip in .* fits: split 'train', 13 frames or more"
    ):
        dataset(data(build, frames=13))
    with pytest.raises(PretrackError, match="no clip"):
        dataset(data(build, where="dataset == 'co3d'"))


def test_several_folders_are_one_list(build: Path, tmp_path: Path) -> None:
    publish(tmp_path, [panning_clip("other-0", 50, frames=20)])
    clips = dataset(data(build, tmp_path))
    assert len(clips) == 11
    assert clips[0, 10]["key"] == "other-0"
    publish(tmp_path, [panning_clip("other-0", 50, grid=5)])
    with pytest.raises(PretrackError, match=r"differ in their points \(\[25, 36\]\)"):
        dataset(data(build, tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_clip_is_named(tmp_path: Path, workers: int) -> None:
    snapshot = publish(tmp_path, [panning_clip("made-bad", 0)])
    row = snapshot.clips.to_pylist()[0]
    with open(str(snapshot.shard_path(row["shard"])), "r+b") as shard:
        shard.seek(row["tracks_offset"])
        shard.write(bytes(row["tracks_size"]))
    with pytest.raises(ShardError, match=r"clip made-bad in .*made-000000.tar"):
        next(iter(Loader(dataset(data(tmp_path)), ClipSampler(1, 1, seed=0), workers)))


def test_a_snapshot_is_held(build: Path, settings: Callable[..., TrainSettings]) -> None:
    assert [snapshot.name for snapshot in open_snapshots(settings().data, ["000001"])] == ["000001"]
    with pytest.raises(PretrackError, match="has no snapshot '000009'"):
        open_snapshots(settings().data, ["000009"])
