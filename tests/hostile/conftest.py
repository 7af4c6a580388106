"""Little memory, to see that what is refused takes none."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

MEMORY = 1 << 30
"""More than a test of what is refused may take on top of what the imports take."""


@pytest.fixture
def little_memory() -> Any:
    """Lets this process take no more than MEMORY more: what unfolds ends in a MemoryError, which no test expects."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
