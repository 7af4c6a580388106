"""A Ray of two cores, and a finished build to change, damage and build again."""

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
    """Ends the Ray that modules share: other tests fork, which its threads do not survive."""
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two_cores() -> None:
    """A Ray of two cores. It stays for the modules after this one: who wants another one ends it first."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


@pytest.fixture(scope="module")
def finished(two_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, and a finished build of them."""
    root = tmp_path_factory.mktemp("finished")
    for seed, (name, frames) in enumerate(VIDEOS.items()):
        write_images(root / "videos" / name, seed, frames)
    build(settings_for(root), Progress(quiet=True))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"
