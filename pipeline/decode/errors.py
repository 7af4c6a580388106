"""The error for footage that cannot be read."""

from __future__ import annotations

from shards.errors import PretrackError


class DecodeError(PretrackError):
    """A video or an image cannot be read. `reason` is a short fixed phrase to count by, the message says what happened."""

    def __init__(self, message: str, reason: str = "unreadable video") -> None:
        super().__init__(message)
        self.reason = reason
