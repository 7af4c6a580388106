"""Fixtures: Ray with two cores, a fake GPU, and a finished build to change and build again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from pipeline.execution.build import build
from pipeline.monitoring.progress import Progress
from tests.helpers.pictures import VIDEOS, settings_for, write_images

if TYPE_CHECKING:
    from tests.helpers.fake_gpu import FakeGpu


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


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A fake GPU; torch believes that there is one, with bfloat16."""
    from tests.helpers.fake_gpu import FakeGpu  # torch takes seconds, and few tests need it

    monkeypatch.setattr("torch.cuda._lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda self, *_: self)
    return FakeGpu()
