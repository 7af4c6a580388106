"""Builds on a Ray cluster of several nodes (all on this machine) while nodes are killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from manifests.receipt import list_receipts
from pipeline.config import BuildSettings
from pipeline.execution import tracker_pool
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from tests.helpers.brittle_tracker import Slow, with_tracker
from tests.helpers.panning import panning_frames, write_video
from tests.pipeline.execution.test_build import QUIET, contents, settings_for
from tests.pipeline.execution.test_survival import names

pytestmark = pytest.mark.slow

CLIPS = 12
NODE = {"object_store_memory": 100_000_000}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster with one node of two cores."""
    ray.shutdown()
    running = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **NODE}
    )
    ray.init(address=running.address, log_to_driver=False)
    yield running
    ray.shutdown()
    running.shutdown()


@pytest.fixture
def settings(tmp_path: Path) -> BuildSettings:
    """A build of one clip per shard."""
    for seed in range(CLIPS):
        write_video(tmp_path / "videos" / f"{seed}.mp4", panning_frames(seed, 10))
    return settings_for(tmp_path / "videos", tmp_path / "out", shards={"clips_per_shard": 1})


def until(happened: Callable[[], bool]) -> None:
    """Wait until something happened, for two minutes at most."""
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def undisturbed(settings: BuildSettings, out: Path) -> dict[str, tuple[bytes, ...]]:
    """The contents of an undisturbed build with a tracker that is not slow."""
    return contents(build(settings.model_copy(update={"out": out}), QUIET).snapshot)


def test_a_node_that_dies_loses_no_shard(
    cluster: Any, settings: BuildSettings, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=2, **NODE)
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as aside:
        building = aside.submit(build, with_tracker(settings, Slow), QUIET)
        until(
            lambda: (
                out.is_dir()
                and names_of(out).count("tracker ready") == 2
                and len(list_receipts(out)) >= 2
            )
        )
        cluster.remove_node(node, allow_graceful=False)
        built = building.result(timeout=240)
    assert len(list_receipts(out)) == built.made == CLIPS
    assert {"tracker lost", "tracker stopped"} & set(names_of(out))
    assert built.snapshot.failures.num_rows == 0
    assert verify_snapshot(built.snapshot, QUIET) == []
    assert contents(built.snapshot) == undisturbed(settings, tmp_path / "other")


def test_a_build_waits_for_the_gpu_it_lost(
    cluster: Any, settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_pool, "PATIENCE_S", 1.0)
    node = cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
    out = tmp_path / "out"
    gpu = settings.ray.model_copy(update={"tracker_gpus": 1.0})
    on_gpu = with_tracker(settings.model_copy(update={"ray": gpu}), Slow)
    with ThreadPoolExecutor(1) as aside:
        building = aside.submit(build, on_gpu, QUIET)
        until(lambda: out.is_dir() and len(list_receipts(out)) >= 2)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: "waiting for a tracker" in names_of(out))
        assert not building.done()
        cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
        built = building.result(timeout=240)
    assert built.made == CLIPS
    assert contents(built.snapshot) == undisturbed(settings, tmp_path / "other")


def names_of(out: Path) -> list[object]:
    """The names of the events so far."""
    return names(out) if (out / "build.log").exists() else []
