"""What users read of an error that a library raised."""

from __future__ import annotations

import pytest

from shards.errors import first_line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("", "RuntimeError"),
        (" \n\t\n", "RuntimeError"),
        ("no such file", "no such file"),
        ("\n  first  \nsecond", "first"),
    ],
)
def test_a_long_or_empty_message_becomes_one_line(message: str, shown: str) -> None:
    assert first_line(RuntimeError(message)) == shown
