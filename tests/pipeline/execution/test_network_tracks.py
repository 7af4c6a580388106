"""A build with CoTracker3 on Ray's workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.cotracker3.tracking import track
from pipeline.cotracker3.weights import load_model
from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from shards import jpeg
from shards.reader import iterate_shard
from tests.helpers.panning import panning_frames, write_video


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_a_build_through_ray_stores_what_track_gives(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "pan.mp4", panning_frames(0, 6, 64, 48))
    values = {
        "sources": [{"dataset": "video_folder", "root": str(tmp_path / "videos")}],
        "frames": {"clip_frames": 3, "min_frames": 3},
        "tracks": {
            "tracker": "cotracker3",
            "weights": "random_offline",
            "precision": "exact",
            "grid": 2,
            "anchors": [0, 2],
            "iterations": 2,
        },
        "split": {"eval_fraction": 0},
        "out": str(tmp_path / "out"),
    }
    snapshot = build(check_settings(BuildSettings, values, "test"), Progress(quiet=True)).snapshot
    (shard,) = snapshot.shards.column("shard").to_pylist()
    clips = list(iterate_shard(snapshot.shard_path(shard)))
    assert len(clips) == 2
    model = load_model("random_offline")
    for clip in clips:
        video = torch.from_numpy(np.stack([jpeg.decode(data) for data in clip.jpegs])).permute(
            0, 3, 1, 2
        )
        alone = track(model, video[None], grid=2, anchors=(0, 2), iterations=2)
        limits = torch.tensor([64.0, 48.0])
        expected = alone.positions[0].clamp(-limits, 2 * limits).numpy()
        np.testing.assert_allclose(clip.tracks.positions, expected, atol=1 / 64 + 1e-3)
        np.testing.assert_allclose(
            clip.tracks.visibility / 255, alone.visibility[0].numpy(), atol=1 / 255
        )
        assert clip.tracks.anchors.tolist() == [0, 2]
