"""Fixtures: Ray with two cores, and a finished build to change, damage and build again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from tests.helpers.pictures import VIDEOS, settings_for, write_images


@pytest.fixture(scope="package", autouse=True)
def no_ray_afterwards() -> Iterator[None]:
    """Shut down the Ray that modules share: its threads would not survive other tests' forks."""
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_cores() -> None:
    """Start Ray with two cores. Later modules reuse it, unless they shut it down first."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module")
def finished(two_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of videos (`videos/`) and a finished build of them (`out/`)."""
    root = tmp_path_factory.mktemp("finished")
    for seed, (name, frames) in enumerate(VIDEOS.items()):
        write_images(root / "videos" / name, seed, frames)
    build(settings_for(root), Progress(quiet=True))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """Copy the finished folder, for one test to change."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"
