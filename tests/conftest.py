"""What several tests need."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.environment import environment
from tests.helpers.object_store import Behaviour, faulty_store

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # threads that wait busily keep those of the tests beside from working
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a script's "&" ignores it, and so would what tests start and stop
settings.register_profile("pretrack", deadline=None, derandomize=True)
settings.load_profile("pretrack")


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[None]:
    """A folder for what Ray never deletes; it goes when the tests end. Paths in pytest's own are too long for Ray's sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        environment({"RAY_TMPDIR": folder}),
    ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real samples in the datasets' own layouts; most machines have none, and the tests that want it are skipped."""
    shared = os.environ.get("PRETRACK_SHARED", str(Path(__file__).parents[2] / "shared"))
    folder = Path(shared) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (PRETRACK_SHARED names another folder)")
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Behaviour]:
    """An object store of a module's own, to which `s3://` leads; it can be told to fail."""
    with faulty_store() as behaviour:
        yield behaviour
