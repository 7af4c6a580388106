"""The Ray actor that holds a loaded tracker and tracks decoded shards."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

from pipeline.config import BuildSettings
from pipeline.execution import shard_stages as stages


class TrackerWorker:
    """Hold a loaded tracker in a worker process."""

    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings

    def load(self) -> str:
        """Load the tracker; return where it runs. Raises what is wrong with its settings."""
        import cv2

        # OpenCV would use all cores of the machine, and the worker reserved only these.
        cv2.setNumThreads(max(1, int(self._settings.ray.tracker_cpus)))
        self._tracker = self._settings.tracks.load()
        return f"process {os.getpid()} on {socket.gethostname()}"

    def track(self, decoded: stages.DecodedShard, only: str) -> tuple[stages.TrackedShard, float]:
        """Track a shard, or only its clip `only`; return the tracks and the seconds it took."""
        if only:
            decoded = replace(
                decoded, clips=tuple(clip for clip in decoded.clips if clip.info.key == only)
            )
        tracked = stages.track_shard(decoded, self._tracker, self._settings)
        if any("CUDA error" in failure.detail for failure in tracked.failures):
            # After a crashed kernel the process cannot use the GPU any more, and every later clip
            # would fail too. The pool replaces a worker that exits.
            os._exit(1)
        return tracked, tracked.seconds
