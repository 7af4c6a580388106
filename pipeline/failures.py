"""The error for footage that cannot be read."""

from __future__ import annotations

from shards.errors import PretrackError

TRANSIENT_REASONS = (
    "decoder stalled",
    "decoder crashed",
    "tracker crashed",
    "missing video",
    "missing image",
)
"""Reasons that may be gone the next time: an overloaded machine, a file system that was away. Such failures are tried again.

A crashed tracker is among them: from outside, a clip that crashes it looks like a machine that ran out of memory or was taken away.
"""


class DecodeError(PretrackError):
    """A video or an image cannot be read. `reason` is a short fixed phrase to count by, the message says what happened."""

    def __init__(self, message: str, reason: str = "unreadable video") -> None:
        super().__init__(message)
        self.reason = reason
