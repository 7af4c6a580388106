"""Tables as people read them."""

from __future__ import annotations

import math

from trainer.evaluate.intervals import Difference
from trainer.evaluate.tables import aligned_lines, format_number, table, table_of_differences


def test_numbers_are_rounded_and_missing_ones_are_dashes() -> None:
    assert (format_number(0.12345), format_number(12.35, 1)) == ("0.1235", "12.3")
    assert (format_number(math.nan), format_number(math.inf)) == ("-", "-")


def test_names_are_left_and_numbers_right() -> None:
    assert aligned_lines([["", "a"], ["model", "1.5"], ["x"]]) == ["         a", "model  1.5", "x"]
    assert table(("", "recall"), [["mine", 5.0], ["pairs", 12]]) == (
        "         recall\n  mine     5.00\n  pairs      12"
    )


def test_differences_show_sign_interval_and_verdict() -> None:
    other = "other +0.000 [-0.100, +0.100] 1.000 not distinguishable from 0 9 7"
    shown = table_of_differences(
        "b less a",
        {
            "gain": Difference(0.5, 0.625, 9, 7, (0.01, 0.2), "better", 0.0004, 0.0008),
            "other": Difference(0.5, 0.5, 9, 7, (-0.1, 0.1), "not distinguishable from 0", 1, 1),
            "few": Difference(0.5, 0.25, 3, 2, None, "too few to tell"),
            "none": Difference(math.nan, math.nan, 0, 0, None, "too few to tell"),
        },
        ["clips", "videos"],
        digits=3,
    )
    assert [line.split() for line in shown.splitlines()] == [
        ["b", "less", "a", "95", "%", "interval", "p", "clips", "videos"],
        ["gain", "+0.125", "[+0.010,", "+0.200]", "<0.001", "better", "9", "7"],
        other.split(),
        ["few", "-0.250", "-", "-", "too", "few", "to", "tell", "3", "2"],
        ["none", "-", "-", "-", "too", "few", "to", "tell", "0", "0"],
        *[
            line.split()
            for line in (
                "p is corrected for the 2 rows of this table (Holm) and decides the words; "
                "an interval is that of its row alone.",
            )
        ],
    ]
