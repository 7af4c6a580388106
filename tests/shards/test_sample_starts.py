"""Which anchors training samples start from: worked out by hand, and by trying every start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.clip import Directions
from shards.sample_starts import SampleRule, sample_starts

DIRECTIONS: tuple[Directions, ...] = ("both", "forward", "backward")


def starts(
    frames: int, anchors: list[int], rule: SampleRule, tracked: Directions = "both"
) -> list[tuple[int, int, int]]:
    """Return (anchor frame, direction, step) of each start."""
    return [
        (anchors[start.anchor], start.direction, start.step)
        for start in sample_starts(frames, anchors, rule, tracked)
    ]


@pytest.mark.parametrize(
    ("frames", "anchors", "tracked", "expected"),
    [
        # the old defaults: step 24 // 4 = 6, so 18 frames are needed; only anchor 0 has them
        (24, [0, 8, 16], "both", [(0, 1, 6)]),
        # the defaults: 30 are needed; 47 and 31 lie after 0 and 16, and 32 before 32
        (48, [0, 16, 32], "both", [(0, 1, 10), (16, 1, 10), (32, -1, 10)]),
        (48, [0, 16, 32], "forward", [(0, 1, 10), (16, 1, 10)]),
        (48, [0, 16, 32], "backward", [(32, -1, 10)]),
        (64, [0, 32, 63], "both", [(0, 1, 10), (32, 1, 10), (32, -1, 10), (63, -1, 10)]),
        # none has 6 frames: of 4 after the anchor and 3 before it, 4 allow step 1
        (8, [3], "both", [(3, 1, 1)]),
        (8, [3], "backward", [(3, -1, 1)]),
        (4, [0], "both", [(0, 1, 1)]),
        (3, [0], "both", []),
        (8, [0], "backward", []),
        (8, [], "both", []),
    ],
)
def test_starts_are_those_worked_out_by_hand(
    frames: int, anchors: list[int], tracked: Directions, expected: list[tuple[int, int, int]]
) -> None:
    assert starts(frames, anchors, SampleRule(), tracked) == expected


def test_the_published_trainer_starts_from_the_first_anchor_and_goes_forward() -> None:
    published = SampleRule(first_anchor=True, backward=False)
    assert starts(48, [0, 16, 32], published) == [(0, 1, 10)]
    assert starts(48, [0, 16, 32], published, "backward") == []


def test_a_sample_of_one_moment_starts_anywhere() -> None:
    assert starts(3, [0, 2], SampleRule(step=0), "forward") == [(0, 1, 0), (2, 1, 0)]


@given(
    frames=st.integers(1, 80),
    anchors=st.sets(st.integers(0, 79), min_size=1, max_size=4),
    size=st.integers(2, 6),
    step=st.integers(1, 12),
    backward=st.booleans(),
    tracked=st.sampled_from(DIRECTIONS),
)
def test_no_sample_leaves_its_clip_or_takes_frames_that_were_not_tracked(
    frames: int,
    anchors: set[int],
    size: int,
    step: int,
    backward: bool,
    tracked: Directions,
) -> None:
    rule = SampleRule(size, step, backward=backward)
    inside = sorted(anchor for anchor in anchors if anchor < frames)
    for anchor, direction, chosen in starts(frames, inside, rule, tracked):
        assert 0 <= anchor + direction * (size - 1) * chosen < frames
        assert 1 <= chosen <= step
        assert (direction == 1) <= (tracked != "backward")
        assert (direction == -1) <= (tracked != "forward" and backward)
