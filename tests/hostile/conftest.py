"""Limit memory, to see that refused data takes none."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

MEMORY = 1 << 30
"""Bytes that a test may take on top of what the imports take."""


@pytest.fixture
def little_memory() -> Any:
    """Limit this process to MEMORY more bytes.

    Data that unpacks to more ends in a MemoryError, which no test expects.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
