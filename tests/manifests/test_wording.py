"""Numbers in words: rounded as people round, at the borders of units too."""

from __future__ import annotations

import pytest

from manifests.wording import duration, pluralise, size


def test_one_is_singular() -> None:
    assert [pluralise(number, "clip") for number in (0, 1, 2, 12_000)] == [
        "0 clips",
        "1 clip",
        "2 clips",
        "12,000 clips",
    ]


SIZES = {
    None: "?",
    0: "0 B",
    1: "1 B",
    12: "12 B",
    999: "999 B",
    1_000: "1.0 kB",
    1_234: "1.2 kB",
    9_949: "9.9 kB",
    9_950: "10 kB",
    999_499: "999 kB",
    999_500: "1.0 MB",
    56_789_000: "57 MB",
    999_700: "1.0 MB",
    7_300_000_000: "7.3 GB",
    999_500_000_000: "1.0 TB",
    3 * 10**15: "3,000 TB",
}
TIMES = {
    None: "?",
    0.0: "0 s",
    0.04: "0.0 s",
    2.34: "2.3 s",
    9.49: "9.5 s",
    9.5: "10 s",
    42.0: "42 s",
    59.4: "59 s",
    59.5: "1 min",
    59.6: "1 min",
    89.0: "1 min",
    91.0: "2 min",
    600.0: "10 min",
    3569.0: "59 min",
    3596.0: "1 h 0 min",
    7500.0: "2 h 5 min",
    47 * 3600 + 59 * 60: "47 h 59 min",
    48 * 3600.0: "2 d 0 h",
    2e5: "2 d 7 h",
    72 * 3600.0: "3 d 0 h",
}


@pytest.mark.parametrize(("number", "text"), SIZES.items())
def test_sizes_have_two_digits_or_three(number: int | None, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(("seconds", "text"), TIMES.items())
def test_times_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
