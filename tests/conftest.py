"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real samples in the datasets' own layouts; most machines have none, and the tests that want it are skipped."""
    shared = os.environ.get("PRETRACK_SHARED", str(Path(__file__).parents[2] / "shared"))
    folder = Path(shared) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (PRETRACK_SHARED names another folder)")
    return folder
