"""Compare two sets of settings by their dotted keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SettingChange:
    """A setting's old and new value, None where it is absent. As text: "tracks.grid 16 → 24"."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.key.endswith(".weights") and self.old and self.new:
            # Weights are identified by digests, which mean nothing to people.
            return f"{self.key} changed (another checkpoint)"
        return f"{self.key} {_shown(self.old)} → {_shown(self.new)}"


def changed_settings(old: dict[str, Any], new: dict[str, Any]) -> list[SettingChange]:
    """List the differences between two settings given as plain data, in the order of their keys."""
    before, after = dict(_dotted(old)), dict(_dotted(new))
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return [SettingChange(key, before.get(key), after.get(key)) for key in keys]


def _dotted(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Flatten settings to (dotted key, value); a list of plain values counts as one value."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = list(enumerate(value))
    if not inner:
        yield key, value
    for name, item in inner:
        yield from _dotted(item, f"{key}.{name}" if key else str(name))


def _shown(value: Any) -> str:
    """Show a setting's value as in a config."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
