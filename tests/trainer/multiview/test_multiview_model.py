"""Views of a set see each other and no other set; before training nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config import TrainSettings
from trainer.losses.keep_base import distance_from_base
from trainer.model.backbone import make_backbone
from trainer.model.lora import add_adapters
from trainer.model.settings import LoraSettings
from trainer.multiview.step import MultiviewStep, make_adapters

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}
MODELS = {
    "vit_tiny_patch16_224": SMALL,
    "dinov2_reg_small": SMALL,
    "dinov3_small": SMALL,
}
LORA = {"rank": 2, "alpha": 2.0, "layers": ("qkv",)}


def step_of(
    name: str = "vit_tiny_patch16_224",
    options: dict[str, Any] | None = None,
    *,
    lora: dict[str, Any] | None = LORA,
    **multiview: Any,
) -> MultiviewStep:
    """Make a model with random weights, the same for the same arguments."""
    torch.manual_seed(0)
    options = SMALL if options is None else options
    backbone = make_backbone(name, None, options)
    blocks = len(backbone.model.blocks)
    settings = TrainSettings.model_validate(
        {
            "method": "multiview",
            "data": {"out": ".", "frames": 3, "size": 4 * backbone.patch},
            "model": {
                "backbone": name,
                "weights": "random",
                "options": options,
                "trainable_blocks": blocks,
                "lora": lora,
            },
            "multiview": {"ray_width": 16, "heads": 8, **multiview},
            "run": {"out": ".", "steps": 1, "batch_size": 2},
        }
    )
    assert settings.multiview
    backbone.freeze(blocks, train_norm=False)
    backbone.requires_grad_(False)
    if lora:
        add_adapters(backbone, LoraSettings.model_validate(lora))
    return MultiviewStep(backbone, make_adapters(backbone, settings.multiview, blocks), settings)


def inputs_of(model: MultiviewStep, sets: int = 2, views: int = 3) -> tuple[Tensor, Tensor]:
    """Return random images [B * M, 3, S, S] and rays [B, M, 6, S, S]."""
    random, side = torch.Generator().manual_seed(1), model.settings.data.size
    images = torch.randn(sets * views, 3, side, side, generator=random)
    return images, torch.randn(sets, views, 6, side, side, generator=random)


def features_of(model: MultiviewStep, images: Tensor, rays: Tensor) -> Tensor:
    return model.set_features(model.backbone.trunk(images), rays.shape[1], rays)


def trained(model: MultiviewStep) -> MultiviewStep:
    """Give every adapter a change of its own."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and ("zero" in name or "lora_B" in name):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=random))
    return model.eval()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("features", ["normed", "raw"])
def test_before_training_features_are_the_base_models_bit_for_bit(name: str, features: str) -> None:
    model = step_of(name, MODELS[name], features=features).eval()
    images, rays = inputs_of(model)
    base = model.backbone
    if features == "normed":
        expected = base(images)
    else:
        tokens = base.model.forward_intermediates(images, indices=1, intermediates_only=True)[0]
        expected = tokens.permute(0, 2, 3, 1)
    with torch.no_grad():
        assert torch.equal(features_of(model, images, rays).flatten(0, 1), expected)
        assert torch.equal(model.base_features(base.trunk(images), 3).flatten(0, 1), expected)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("pool", [1, 2])
@torch.no_grad()
def test_views_see_their_own_set_and_no_other(name: str, pool: int) -> None:
    model = trained(step_of(name, MODELS[name], pool=pool, shared=pool == 1))
    images, rays = inputs_of(model)
    before = features_of(model, images, rays)
    base = model.base_features(model.backbone.trunk(images), 3)
    assert (before - base).abs().max() > 1e-3
    # View 2 of set 1 changes.
    changed = images.clone()
    changed[5] = -changed[5]
    after = features_of(model, changed, rays)
    assert torch.equal(after[0], before[0])
    assert (after[1, 0] - before[1, 0]).abs().max() > 1e-4
    # Views 1 and 2 change places.
    order = [0, 2, 1]
    swapped = features_of(
        model, images.view(2, 3, *images.shape[1:])[:, order].flatten(0, 1), rays[:, order]
    )
    torch.testing.assert_close(swapped, before[:, order], rtol=0, atol=1e-5)
    # What the base model sees has not changed with training.
    untrained = step_of(name, MODELS[name], pool=pool, shared=pool == 1).eval()
    torch.testing.assert_close(base.flatten(0, 1), untrained.backbone(images), rtol=0, atol=0)


def test_pooled_attention_fits_grids_of_odd_sides() -> None:
    model = trained(step_of(pool=2))
    images = torch.randn(2, 3, 16 * 3, 16 * 5)
    found = features_of(model, images, torch.randn(1, 2, 6, 16 * 3, 16 * 5))
    assert found.shape == (1, 2, 3, 5, 48)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_reach_the_zero_layers_first_and_then_everything(shared: bool) -> None:
    model = step_of(shared=shared)
    images, rays = inputs_of(model)
    target = torch.randn(2, 3, 4, 4, 48, generator=torch.Generator().manual_seed(3))

    def gradients() -> set[str]:
        model.zero_grad()
        ((features_of(model, images, rays) - target) ** 2).mean().backward()
        return {
            name
            for name, weight in model.named_parameters()
            if weight.grad is not None and weight.grad.abs().max() > 0
        }

    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    first = gradients()
    assert first == {name for name in names if "zero" in name or "lora_B" in name}
    torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-2).step()
    assert gradients() == set(names)
    assert all("adapters" in name or "lora_" in name for name in names)
    assert sum("zero.weight" in name for name in names) == (2 if shared else 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "other", "rays", "lora", "shared", "apart"),
    [
        ("dinov2_reg_small", 3348352, 1921536, 150656, 589824, 6010368, 25225728),
        ("dinov2_reg_base", 10332544, 7676928, 150656, 1179648, 19339776, 96109056),
    ],
)
def test_parameter_counts_are_the_published_ones(
    name: str, first: int, other: int, rays: int, lora: int, shared: int, apart: int
) -> None:
    with torch.device("meta"):
        sizes = {"ray_width": 128, "heads": 8}
        model = step_of(name, {}, lora={"rank": 32, "layers": ("qkv",)}, **sizes)
        own = step_of(name, {}, lora={"rank": 32, "layers": ("qkv",)}, shared=False, **sizes)

    def count(module: torch.nn.Module | None) -> int:
        assert module
        return sum(w.numel() for w in module.parameters() if w.requires_grad)

    assert [count(adapter) for adapter in model.adapters.adapters] == [first, other]
    assert count(model.adapters.rays) == rays
    assert count(model.backbone) == lora
    assert (count(model), count(own)) == (shared, apart)


def test_the_regulariser_is_zero_at_the_base_model_and_its_gradient_stays_off_it() -> None:
    base = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    assert distance_from_base(base, base).item() == pytest.approx(0, abs=1e-6)
    # Twice as long: |2 - 1| = 1. At right angles: 1 - 0 = 1, half of all patches.
    features = torch.tensor([[6.0, 8.0], [4.0, 0.0]], requires_grad=True)
    loss = distance_from_base(features, base)
    assert loss.item() == pytest.approx(1 + 0.5)
    loss.backward()
    assert base.grad is None
    assert features.grad is not None
