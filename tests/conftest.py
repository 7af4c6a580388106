"""Fixtures and settings for all tests."""

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

# Threads that wait busily would slow down the tests in the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray takes a node for dead after five failed checks, by default three seconds apart.
os.environ.setdefault("RAY_health_check_period_ms", "1000")
# A shell script's "&" starts processes that ignore SIGINT; processes that tests start and interrupt
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("pretrack", deadline=None, derandomize=True)
settings.load_profile("pretrack")


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[None]:
    """Give Ray, which never deletes its files, a folder that is removed when the tests end.

    Paths in pytest's own folders are too long for Ray's sockets.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        environment({"RAY_TMPDIR": folder}),
    ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give a folder of real samples in the datasets' own layouts.

    Most machines have none; the tests that need it are skipped there.
    """
    shared = os.environ.get("PRETRACK_SHARED", str(Path(__file__).parents[2] / "shared"))
    folder = Path(shared) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (PRETRACK_SHARED names another folder)")
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Behaviour]:
    """Run an object store for one test module, reached by `s3://`; it can be told to fail."""
    with faulty_store() as behaviour:
        yield behaviour
