"""Settings with some of their values replaced."""

from __future__ import annotations

from typing import Any, TypeVar

from manifests.settings import Settings

S = TypeVar("S", bound=Settings)


def changed(settings: S, **values: Any) -> S:
    """The same settings but for `values`, checked."""
    return type(settings).model_validate(settings.model_dump() | values)
