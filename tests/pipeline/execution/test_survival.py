"""Builds whose workers are killed (by SIGKILL) make all they can and report the rest."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from pipeline.config import BuildSettings
from pipeline.execution.build import BuildResult, build
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.shard_runner import make_shards
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.status import status
from pipeline.trackers.lucas_kanade import LucasKanadeSettings
from shards.errors import PretrackError
from tests.helpers.brittle_tracker import (
    DiesOfRed,
    DiesOnce,
    DiesWhileLoading,
    FailsAfterRed,
    Slow,
    WithoutWeights,
    with_tracker,
)
from tests.helpers.panning import panning_frames, write_video
from tests.pipeline.execution.test_build import QUIET, contents, plan, settings_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def three_cores() -> Iterator[None]:
    ray.shutdown()
    metrics = {"metrics_report_interval_ms": 1000}  # by default ten seconds
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, _system_config=metrics)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of two videos that pan, and one of a video that is all red."""
    root = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("a.mp4", "c.mp4")):
        write_video(root / name, panning_frames(seed, 20))
    write_video(root / "b-red.mp4", [np.full((120, 160, 3), (255, 0, 0), np.uint8)] * 10)
    return root


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return build(in_small_shards(videos, tmp_path_factory.mktemp("out")), QUIET)


def in_small_shards(videos: Path, out: Path) -> BuildSettings:
    return settings_for(videos, out, shards={"clips_per_shard": 3}, ray={"trackers": 2})


def events(out: Path) -> list[dict[str, object]]:
    """The events in the build's log."""
    return [json.loads(line) for line in (out / "build.log").read_text().splitlines()]


def names(out: Path) -> list[object]:
    return [event["event"] for event in events(out)]


def without_red(built: BuildResult) -> dict[str, tuple[bytes, ...]]:
    return {key: clip for key, clip in contents(built.snapshot).items() if "red" not in key}


@pytest.mark.parametrize("kind", [DiesOfRed, FailsAfterRed])
def test_a_clip_that_kills_the_tracker_is_left_out_alone(
    kind: type[LucasKanadeSettings], videos: Path, tmp_path: Path, undisturbed: BuildResult
) -> None:
    settings = with_tracker(in_small_shards(videos, tmp_path), kind)
    built = build(settings, QUIET)
    (failure,) = built.snapshot.failures.to_pylist()
    assert (failure["video_id"], failure["stage"], failure["reason"]) == (
        "b-red.mp4",
        "track",
        "tracker crashed",
    )
    assert contents(built.snapshot) == without_red(undisturbed)
    assert verify_snapshot(built.snapshot, QUIET) == []
    logged = names(tmp_path)
    assert logged.count("tracker lost") == 3, "twice with its shard, once alone"
    assert logged.count("shard isolated") == logged.count("clip left out") == 1
    assert logged[0] == "build started"
    assert logged[-2:] == ["snapshot published", "build finished"]
    assert status(tmp_path)["build"]["reasons"] == [
        {"stage": "track", "reason": "tracker crashed", "count": 1}
    ]

    healed = build(in_small_shards(videos, tmp_path), QUIET)
    assert healed.made == 1, "it may have been the machine, so the next build tries again"
    assert contents(healed.snapshot) == contents(undisturbed.snapshot)


def test_a_tracker_that_dies_is_replaced(
    videos: Path, tmp_path: Path, undisturbed: BuildResult
) -> None:
    settings = with_tracker(in_small_shards(videos, tmp_path / "out"), DiesOnce)
    assert isinstance(settings.tracks, DiesOnce)
    settings.tracks._flag = tmp_path / "flag"
    built = build(settings, QUIET)
    assert (tmp_path / "flag").exists()
    assert contents(built.snapshot) == contents(undisturbed.snapshot)
    assert built.snapshot.failures.num_rows == 0
    assert names(tmp_path / "out").count("tracker lost") == 1
    assert "shard isolated" not in names(tmp_path / "out")


