"""The times of frames, where a file's own are usable and where they are not."""

from __future__ import annotations

import pytest

from pipeline.decode.pyav import frame_times


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.5, 0.75, 3.0], (0.0, 0.25, 2.5)),
        ([0.0, None, 0.5], (0.0, 0.25, 0.5)),
        ([0.0, 0.5, 0.5], (0.0, 0.25, 0.5)),
        ([1.0, 0.5], (0.0, 0.25)),
        ([], ()),
    ],
    ids=["own", "missing", "equal", "decreasing", "none"],
)
def test_times_that_are_missing_or_do_not_increase_are_replaced_by_the_rate(
    times: list[float | None], expected: tuple[float, ...]
) -> None:
    assert frame_times(times, rate=4.0) == expected
