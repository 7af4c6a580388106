"""Batches are as few as possible, and of even lengths."""

from __future__ import annotations

import pytest

from pipeline.trackers.batching import split_evenly


@pytest.mark.parametrize(
    ("items", "limit", "lengths"),
    [
        (17, 16, [9, 8]),
        (16, 16, [16]),
        (33, 16, [11, 11, 11]),
        (16, 7, [6, 5, 5]),
        (3, 1, [1, 1, 1]),
        (0, 16, []),
    ],
)
def test_parts_are_even_and_keep_the_order(items: int, limit: int, lengths: list[int]) -> None:
    parts = split_evenly(list(range(items)), limit)
    assert [len(part) for part in parts] == lengths
    assert [item for part in parts for item in part] == list(range(items))
