"""Checkpoints with the names and shapes of the released ones become exports of pretrack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import SettingsError
from trainer.model.weights import load_weights
from trainer.multiview.multiview_model import load, ray_map
from trainer.multiview.released import BACKBONE, convert_released

DINOV2 = "vit_small_patch14_reg4_dinov2.lvd142m"
WIDTH, BLOCKS, RAY_WIDTH = 384, 12, 128


def adapter_weights(inputs: int, random: torch.Generator) -> dict[str, Tensor]:
    shapes = {
        "norm": (inputs,),
        "spatial_attn.qkv": (3 * inputs, inputs),
        "spatial_attn.proj": (inputs, inputs),
        "ffn.fc1": (4 * inputs, inputs),
        "ffn.fc2": (inputs, 4 * inputs),
        "zero_conv": (WIDTH, inputs, 1, 1),
    }
    return {
        f"{name}.{part}": 0.05
        * torch.randn(shape if part == "weight" else shape[:1], generator=random)
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


def hub_weights(random: torch.Generator) -> dict[str, Tensor]:
    """Return weights with the official names of DINOv2 with registers."""
    state = timm.create_model(DINOV2, num_classes=0).state_dict()
    for value in state.values():
        value.copy_(0.05 * torch.randn(value.shape, generator=random) + 0.02)
    state["register_tokens"] = state.pop("reg_token")
    # The official position embedding has one more row, for the class token.
    first = torch.randn(1, 1, WIDTH, generator=random)
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    state["mask_token"] = torch.zeros(1, WIDTH)
    return state


def released() -> dict[str, Tensor]:
    """Return a checkpoint's `model`: one adapter for all blocks but the first, under every name."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, value in hub_weights(random).items():
        adapted = name.endswith(("attn.qkv.weight", "attn.qkv.bias"))
        stem, _, last = name.rpartition(".")
        state[f"{BACKBONE}{stem}.base_layer.{last}" if adapted else f"{BACKBONE}{name}"] = value
        if name.endswith("attn.qkv.weight"):
            layer = f"{BACKBONE}{stem}"
            state[f"{layer}.lora_A.default.weight"] = 0.05 * torch.randn(
                32, WIDTH, generator=random
            )
            state[f"{layer}.lora_B.default.weight"] = 0.05 * torch.randn(
                3 * WIDTH, 32, generator=random
            )
    first = adapter_weights(WIDTH + RAY_WIDTH, random)
    other = adapter_weights(WIDTH, random)
    for number in range(BLOCKS):
        for name, value in (other if number else first).items():
            state[f"spatial_adapters.{number}.{name}"] = value
    rays = 0.05 * torch.randn(RAY_WIDTH, 6, 14, 14, generator=random)
    state["plucker_embed.proj.weight"] = rays
    state["plucker_embed.proj.bias"] = 0.05 * torch.randn(RAY_WIDTH, generator=random)
    return state


