"""Numbers as people say them."""

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
    12: "12 B",
    1_234: "1.2 kB",
    56_789_000: "57 MB",
    999_700: "1.0 MB",
    3 * 10**15: "3,000 TB",
}
TIMES = {
    None: "?",
    0.0: "0 s",
    2.34: "2.3 s",
    42.0: "42 s",
    600.0: "10 min",
    7500.0: "2 h 5 min",
    3596.0: "1 h 0 min",
    2e5: "2 d 7 h",
}


@pytest.mark.parametrize(("number", "said"), SIZES.items())
def test_sizes_have_two_digits_or_three(number: int | None, said: str) -> None:
    assert size(number) == said


@pytest.mark.parametrize(("seconds", "said"), TIMES.items())
def test_times_have_two_units_at_most(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said
