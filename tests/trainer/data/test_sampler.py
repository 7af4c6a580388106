"""The sampler: mixing, shuffling, ranks and positions to resume from."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import PretrackError
from trainer.data.sampler import ClipGroup, ClipSampler, split_by_weight


def grouped(*sizes_and_weights: tuple[int, float]) -> list[ClipGroup]:
    starts = np.cumsum([0, *(size for size, _ in sizes_and_weights)])
    return [
        ClipGroup(np.arange(starts[i], starts[i] + size), weight)
        for i, (size, weight) in enumerate(sizes_and_weights)
    ]


def test_an_epoch_is_mixed_by_the_weights() -> None:
    groups = grouped((9_000, 1.0), (700, 2.0), (300, 0.5))
    sampler = ClipSampler(10_000, 16, seed=3, groups=groups)
    for epoch in range(3):
        drawn = sampler.epoch(epoch)
        assert len(drawn) == 10_000
        bounds = np.searchsorted([0, 9_000, 9_700], drawn[:, 1], side="right") - 1
        for number, weight in enumerate((1.0, 2.0, 0.5)):
            exact = 10_000 * weight / 3.5
            assert abs((bounds == number).sum() - exact) < 1
            # Also within the epoch: the first tenth is within 3 standard deviations of a random
            # draw.
            early = (bounds[:1000] == number).sum()
            assert abs(early - exact / 10) < 3 * np.sqrt(1000 * (weight / 3.5) * (1 - weight / 3.5))


def test_a_clip_is_repeated_only_after_all_others_of_its_group() -> None:
    sampler = ClipSampler(50, 10, seed=1, groups=grouped((43, 1.0), (7, 1.0)))
    items = [item for batch in islice(sampler, 200) for item in batch]
    assert len(set(items)) == len(items)
    for group in (range(43), range(43, 50)):
        passes = [number for number, clip in items if clip in group]
        assert passes == sorted(passes)
        counts = Counter(passes)
        assert all(count == len(group) for number, count in counts.items() if number != max(counts))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 10_000))
def test_parts_of_a_mix_add_up_and_are_within_one(weights: list[float], total: int) -> None:
    parts = split_by_weight(weights, total)
    assert sum(parts) == total
    assert all(
        abs(part - total * weight / sum(weights)) < 1 + 1e-6
        for part, weight in zip(parts, weights, strict=True)
    )


@pytest.mark.parametrize("groups", [[], grouped((80, 1.0), (20, 3.0))], ids=["list", "mixed"])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("start", [1, 11, 12, 13, 40])
def test_a_sampler_started_at_any_batch_continues_the_order(
    groups: list[ClipGroup], window: int, start: int
) -> None:
    def sampler(start: int) -> ClipSampler:
        return ClipSampler(
            100, 8, seed=5, start=start, groups=groups, shards=np.arange(100) // 10, window=window
        )

    assert list(islice(sampler(start), 20)) == list(islice(sampler(0), start + 20))[start:]


def test_clips_of_a_window_of_shards_are_read_together() -> None:
    shards = np.arange(1000) // 20
    sampler = ClipSampler(1000, 10, seed=2, shards=shards, window=5)
    first, second = sampler.epoch(0)[:, 1], sampler.epoch(1)[:, 1]
    assert sorted(first) == list(range(1000))
    for window in first.reshape(10, 100):
        assert len(set(shards[window])) == 5
        assert len(set(shards[window[:20]])) > 2  # and shuffled within
    assert set(shards[first[:100]]) != set(shards[second[:100]])


def test_starting_late_among_a_million_clips_takes_no_time() -> None:
    clips = 1_000_000
    shards = np.arange(clips) // 100
    last = clips // 32 - 1
    groups = grouped((900_000, 1.0), (90_000, 1.0), (10_000, 1.0))
    for sampler in (
        ClipSampler(clips, 32, seed=1, start=last),
        ClipSampler(clips, 32, seed=1, start=last, groups=groups),
        ClipSampler(clips, 32, seed=1, start=last, shards=shards, window=64),
    ):
        begun = time.process_time()
        assert len(next(iter(sampler))) == 32
        assert time.process_time() - begun < 2


def test_an_epoch_repeats_no_clip_and_a_sampler_resumes_at_its_start() -> None:
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


def test_batch_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        PretrackError,
        match=r"^'run.batch_size: 11' is more than the 10 clips there are: make it smaller$",
    ):
        ClipSampler(10, 11, seed=0)
    assert ClipSampler(10, 10, seed=0).steps_per_epoch == 1
    with pytest.raises(PretrackError, match="cannot be shared by 3 ranks"):
        ClipSampler(10, 4, seed=0, world=3)


@pytest.mark.parametrize(
    ("weights", "total", "parts"),
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([2, 1, 1], 7, [3, 2, 2]),  # 3.5, 1.75, 1.75: the largest remainders are rounded up
        ([1, 3], 8, [2, 6]),
        ([1, 1000], 8, [0, 8]),
        # 1.125 and 3.375, ten times each: of equal remainders the first five are rounded up
        ([1, 3] * 10, 45, [1, 4] * 5 + [1, 3] * 5),
    ],
)
def test_parts_of_a_mix_are_those_worked_out_by_hand(
    weights: list[float], total: int, parts: list[int]
) -> None:
    assert split_by_weight(weights, total) == parts


def test_a_small_group_makes_several_passes_per_epoch_and_a_large_one_continues() -> None:
    sampler = ClipSampler(8, 4, seed=1, groups=grouped((6, 1.0), (2, 3.0)))
    assert sampler.steps_per_epoch == 2
    passes = []
    for epoch in range(4):
        drawn = sampler.epoch(epoch)
        large = drawn[drawn[:, 1] < 6, 0].tolist()
        small = drawn[drawn[:, 1] >= 6, 0].tolist()
        passes.append((large, small))
    # Of 8 samples per epoch the groups get 2 and 6. Six clips last three epochs.
    assert [large for large, _ in passes] == [[0, 0], [0, 0], [0, 0], [1, 1]]
    assert [small for _, small in passes] == [
        [0, 0, 1, 1, 2, 2],
        [3, 3, 4, 4, 5, 5],
        [6, 6, 7, 7, 8, 8],
        [9, 9, 10, 10, 11, 11],
    ]


def test_an_epoch_is_all_batches_that_can_be_filled() -> None:
    sampler = ClipSampler(11, 4, seed=1)
    assert sampler.steps_per_epoch == 2
    assert sampler.epoch(3).shape == (8, 2)
    assert set(sampler.epoch(3)[:, 0]) == {3}


def test_shards_without_a_window_change_nothing() -> None:
    plain = ClipSampler(100, 10, seed=2).epoch(0).tolist()
    shards = np.arange(100) // 20
    assert ClipSampler(100, 10, seed=2, shards=shards).epoch(0).tolist() == plain
    assert ClipSampler(100, 10, seed=2, window=5).epoch(0).tolist() == plain


def test_every_group_and_every_pass_has_an_order_of_its_own() -> None:
    sampler = ClipSampler(40, 40, seed=1, groups=grouped((20, 1.0), (20, 1.0)))
    orders = []
    for epoch in range(2):  # each group makes one pass per epoch
        clips = sampler.epoch(epoch)[:, 1]
        orders += [clips[clips < 20].tolist(), (clips[clips >= 20] - 20).tolist()]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    ("sampler", "batches"),
    [
        (
            ClipSampler(7, 3, seed=1, start=4),
            [[(2, 0), (2, 6), (2, 5)], [(2, 1), (2, 4), (2, 3)]],
        ),
        (
            ClipSampler(7, 3, seed=1, start=2, groups=grouped((4, 1.0), (3, 1.0))),
            [[(0, 3), (1, 1), (1, 6)], [(1, 2), (1, 4), (1, 5)]],
        ),
        (
            ClipSampler(8, 4, seed=1, shards=np.arange(8) // 2, window=2),
            [[(0, 0), (0, 2), (0, 3), (0, 1)], [(0, 7), (0, 5), (0, 6), (0, 4)]],
        ),
    ],
    ids=["list", "mixed", "window"],
)
def test_a_run_that_resumes_after_an_upgrade_sees_the_clips_that_it_would_have_seen(
    sampler: ClipSampler, batches: list[list[tuple[int, int]]]
) -> None:
    """The order of a seed is part of the interface: these are recorded, not computed."""
    drawn = list(islice(sampler, 2))
    assert drawn == batches
    assert all(type(clip) is int for batch in drawn for _, clip in batch)


def test_a_saved_position_continues_with_the_next_batch() -> None:
    unbroken = iter(ClipSampler(21, 4, seed=7))
    batches = [next(unbroken) for _ in range(7)]
    state = unbroken.state_dict()
    assert state == {"step": 7}
    resumed = iter(ClipSampler(21, 4, seed=7))
    resumed.load_state_dict(state)
    following = [next(resumed) for _ in range(3)]
    assert following == [next(unbroken) for _ in range(3)]
    assert not {tuple(batch) for batch in following} & {tuple(batch) for batch in batches}
