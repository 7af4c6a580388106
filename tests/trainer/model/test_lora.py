"""Adapters: trained alone, in the layers that are named, and merged into the export."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import timm
import torch

from shards.errors import SettingsError
from tests.trainer.test_train import last_state
from trainer.config import TrainSettings
from trainer.model.backbone import make_backbone
from trainer.model.lora import add_adapters
from trainer.model.settings import LoraSettings
from trainer.run_setup import make_step
from trainer.train import train

Make = Callable[..., TrainSettings]


@pytest.mark.parametrize(
    "layers", [("qkv", "proj"), pytest.param(("fc1", "fc2"), marks=pytest.mark.slow)]
)
def test_adapters_are_trained_alone_and_merged_into_what_is_exported(
    settings: Make, layers: tuple[str, ...]
) -> None:
    lora = {"rank": 2, "alpha": 4, "layers": layers}
    s = settings(model={"lora": lora}, optim={"lr": 0.1}, run={"steps": 2, "pictures": 1})
    weights = train(s)
    state = last_state(s)["student"]
    start = make_backbone(
        s.model.backbone, str(weights.with_name("step_00000000.safetensors")), s.model.options
    )
    for name, value in start.model.state_dict().items():
        *parts, last = name.split(".")
        stored = state.get(
            f"backbone.model.{name}",
            state.get(f"backbone.model.{'.'.join([*parts, 'base_layer', last])}"),
        )
        assert torch.equal(value, stored), name  # neither weights nor biases of the blocks moved
    adapted = {
        name.split(".")[3] for name in state if "lora_B" in name and state[name].abs().max() > 0
    }
    assert adapted == {"1", "2"}

    torch.manual_seed(0)
    model = make_step(s, last_state(s), torch.device("cpu")).eval()
    description = json.loads(weights.with_suffix(".json").read_bytes())
    plain = timm.create_model(
        description["timm_id"],
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(weights)},
        **s.model.options,
    ).eval()
    images = torch.randn(2, 3, 224, 224)
    expected = model.student.backbone(images).flatten(1, 2)
    torch.testing.assert_close(plain.forward_features(images)[:, 1:], expected, rtol=0, atol=1e-4)
    assert not torch.allclose(start(images).flatten(1, 2), expected, atol=1e-3)
    train(settings(model={"lora": lora}, optim={"lr": 0.1}, run={"steps": 3}))
    assert last_state(s)["step"] == 3


def test_layers_that_no_block_has_are_refused() -> None:
    backbone = make_backbone("vit_tiny_patch16_224", None, {"depth": 2})
    backbone.freeze(1, train_norm=False)
    with pytest.raises(
        SettingsError,
        match=r"names 'query', and a block of vit_tiny_patch16_224 "
        r"has attn.qkv, attn.proj, mlp.fc1",
    ):
        add_adapters(backbone, LoraSettings(layers=("qkv", "query")))


def test_layers_are_adapted_by_their_whole_names() -> None:
    backbone = make_backbone("eva02_tiny_patch14_224", None, {"depth": 2})
    backbone.freeze(1, train_norm=False)
    add_adapters(backbone, LoraSettings(layers=("proj",)))
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert [name.split(".")[1:5] for name in trained] == [
        ["blocks", "1", "attn", "proj"]
    ] * 2  # and not q_proj, k_proj, v_proj
