"""Reader of the checkpoints that the authors of Multi-View Foundation Models released.

    python -m trainer.multiview.released best.pth FOLDER

writes FOLDER/released.safetensors and the files beside it that an export of pretrack has
(`trainer.multiview.export`). It reads the models with DINOv2 with registers, with and without rays.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from shards.errors import SettingsError, exit_on_errors
from shards.files import atomic_write
from trainer.data.settings import DataSettings
from trainer.export import MULTIVIEW_FEATURES
from trainer.model.backbone import BACKBONES, make_backbone, timm_arguments
from trainer.model.weight_file import read_tensors
from trainer.model.weights import load_weights
from trainer.multiview import multiview_model
from trainer.multiview.export import LOADER, adapters_path, describe
from trainer.multiview.multiview_model import SetAdapters, registers_of
from trainer.multiview.settings import MultiviewSettings

BACKBONE = "vit.base_model.model."
ADAPTERS = "spatial_adapters."
RAYS = "plucker_embed.proj."
LORA_ALPHA = 32.0
"""Of the published settings; checkpoints do not have it."""
NAMES = {
    "norm": "norm",
    "spatial_attn.qkv": "qkv",
    "spatial_attn.proj": "proj",
    "ffn.fc1": "fc1",
    "ffn.fc2": "fc2",
    "zero_conv": "zero",
}
"""Layers of an adapter: released → pretrack's."""
SIZES = {384: "dinov2_reg_small", 768: "dinov2_reg_base", 1024: "dinov2_reg_large"}
"""Channels of a backbone → its short name."""


def convert_released(checkpoint: Path, folder: Path) -> Path:
    """Write a released checkpoint as an export of pretrack; return the backbone's weights.

    Raises SettingsError, in one sentence, if it is no released checkpoint of DINOv2 with registers.
    """
    state = {name.removeprefix("model."): value for name, value in read_tensors(checkpoint).items()}
    name, base = _backbone_of(state, checkpoint)
    adapters = _adapters_of(state, checkpoint)
    settings = MultiviewSettings(
        ray_width=len(state[f"{RAYS}bias"]) if f"{RAYS}bias" in state else 0,
        shared=not any(name.startswith("adapters.2.") for name in adapters),
        scale="first_view",
        features="raw",
    )
    _check_adapters(adapters, settings, name, checkpoint)
    backbone = make_backbone(name, None)
    load_weights(backbone.model, base, str(checkpoint), backbone.timm_id)
    path = folder / "released.safetensors"
    atomic_write(path, save(_contiguous(backbone.model.state_dict()), {"format": "pt"}))
    atomic_write(adapters_path(path), save(_contiguous(adapters), {"format": "pt"}))
    atomic_write(folder / LOADER, Path(multiview_model.__file__).read_bytes())
    data = DataSettings.model_fields
    multiview = describe(
        settings,
        blocks=len(backbone.model.blocks),
        timm_arguments=timm_arguments(backbone.timm_id, {}),
    )
    description = {
        "timm_id": backbone.timm_id,
        "options": {},
        "img_size": 518,
        "mean": data["mean"].default,
        "std": data["std"].default,
        "features": MULTIVIEW_FEATURES.format(**multiview),
        "taken_from": checkpoint.name,
        "part_of": "multiview",
        "multiview": multiview,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(description, indent=1).encode())
    return path


