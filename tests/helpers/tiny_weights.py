"""Weights of tiny backbones, and a check that a file gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.model.backbone import Backbone, make_backbone

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
State = dict[str, Tensor]


def random_state(name: str, options: dict[str, Any] | None = None, seed: int = 0) -> State:
    """Weights of a tiny backbone in timm's names; none is 0 or 1."""
    model = make_backbone(name, None, {**TINY, **(options or {})}).model
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator) * 0.2
        for key, value in model.state_dict().items()
    }


def images_of(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))


def assert_loads(path: Path | str, name: str, state: State, options: Any = None) -> Backbone:
    """A backbone from a file has exactly these weights."""
    backbone = make_backbone(name, str(path), {**TINY, **(options or {})})
    loaded = backbone.model.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key
    return backbone
