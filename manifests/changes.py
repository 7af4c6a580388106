"""Which settings differ, by their dotted keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SettingChange:
    """A setting and its two values, None where it is not there. As text: "tracks.grid 16 → 24"."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.key.endswith(".weights") and self.old and self.new:
            return f"{self.key} changed (another checkpoint)"  # they are known by their digests, which tell people nothing
        return f"{self.key} {_shown(self.old)} → {_shown(self.new)}"


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[SettingChange]:
    """What differs between settings given as plain data, in their order."""
    before, after = dict(_dotted(old)), dict(_dotted(new))
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return [SettingChange(key, before.get(key), after.get(key)) for key in keys]


def _dotted(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; lists of plain values count as one value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        inner = ()
    if not inner:
        yield key, value
    for name, item in inner:
        yield from _dotted(item, f"{key}.{name}" if key else str(name))


def _shown(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
