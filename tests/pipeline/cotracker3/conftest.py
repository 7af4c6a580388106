"""Fixtures of the tests of CoTracker3."""

from __future__ import annotations

import pytest

from tests.helpers.fake_gpu import FakeGpu


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A fake GPU; torch believes that there is one, with bfloat16."""
    monkeypatch.setattr("torch.cuda._lazy_init", lambda: None)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.Tensor.pin_memory", lambda self, *_: self)
    return FakeGpu()
