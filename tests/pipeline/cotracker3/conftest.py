"""Fixtures of the tests of CoTracker3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pipeline.cotracker3 import tracking


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the network a sixteenth of its pixels.

    For tests that compare our tracks with one another: the time goes into encoding frames.
    """
    monkeypatch.setattr(tracking, "MODEL_HEIGHT", 96)
    monkeypatch.setattr(tracking, "MODEL_WIDTH", 128)