def save(path: Path, state: dict[str, Tensor]) -> Path:
    """Save as released: beside the model an iteration, an optimizer and a scheduler."""
    others = {"n": 7, "optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {"step": 1}}
    torch.save({"model": state} | others, path)
    return path


def published_forward(state: dict[str, Tensor], images: Tensor, rays: Tensor | None) -> Tensor:
    """Run the model as published: images [M, 3, H, W] of one set → raw features [M, n, D]."""
    base = {}
    for name, value in state.items():
        plain = name.removeprefix(BACKBONE).replace(".base_layer.", ".")
        if plain != name and ".lora_" not in plain:
            base[plain] = value.clone()
    model: Any = timm.create_model(DINOV2, num_classes=0, dynamic_img_size=True).eval()
    load_weights(model, base, "released", DINOV2)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    for number, block in enumerate(model.blocks):
        lora = [state[f"{BACKBONE}blocks.{number}.attn.qkv.lora_{k}.default.weight"] for k in "AB"]
        block.attn.qkv.register_forward_hook(
            lambda _, inputs, output, lora=lora: output + inputs[0] @ lora[0].T @ lora[1].T
        )
        x = block(x)
        w = {k.removeprefix(f"spatial_adapters.{number}."): v for k, v in state.items()}
        tokens = x[:, 1:]  # without the class token
        if number == 0 and rays is not None:
            embedded = (
                F.conv2d(
                    rays,
                    state["plucker_embed.proj.weight"],
                    state["plucker_embed.proj.bias"],
                    stride=14,
                )
                .flatten(2)
                .transpose(1, 2)
            )
            registers = torch.zeros(len(images), 4, RAY_WIDTH)
            tokens = torch.cat([tokens, torch.cat([registers, embedded], 1)], dim=2)
        (m, n, c) = tokens.shape
        u = F.layer_norm(tokens.reshape(m * n, c), (c,), w["norm.weight"], w["norm.bias"])
        q, k, v = (u @ w["spatial_attn.qkv.weight"].T + w["spatial_attn.qkv.bias"]).split(c, dim=1)
        heads = []
        for head in range(8):
            part = slice(head * c // 8, (head + 1) * c // 8)
            scores = (q[:, part] @ k[:, part].T / (c / 8) ** 0.5).softmax(dim=-1)
            heads.append(scores @ v[:, part])
        u = torch.cat(heads, 1) @ w["spatial_attn.proj.weight"].T + w["spatial_attn.proj.bias"]
        u = F.gelu(u @ w["ffn.fc1.weight"].T + w["ffn.fc1.bias"])
        u = u @ w["ffn.fc2.weight"].T + w["ffn.fc2.bias"]
        change = u @ w["zero_conv.weight"][:, :, 0, 0].T + w["zero_conv.bias"]
        x = torch.cat([x[:, :1], x[:, 1:] + change.view(m, n, -1)], dim=1)
    return x[:, 5:]


@pytest.mark.slow
@torch.no_grad()
def test_a_released_model_computes_what_it_was_published_to(tmp_path: Path) -> None:
    state = released()
    path = convert_released(save(tmp_path / "best.pth", state), tmp_path / "out")
    model = load(path.parent)
    images = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    intrinsics = torch.tensor([[30.0, 0, 20], [0, 30, 13], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = torch.eye(3, 4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 0.7
    rays = ray_map(intrinsics, poses, (28, 42), "first_view")
    # The cameras are 0.7 apart, so each is 0.35 from the centre, and the unit is half of that.
    assert rays[0, 1, 3:].norm(dim=0).max() <= 4 + 1e-5
    expected = published_forward(state, images, rays[0])
    found = model(images[None], intrinsics, poses)[0].flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # Without LoRA or adapters it is another.
    for word in ("lora_B", "zero_conv"):
        other = {k: v * 0 if word in k else v for k, v in state.items()}
        assert (published_forward(other, images, rays[0]) - expected).abs().max() > 0.01


def names_and_shapes(rays: bool = True) -> dict[str, Tensor]:
    """Return a checkpoint's names and shapes, all numbers the same, which takes no memory."""
    random = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for number in range(BLOCKS):
        inputs = WIDTH + (RAY_WIDTH if rays and not number else 0)
        for name, value in adapter_weights(inputs, random).items():
            state[f"spatial_adapters.{number}.{name}"] = torch.zeros(1).expand(value.shape)
        state[f"{BACKBONE}blocks.{number}.norm1.weight"] = torch.zeros(WIDTH)
    state[f"{BACKBONE}patch_embed.proj.weight"] = torch.zeros(1).expand(WIDTH, 3, 14, 14)
    state[f"{BACKBONE}register_tokens"] = torch.zeros(1, 4, WIDTH)
    return state


def test_another_backbone_and_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    state = names_and_shapes(rays=False)
    sixteen = state | {f"{BACKBONE}patch_embed.proj.weight": torch.zeros(1).expand(384, 3, 16, 16)}
    clip = {k: v for k, v in state.items() if "register" not in k}
    plain = {k: v for k, v in state.items() if "spatial" not in k}
    fewer = {k: v for k, v in state.items() if "adapters.11." not in k}
    narrow = state | {"spatial_adapters.0.norm.bias": torch.zeros(7)}
    for content, message in (
        (sixteen, "of another backbone, and only those of DINOv2 with registers can be read"),
        (clip, "of another backbone"),
        (plain, "is no released multi-view model"),
        (fewer, "adapters after 11 of 12 blocks"),
        (narrow, r"'adapters.0.norm.bias' should be 384 and is 7"),
        (state, "best.pth lacks .* tensors of vit_small_patch14_reg4_dinov2"),
    ):
        with pytest.raises(SettingsError, match=message):
            convert_released(save(tmp_path / "best.pth", content), tmp_path / "out")
    assert not (tmp_path / "out").exists()
