"""What `pretrack plan` and `pretrack diff` say about changed settings."""

from __future__ import annotations

from typing import Any

import pytest

from manifests.changes import changed_settings


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ({"tracks": {"grid": 16}}, {"tracks": {"grid": 24}}, ["tracks.grid 16 → 24"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": 1}, {"a": 1, "b": True}, ["b unset → true"]),
        ({"a": 1, "b": True}, {"a": 1}, ["b true → unset"]),
        ({"a": None}, {"a": "new"}, ["a unset → new"]),
        ({"a": "x"}, {"a": ""}, ['a x → ""']),
        ({"anchors": [0, 8]}, {"anchors": [0, 8, 16]}, ["anchors [0, 8] → [0, 8, 16]"]),
        (
            {"sources": [{"name": "a", "root": "/x"}, {"name": "b"}]},
            {"sources": [{"name": "a", "root": "/y"}]},
            ["sources.0.root /x → /y", "sources.1.name b → unset"],
        ),
        (
            {"z": 1, "a": {"weights": "0f"}},
            {"z": 2, "a": {"weights": "1e"}},
            ["z 1 → 2", "a.weights changed (another checkpoint)"],
        ),
        ({"a": {"weights": ""}}, {"a": {"weights": "1e"}}, ['a.weights "" → 1e']),
    ],
)
def test_changed_settings_are_listed_by_their_dotted_keys(
    old: dict[str, Any], new: dict[str, Any], changes: list[str]
) -> None:
    assert [str(change) for change in changed_settings(old, new)] == changes
