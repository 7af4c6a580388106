"""A real build with CoTracker3: how busy it keeps the GPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.gpu.line import Line, attempt
from benchmarks.gpu.moving_pictures import moving_pictures
from benchmarks.gpu.utilisation import utilisation
from shards import jpeg


def lines(device: str, small: bool) -> Iterator[Line]:
    """Build clips of 48 frames from folders of JPEGs."""
    if missing := [name for name in ("ray", "av") if find_spec(name) is None]:
        yield Line("build", f"not measured: {' and '.join(missing)} not installed")
        return
    yield from attempt("build", partial(_build, device, small))


def _build(device: str, small: bool) -> Iterator[Line]:
    from manifests.settings import check_settings
    from pipeline.config import BuildSettings
    from pipeline.execution.build import build
    from pipeline.monitoring.progress import Progress
    from pipeline.ray_cluster import connect

    clips_per_shard = 1 if small else 32
    videos, clips, frames = (2, 1, 2) if small else (12, 16, 48)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_videos(root / "videos", videos, clips * frames)
        settings = check_settings(
            BuildSettings,
            {
                "sources": [{"dataset": "video_folder", "root": str(root / "videos")}],
                "frames": {"clip_frames": frames, "min_frames": frames},
                "tracks": {
                    "tracker": "cotracker3",
                    "weights": "random_offline",
                    "anchors": [0] if small else [0, 16, 32],
                    "grid": 4 if small else 16,
                    "iterations": 1 if small else 6,
                },
                "shards": {"clips_per_shard": clips_per_shard},
                "ray": {"tracker_gpus": float(device == "cuda"), "trackers": 1},
                "split": {"eval_fraction": 0.0},
                "out": str(root / "out"),
            },
            "benchmark",
        )
        connect(settings.ray)
        with utilisation(device) as samples:
            started = time.monotonic()
            built = build(settings, Progress(quiet=True))
            wall = time.monotonic() - started
        rows = built.snapshot.shards.to_pylist()
        made = sum(row["clips"] for row in rows)
        tracking = sum(row["track_seconds"] for row in rows)
        yield Line("clips built", float(made), at_least=videos * clips, at_most=videos * clips)
        yield Line("wall time", wall, "s")
        yield Line("tracking, of wall time", 100 * tracking / wall, "%")
        yield Line("clips per second of tracking", made / tracking, "clips/s")
        # The first shard waits for compilation; nothing is tracked after the last one.
        done = sorted(path.stat().st_mtime for path in (root / "out" / "shards").glob("*.tar"))
        speed = (made - clips_per_shard) / (done[-1] - done[0])
        yield Line("clips per second after the first shard", speed, "clips/s")
        if (busy := samples.between(done[0], done[-1])) is not None:
            yield Line("GPU busy after the first shard", busy, "%", at_least=95)


def write_videos(root: Path, videos: int, frames: int) -> None:
    """Write folders of numbered JPEGs, 256 px high; the videos share their pictures' bytes."""
    pictures = moving_pictures(1, min(frames, 96), 256, 340)[0].permute(0, 2, 3, 1).numpy()
    encoded = [jpeg.encode(np.ascontiguousarray(picture), 90) for picture in pictures]
    for video in range(videos):
        folder = root / f"video_{video:03d}"
        folder.mkdir(parents=True)
        for frame in range(frames):
            # there and back again, so that motion stays smooth
            turn = frame % (2 * len(encoded))
            data = encoded[min(turn, 2 * len(encoded) - 1 - turn)]
            (folder / f"{frame:05d}.jpg").write_bytes(data)
