"""The methods by the name that `method` gives them. A new method is added here."""

from __future__ import annotations

from trainer.methods.method import Method
from trainer.methods.multiview import MultiviewMethod
from trainer.methods.tracks import TrackMethod

METHODS: dict[str, type[Method]] = {"tracks": TrackMethod, "multiview": MultiviewMethod}
