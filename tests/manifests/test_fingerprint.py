"""Fingerprints of settings stay the same over versions: a changed one would rebuild every shard."""

from __future__ import annotations

import pytest

from manifests.fingerprint import canonical_json, fingerprint, fingerprint_lines


def test_the_fingerprint_of_a_value_never_changes() -> None:
    settings = {"tracks": {"grid": 16, "anchors": [0, 8]}, "a": "Größe", "b": None, "c": 0.5}
    text = '{"a":"Größe","b":null,"c":0.5,"tracks":{"anchors":[0,8],"grid":16}}'
    assert canonical_json(settings) == text
    assert fingerprint(settings) == "b6a240eba6c35ab509bde2610d7c1469"
    assert fingerprint(dict(reversed(settings.items()))) == fingerprint(settings)


def test_lines_are_hashed_apart() -> None:
    assert fingerprint_lines(["ab", "c"]) == "e227d07841527882cc647d709697f0de"
    assert len({fingerprint_lines(lines) for lines in (["ab", "c"], ["a", "bc"], ["abc"])}) == 3


def test_a_value_without_a_canonical_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"speed": float("nan")})
