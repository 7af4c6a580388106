"""Low-rank adapters (LoRA, Hu et al. 2021) in a backbone's last blocks, by peft.

They are trained instead of the blocks' own weights.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from shards.errors import SettingsError
from trainer.model.backbone import Backbone
from trainer.model.settings import LoraSettings


def add_adapters(backbone: Backbone, settings: LoraSettings) -> None:
    """Freeze the backbone's weights and add adapters, initially zero, to the layers of its tail.

    The cut between trunk and tail (`backbone.frozen`) stays, and so does whether the final norm is
    trained. Raises SettingsError if peft is not installed, and for layers that the blocks lack.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError("'model.lora' needs peft: pip install 'pretrack[lora]'") from error
    blocks = range(backbone.frozen, len(backbone.model.blocks))
    linear_layers = [
        name
        for name, layer in backbone.model.blocks[-1].named_modules()
        if isinstance(layer, nn.Linear)
    ]
    last_parts = {name.split(".")[-1] for name in linear_layers}
    unknown = [name for name in settings.layers if name not in last_parts]
    if unknown:
        raise SettingsError(
            f"'model.lora.layers' names '{unknown[0]}', and a block of {backbone.timm_id} has "
            f"{', '.join(linear_layers)}"
        )
    # Freezing all and adding adapters both change `requires_grad`, also the final norm's.
    train_norm = any(p.requires_grad for p in backbone.model.norm.parameters())
    backbone.requires_grad_(False)
    block_numbers = "|".join(map(str, blocks))
    layers = "|".join(map(re.escape, settings.layers))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        # peft matches the whole dotted name, so `proj` does not match `q_proj`.
        target_modules=rf"blocks\.({block_numbers})\.(.*\.)?({layers})",
    )
    inject_adapter_in_model(config, backbone.model)
    backbone.model.norm.requires_grad_(train_norm)


def without_adapters(backbone: Backbone) -> nn.Module:
    """Return a copy of the timm model with its adapters merged into the weights that they adapt.

    Without adapters the model itself is returned.
    """
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


def base_model(backbone: Backbone) -> Backbone:
    """Return the backbone as it is without its adapters, in evaluation mode, sharing every weight.

    Nothing is copied but the modules' own bookkeeping. Make another one if modules are replaced.
    """
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:  # then there are no adapters
        BaseTunerLayer = ()  # type: ignore[misc, assignment]

    def twin(module: nn.Module) -> nn.Module:
        source = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        # The dictionary of parameters is shared, so a weight that is moved is moved here too.
        copied = copy.copy(source)
        copied._modules = {
            name: part if part is None else twin(part) for name, part in source._modules.items()
        }
        copied.training = False
        copied._compiled_call_impl = None  # of the module with adapters
        return copied

    base = copy.copy(backbone)
    base._modules = {"model": twin(backbone.model)}
    return base
