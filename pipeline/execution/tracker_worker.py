"""The Ray actor that holds a loaded tracker and tracks decoded shards."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

from pipeline.config import BuildSettings
from pipeline.execution.shard_stages import DecodedShard, TrackedShard
from pipeline.execution.shard_tracking import ShardTracking

UNPACKING = "unpack"
"""The group of calls (in Ray's sense) that have a thread of their own. All other calls share one,
in their order."""


class TrackerWorker:
    """Hold a loaded tracker in a worker process.

    A shard takes two calls with the same number, so that the frames of the next shard are unpacked
    while the tracker works on this one: `unpack` in the group `UNPACKING`, then `track`.
    """

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings
        self._unpacked: dict[int, ShardTracking] = {}

    def load(self) -> str:
        """Load the tracker; return where it runs. Raises what is wrong with its settings."""
        import cv2

        # OpenCV would use all cores of the machine, and the worker reserved only these.
        cv2.setNumThreads(max(1, int(self._settings.ray.tracker_cpus)))
        self._tracker = self._settings.tracks.load()
        return f"process {os.getpid()} on {socket.gethostname()}"

    def unpack(self, number: int, decoded: DecodedShard, only: str) -> None:
        """Unpack the first frames of a shard, or only of its clip `only`."""
        if only:
            decoded = replace(
                decoded, clips=tuple(clip for clip in decoded.clips if clip.info.key == only)
            )
        shard = ShardTracking(decoded, self._tracker, self._settings)
        shard.unpack()
        self._unpacked[number] = shard

    def track(self, number: int) -> tuple[TrackedShard, float]:
        """Track the unpacked shard; return the tracks and the seconds it took.

        The seconds are a value of their own, so that waiting for them does not fetch the tracks.
        """
        tracked = self._unpacked.pop(number).track()
        if any("CUDA error" in failure.detail for failure in tracked.failures):
            # After a crashed kernel the process cannot use the GPU any more, and every later clip
            # would fail too. The pool replaces a worker that exits.
            os._exit(1)
        return tracked, tracked.seconds
