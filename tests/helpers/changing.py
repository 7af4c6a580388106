"""Change values of settings."""

from __future__ import annotations

from typing import Any, TypeVar

from manifests.settings import Settings

S = TypeVar("S", bound=Settings)


def changed(settings: S, **values: Any) -> S:
    """Copy settings with `values` replaced; the copy is validated."""
    return type(settings).model_validate(settings.model_dump() | values)
