"""The model card: its text is about these weights, and its code loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config import TrainSettings
from trainer.train import train

Make = Callable[..., TrainSettings]


@pytest.mark.slow
def test_the_model_card_says_what_the_weights_are(settings: Make) -> None:
    weights = train(settings(run={"steps": 1}, loss={"sorting": 0.5, "track_mean": {}}))
    card = weights.with_name("README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\nlicense: other\n")
    assert "snapshot `000001`" in card
    assert (
        "the losses 0.5 x `sorting` (objective `spearman`, sorter `torchsort`) + 1 x `track_mean`."
        in card
    )
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace(f'file="{weights.name}"', f'file="{weights}"')
    )
    images = torch.zeros(1, 3, 224, 224)
    found: dict[str, Any] = {"images": images}
    exec(code, found)
    assert found["features"].shape == (1, 28 * 28, 192)