def kill_readers(video: Path, real: Path, ended: threading.Event, most: int) -> int:
    """Kill the workers that open `video`, up to `most`; return how many were killed.

    `video` is a named pipe until the last death, and the `real` file after it. Stops when `ended`.
    """
    video.unlink()
    os.mkfifo(video)
    killed = 0
    while not ended.wait(0.02) and killed < most:
        try:
            pipe = os.open(video, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            continue
        # A reader is blocked in `open` until we open the pipe, and shows up a moment later.
        while not (readers := readers_of(video)) and not ended.is_set():
            time.sleep(0.01)
        if killed + 1 == most:
            os.link(real, video.with_suffix(".real"))
            video.with_suffix(".real").rename(video)
        for reader in readers:
            reader.suspend()  # so that it does not see the pipe's end before it dies
        os.close(pipe)  # before the next reader can come
        for reader in readers:
            os.kill(reader.ppid(), signal.SIGKILL)
            reader.wait()
            killed += 1
    return killed


def readers_of(file: Path) -> list[psutil.Process]:
    """The decoder processes that have `file` open."""
    readers = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error, OSError):
            links = [os.path.realpath(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            if "pipeline.decode.worker" in (process.info["cmdline"] or []) and str(file) in links:
                readers.append(process)
    return readers


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_decoding_worker_that_is_killed(
    deaths: int, videos: Path, tmp_path: Path, undisturbed: BuildResult
) -> None:
    """One death may be chance; a clip whose worker dies even when decoded alone is left out."""
    root = tmp_path / "videos"
    root.mkdir()
    for video in videos.iterdir():
        os.link(video, root / video.name)
    settings = in_small_shards(root, tmp_path / "out")
    planned = plan(settings)
    ended, killed = threading.Event(), []
    victim = root / "b-red.mp4"

    def kill() -> None:
        killed.append(kill_readers(victim, videos / victim.name, ended, deaths))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        make_shards(list(planned.shards), planned, settings, BuildMonitor(settings.out, QUIET))
    finally:
        ended.set()
        killer.join()
    assert killed == [deaths]
    assert names(tmp_path / "out").count("decoder lost") == min(deaths, 2)
    left_out = [] if deaths < 3 else [{"stage": "decode", "reason": "decoder crashed", "count": 1}]
    assert status(tmp_path / "out")["build"]["reasons"] == left_out
    built = build(settings, QUIET)
    assert built.made == len(left_out), "a clip whose decoder crashed is retried"
    assert contents(built.snapshot) == contents(undisturbed.snapshot)


def test_a_tracker_that_cannot_be_loaded_stops_the_build_with_its_sentence(
    videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(PretrackError, match=r"^there are no weights at /not/there$"):
        build(with_tracker(in_small_shards(videos, tmp_path), WithoutWeights), QUIET)
    assert status(tmp_path)["build"]["state"] == "failed"
    assert not list(tmp_path.rglob("*.tar"))


def test_a_tracker_that_always_dies_while_loading_stops_the_build(
    videos: Path, tmp_path: Path
) -> None:
    settings = settings_for(videos, tmp_path, ray={"trackers": 1})
    with pytest.raises(PretrackError, match=r"every tracker dies while it is loaded"):
        build(with_tracker(settings, DiesWhileLoading), QUIET)


def test_status_of_a_build_that_runs(videos: Path, tmp_path: Path) -> None:
    settings = with_tracker(
        settings_for(videos, tmp_path, shards={"clips_per_shard": 1}, ray={"trackers": 1}), Slow
    )
    seen = []
    with ThreadPoolExecutor(1) as aside:
        building = aside.submit(build, settings, QUIET)
        while not building.done():
            if (tmp_path / "build.json").exists():
                seen.append(status(tmp_path)["build"])
            time.sleep(0.1)
        building.result()
    halfway = next(
        state for state in seen if 2 <= state["shards_done"] < 5 and state["state"] == "running"
    )
    done, left = halfway["shards_done"], halfway["shards_left"]
    assert done + halfway["shards_running"] + left == halfway["shards_total"] == 5
    assert max(state["shards_running"] for state in seen) == 3, (
        "one is tracked, one waits for its turn, one is decoded"
    )
    assert halfway["clips_done"] == done
    assert halfway["seconds_left"] == pytest.approx((5 - done) / halfway["clips_per_s"])
    assert halfway["slowest_stage"] == "track"
    assert 0.2 < halfway["trackers_busy"] <= 1
    ended = status(tmp_path)["build"]
    assert (
        ended["state"],
        ended["shards_done"],
        ended["shards_running"],
        ended["shards_left"],
    ) == ("finished", 5, 0, 0)
    assert ended["stage_seconds"]["track"] >= 5 * 0.5


def test_figures_are_on_rays_metrics_endpoint(videos: Path, tmp_path: Path) -> None:
    sources = [{"dataset": "video_folder", "name": "metered", "root": str(videos)}]
    settings = settings_for(videos, tmp_path, sources=sources, shards={"clips_per_shard": 3})
    built = build(with_tracker(settings, DiesOfRed), QUIET)
    clips = built.snapshot.clips.to_pylist()
    for _ in range(60):  # they are exported every second
        metrics = exported('source="metered"')
        if metrics["ray_pretrack_clips_total"] == len(clips):
            break
        time.sleep(0.5)
    assert metrics["ray_pretrack_clips_total"] == len(clips) == 4
    assert metrics["ray_pretrack_frames_total"] == sum(clip["frames"] for clip in clips)
    assert metrics["ray_pretrack_bytes_total"] == sum(
        built.snapshot.shards.column("bytes").to_pylist()
    )
    assert metrics["ray_pretrack_failures_total"] == 1
    assert metrics["ray_pretrack_stage_seconds_count"] == 3 * built.made
    assert {"ray_pretrack_trackers", "ray_pretrack_trackers_busy"} <= exported("").keys()


def exported(label: str) -> Counter[str]:
    """Our metrics with a label, by name, as Prometheus reads them."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    figures = Counter[str]()
    for line in lines:
        if line.startswith("ray_pretrack_") and label in line:
            name, value = line.rsplit(" ", 1)
            figures[name.split("{")[0]] += float(value)  # type: ignore[assignment]
    return figures