def _backbone_of(state: dict[str, Tensor], checkpoint: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the backbone's short name, and its weights with LoRA merged into them.

    Raises SettingsError for another backbone.
    """
    names = [name.removeprefix(BACKBONE) for name in state if name.startswith(BACKBONE)]
    if not names or not any(name.startswith(ADAPTERS) for name in state):
        raise SettingsError(
            f"{checkpoint} is no released multi-view model: it lacks tensors such as "
            f"'{ADAPTERS}0.norm.weight' and '{BACKBONE}cls_token'"
        )
    patches = state.get(f"{BACKBONE}patch_embed.proj.weight")
    fits = "register_tokens" in names and patches is not None and patches.shape[-1] == 14
    short = SIZES.get(patches.shape[0]) if fits and patches is not None else None
    if short is None:
        raise SettingsError(
            f"{checkpoint} is a multi-view model of another backbone, and only those of DINOv2 "
            "with registers can be read: take one of the folders 'dinov2_reg' and "
            "'dinov2_reg_no_plucker'"
        )
    base = {}
    for name in names:
        if ".lora_" in name:
            continue
        value = state[BACKBONE + name]
        plain = name.replace(".base_layer.", ".")
        prefix = BACKBONE + plain.removesuffix(".weight")
        down = state.get(f"{prefix}.lora_A.default.weight")
        up = state.get(f"{prefix}.lora_B.default.weight")
        if plain.endswith(".weight") and down is not None and up is not None:
            value = value + LORA_ALPHA / len(down) * (up @ down)
        base[plain] = value
    return short, base


def _adapters_of(state: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of `SetAdapters`: two adapters if all but the first are one.

    Raises SettingsError if there is not one for each block.
    """
    numbers = {
        int(match[1])
        for name in state
        if (match := re.match(rf"{re.escape(ADAPTERS)}(\d+)\.", name))
    }
    blocks = 1 + max(
        int(match[1])
        for name in state
        if (match := re.match(rf"{re.escape(BACKBONE)}blocks\.(\d+)\.", name))
    )
    if numbers != set(range(blocks)):
        raise SettingsError(
            f"{checkpoint} has adapters after {len(numbers)} of {blocks} blocks: only models with "
            "one after each can be read"
        )

    def adapter(number: int) -> dict[str, Tensor]:
        layers = {}
        for released, ours in NAMES.items():
            for part in ("weight", "bias"):
                key = f"{ADAPTERS}{number}.{released}.{part}"
                if key not in state:
                    raise SettingsError(f"{checkpoint} lacks '{key}'")
                value = state[key]
                # A convolution of 1 x 1 is a linear layer.
                layers[f"{ours}.{part}"] = value.flatten(1) if value.ndim == 4 else value
        return layers

    others = [adapter(number) for number in range(1, blocks)]
    one = all(torch.equal(other[name], others[0][name]) for other in others for name in other)
    kept = [adapter(0), *(others[:1] if one else others)]
    weights = {
        f"adapters.{number}.{name}": value
        for number, layers in enumerate(kept)
        for name, value in layers.items()
    }
    rays = {
        f"rays.{part}": state[f"{RAYS}{part}"]
        for part in ("weight", "bias")
        if f"{RAYS}{part}" in state
    }
    return weights | rays


def _check_adapters(
    adapters: dict[str, Tensor], settings: MultiviewSettings, name: str, checkpoint: Path
) -> None:
    """Raise SettingsError if adapters do not fit a backbone."""
    with torch.device("meta"):
        backbone = make_backbone(name, None)
        expected = SetAdapters(
            width=backbone.width,
            blocks=len(backbone.model.blocks),
            patch=backbone.patch,
            registers=registers_of(backbone.model),
            heads=settings.heads,
            ray_width=settings.ray_width,
            shared=settings.shared,
            pool=1,
        ).state_dict()
    for key, value in expected.items():
        if key not in adapters or adapters[key].shape != value.shape:
            shape = "none" if key not in adapters else "x".join(map(str, adapters[key].shape))
            raise SettingsError(
                f"{checkpoint} does not fit {BACKBONES[name]} with {settings.ray_width} channels "
                f"of rays: '{key}' should be {'x'.join(map(str, value.shape))} and is {shape}"
            )


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


@exit_on_errors("trainer", extra="train", interrupted="stopped.")
def main() -> None:
    """Convert the checkpoint of the command line."""
    if len(sys.argv) != 3:
        raise SettingsError("usage: python -m trainer.multiview.released best.pth FOLDER")
    print(f"wrote {convert_released(Path(sys.argv[1]), Path(sys.argv[2]))}")


if __name__ == "__main__":
    main()
