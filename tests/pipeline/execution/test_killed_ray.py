"""A build whose Ray is killed ends with one sentence, and the next one continues."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.monitoring.status import status
from tests.helpers.panning import panning_frames, write_video

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("victim", ["raylet", "ray::DashboardAgent"])
def test_a_build_whose_ray_is_killed_ends_with_one_sentence(victim: str, tmp_path: Path) -> None:
    """Ray's native code often ends the process at once, so that no Python code can say why."""
    for seed in range(4):
        write_video(tmp_path / "videos" / f"{seed}.mp4", panning_frames(seed, 60))
    source = {"dataset": "video_folder", "name": "pans", "root": str(tmp_path / "videos")}
    config = {
        "sources": [source],
        "frames": {"clip_frames": 10, "min_frames": 6, "short_side": 96},
        "tracks": {"tracker": "lucas_kanade", "grid": 24, "anchors": [0, 4, 8]},
        "shards": {"clips_per_shard": 1},
        "out": str(tmp_path / "out"),
        "ray": {"cpus": 2},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pipeline", "build", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while not (tmp_path / "out" / ".receipts").is_dir():
            assert build.poll() is None
            time.sleep(0.05)
        for child in psutil.Process(build.pid).children(recursive=True):
            with suppress(psutil.Error, IndexError):  # some end while they are listed
                if victim in (
                    Path(word).name for word in " ".join(child.cmdline()[:1]).split()[:1]
                ):
                    child.kill()
        errors = build.stderr.read()
    said = [line for line in errors.splitlines() if line.startswith("pretrack: ")]
    assert len(said) == 1
    assert said[0].startswith("pretrack: Ray on this machine")
    assert "for lack of memory" in said[0]
    assert "Traceback" not in errors
    assert build.returncode == 1
    assert status(tmp_path / "out")["build"]["state"] in ("killed", "failed")
