"""The lock of an output folder: one build holds it, and only a dead one loses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.lock import only_build


def test_a_builds_own_blocking_error_is_not_another_build(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), only_build(tmp_path):
        raise BlockingIOError
