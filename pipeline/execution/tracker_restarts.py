"""Decide when a tracker that did not load is started again, and when the build gives up."""

from __future__ import annotations

import time

from pipeline.trackers.protocol import DeviceFullError
from shards.errors import PretrackError

_ROUNDS = 3
"""How often every tracker may fail to load before the build gives up."""
_LONGEST_DELAY_S = 60.0


class RestartPolicy:
    """Retry loading with exponential backoff: 2 s, 4 s, ... up to a minute.

    error: why no tracker will ever load, None as long as retrying makes sense
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._failed_loads = 0
        self._ever_loaded = False
        self._start_after = 0.0

    @property
    def may_start(self) -> bool:
        """Whether the delay after the last failure is over."""
        return time.monotonic() >= self._start_after

    def loaded(self) -> None:
        """Record that a tracker was loaded: failures are counted from zero again."""
        self._failed_loads, self._ever_loaded = 0, True

    def failed(self, raised: Exception | None, reason: str, trackers: int) -> None:
        """Record that a tracker failed to load: delay the next start, or set `error`.

        raised:   what loading raised, None if the worker died
        reason:   why it failed, in words
        trackers: how many trackers there should be; a round is one failure for each
        """
        self._failed_loads += 1
        # A fault that affects all trackers gives one failure per tracker, so count rounds.
        rounds = self._failed_loads / max(1, trackers)
        # A wrong setting fails every time. Other errors may be transient if loading ever worked.
        permanent = isinstance(raised, PretrackError) and not isinstance(raised, DeviceFullError)
        if raised and (permanent or not self._ever_loaded):
            self.error = raised
        elif rounds >= _ROUNDS and not self._ever_loaded:
            self.error = PretrackError(
                f"every tracker dies while it is loaded, the last one because {reason}"
            )
        self._start_after = time.monotonic() + min(2.0**rounds, _LONGEST_DELAY_S)
