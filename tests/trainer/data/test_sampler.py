"""Mixing, shuffling and places in the order."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import PretrackError
from tests.trainer.conftest import panning_clip, publish
from trainer.config import DataSettings
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.sampler import ClipGroup, ClipSampler, split_by_weight


def grouped(*sizes_and_weights: tuple[int, float]) -> list[ClipGroup]:
    starts = np.cumsum([0, *(size for size, _ in sizes_and_weights)])
    return [
        ClipGroup(np.arange(starts[i], starts[i] + size), weight)
        for i, (size, weight) in enumerate(sizes_and_weights)
    ]


def test_drawn_fractions_are_the_weights() -> None:
    groups = grouped((9_000, 1.0), (700, 2.0), (300, 0.5))
    order = ClipSampler(10_000, 16, seed=3, groups=groups)
    for epoch in range(3):
        drawn = order.epoch(epoch)
        assert len(drawn) == 10_000
        bounds = np.searchsorted([0, 9_000, 9_700], drawn[:, 1], side="right") - 1
        for number, weight in enumerate((1.0, 2.0, 0.5)):
            exact = 10_000 * weight / 3.5
            assert abs((bounds == number).sum() - exact) < 1
            # ... and not only over the whole: 3 standard deviations of drawing a tenth of it without order
            early = (bounds[:1000] == number).sum()
            assert abs(early - exact / 10) < 3 * np.sqrt(1000 * (weight / 3.5) * (1 - weight / 3.5))


def test_every_clip_of_a_group_comes_before_one_comes_again() -> None:
    order = ClipSampler(50, 10, seed=1, groups=grouped((43, 1.0), (7, 1.0)))
    items = [item for batch in islice(order, 200) for item in batch]
    assert len(set(items)) == len(items)
    for group in (range(43), range(43, 50)):
        turns = Counter(turn for turn, index in items if index in group)
        shown = [turn for turn, index in items if index in group]
        assert shown == sorted(shown)
        assert all(count == len(group) for turn, count in turns.items() if turn != max(turns))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 10_000))
def test_split_by_weight_add_up_and_are_within_one(weights: list[float], total: int) -> None:
    parts = split_by_weight(weights, total)
    assert sum(parts) == total
    assert all(
        abs(part - total * weight / sum(weights)) < 1 + 1e-6
        for part, weight in zip(parts, weights, strict=True)
    )


@pytest.mark.parametrize("groups", [[], grouped((80, 1.0), (20, 3.0))], ids=["list", "mixed"])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("start", [1, 11, 12, 13, 40])
def test_any_place_is_found_again(groups: list[ClipGroup], window: int, start: int) -> None:
    def order(start: int) -> ClipSampler:
        return ClipSampler(
            100, 8, seed=5, start=start, groups=groups, shards=np.arange(100) // 10, window=window
        )

    assert list(islice(order(start), 20)) == list(islice(order(0), start + 20))[start:]


def test_shards_of_a_window_are_read_together() -> None:
    shards = np.arange(1000) // 20
    order = ClipSampler(1000, 10, seed=2, shards=shards, window=5)
    first, second = order.epoch(0)[:, 1], order.epoch(1)[:, 1]
    assert sorted(first) == list(range(1000))
    for window in first.reshape(10, 100):
        assert len(set(shards[window])) == 5
        assert len(set(shards[window[:20]])) > 2  # and shuffled within
    assert set(shards[first[:100]]) != set(shards[second[:100]])


def test_a_place_late_among_a_million_clips_is_found_at_once() -> None:
    clips = 1_000_000
    shards = np.arange(clips) // 100
    last = clips // 32 - 1
    groups = grouped((900_000, 1.0), (90_000, 1.0), (10_000, 1.0))
    for order in (
        ClipSampler(clips, 32, seed=1, start=last),
        ClipSampler(clips, 32, seed=1, start=last, groups=groups),
        ClipSampler(clips, 32, seed=1, start=last, shards=shards, window=64),
    ):
        begun = time.process_time()
        assert len(next(iter(order))) == 32
        assert time.process_time() - begun < 2


def mixed(tmp_path: Path, **weights: float) -> ClipDataset:
    a, b = tmp_path / "a", tmp_path / "b"
    if not a.exists():
        publish(a, [panning_clip(f"a-{i}", i) for i in range(6)])
        publish(b, [panning_clip(f"b-{i}", i) for i in range(2)])
    named = {
        str(tmp_path / name) if name in ("a", "b") else name: weight
        for name, weight in weights.items()
    }
    s = DataSettings.model_validate(
        {"out": [str(a), str(b)], "size": 64, "step": 2, "weights": named}
    )
    return ClipDataset(open_snapshots(s), s, seed=1)


def test_folders_are_mixed_by_their_weights(tmp_path: Path) -> None:
    dataset = mixed(tmp_path, a=1, b=3)
    items = [item for batch in islice(dataset.sampler(4), 20) for item in batch]
    assert len(items) == 80
    keys = Counter(dataset[item]["key"][0] for item in items)
    assert keys == {"a": 20, "b": 60}
    again = [dataset[item]["positions"] for item in items if dataset.clips[item[1]].key == "b-0"]
    assert (
        len({positions.numpy().tobytes() for positions in again}) > 25
    )  # of 30: other frames or another box each time


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PretrackError, match=r"names 'co3d', and no clip is of such a dataset .*video_folder"
    ):
        mixed(tmp_path, co3d=1)
    with pytest.raises(PretrackError, match="b-0 is in none"):
        mixed(tmp_path, a=1)
    with pytest.raises(PretrackError, match="a-0 is in two"):
        mixed(tmp_path, a=1, video_folder=2)
