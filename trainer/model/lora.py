"""Low-rank adapters (LoRA, Hu et al. 2021) in a backbone's last blocks, by peft, instead of training those blocks' own weights."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from shards.errors import SettingsError
from trainer.config import LoraSettings
from trainer.model.backbone import Backbone


def add_adapters(backbone: Backbone, settings: LoraSettings) -> None:
    """Freezes the whole backbone and gives the layers of its tail adapters, which start as zero: `backbone.frozen` stays.

    Raises SettingsError where peft is not installed, and for layers that the blocks lack.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError("'model.lora' needs peft: pip install 'pretrack[lora]'") from error
    blocks = range(backbone.frozen, len(backbone.model.blocks))
    inside = [
        name
        for name, layer in backbone.model.blocks[-1].named_modules()
        if isinstance(layer, nn.Linear)
    ]
    unknown = [
        name
        for name in settings.layers
        if not any(found.split(".")[-1] == name for found in inside)
    ]
    if unknown:
        raise SettingsError(
            f"'model.lora.layers' names '{unknown[0]}', and a block of {backbone.timm_id} has {', '.join(inside)}"
        )
    norm = any(p.requires_grad for p in backbone.model.norm.parameters())  # it may be none
    backbone.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"blocks\.({'|'.join(map(str, blocks))})\.(.*\.)?({'|'.join(map(re.escape, settings.layers))})",
    )
    inject_adapter_in_model(config, backbone.model)
    backbone.model.norm.requires_grad_(norm)


def without_adapters(backbone: Backbone) -> nn.Module:
    """The timm model with its adapters added into the weights they adapt: a copy, or the model itself where it has none."""
    if not any(".lora_" in name for name, _ in backbone.model.named_parameters()):
        return backbone.model
    from peft.tuners.tuners_utils import BaseTunerLayer  # takes seconds to import

    adapted = [
        name for name, layer in backbone.model.named_modules() if isinstance(layer, BaseTunerLayer)
    ]
    model: Any = copy.deepcopy(backbone.model)
    for name in adapted:
        layer = model.get_submodule(name)
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    return model
