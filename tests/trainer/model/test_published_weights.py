"""Weights of official repositories and of transformers give the features of their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import SettingsError
from tests.helpers.tiny_weights import TINY, State, images_of, random_state
from trainer.model.backbone import make_backbone


def official_features(state: State, images: Tensor) -> Tensor:
    """The official DINO and DINOv2 in plain torch, with heads of 16 channels: patch tokens."""
    weight = state["patch_embed.proj.weight"]
    tokens = F.conv2d(images, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    tokens = tokens.flatten(2).mT
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], 1)
    tokens = tokens + state["pos_embed"]
    registers = state.get("register_tokens", torch.zeros(1, 0, tokens.shape[-1]))
    tokens = torch.cat([tokens[:, :1], registers.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for i in range(2):
        block = f"blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        q, k, v = qkv.unflatten(-1, (3, -1, 16)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / 4).softmax(-1) @ v
        tokens = tokens + state.get(f"{block}.ls1.gamma", 1) * linear(
            f"{block}.attn.proj", attention.transpose(1, 2).flatten(2)
        )
        inner = norm(f"{block}.norm2", tokens)
        if f"{block}.mlp.w12.weight" in state:
            gate, value = linear(f"{block}.mlp.w12", inner).chunk(2, dim=-1)
            inner = linear(f"{block}.mlp.w3", F.silu(gate) * value)
        else:
            inner = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", inner)))
        tokens = tokens + state.get(f"{block}.ls2.gamma", 1) * inner
    return norm("norm", tokens)[:, 1 + registers.shape[1] :]


def official_dinov2(name: str, registers: int) -> State:
    """Random weights with the names and shapes of the official DINOv2 files."""
    state = random_state(name, {"img_size": 56})
    state.pop("reg_token", None)
    noise = torch.Generator().manual_seed(5)
    state["mask_token"] = torch.randn(1, 48, generator=noise)
    state["pos_embed"] = torch.randn(1, 1 + 16, 48, generator=noise)
    if registers:
        state["register_tokens"] = torch.randn(1, registers, 48, generator=noise)
    if "giant" in name:
        return {
            key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
            for key, value in state.items()
        }
    return state


@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("dinov2_small", 0),
        ("dinov2_reg_small", 4),
        ("vit_giant_patch14_dinov2", 0),
        ("vit_giant_patch14_reg4_dinov2", 4),
    ],
)
@pytest.mark.parametrize("form", ["published", "chunked", "no mask token"])
def test_official_dinov2_gives_its_own_features(
    tmp_path: Path, name: str, registers: int, form: str
) -> None:
    state = official_dinov2(name, registers)
    if form == "no mask token":
        del state["mask_token"]
    saved: Any = state
    if form == "chunked":  # as its training saves it: blocks.CHUNK.BLOCK
        chunked = {
            f"backbone.{key.replace('blocks.', f'blocks.{key[7]}.')}": value
            for key, value in state.items()
        }
        assert "backbone.blocks.1.1.norm1.weight" in chunked
        saved = {"teacher": {**chunked, "dino_head.last_layer.weight": torch.zeros(1)}}
    torch.save(saved, tmp_path / "w.pth")
    backbone = make_backbone(name, str(tmp_path / "w.pth"), {**TINY, "img_size": 56}).eval()
    torch.testing.assert_close(
        backbone(images_of(56)).flatten(1, 2), official_features(state, images_of(56))
    )


def test_official_dino_gives_its_own_features(tmp_path: Path) -> None:
    state = random_state("dino_small", {"img_size": 64})
    torch.save(state, tmp_path / "w.pth")
    backbone = make_backbone("dino_small", str(tmp_path / "w.pth"), {**TINY, "img_size": 64}).eval()
    torch.testing.assert_close(
        backbone(images_of(64)).flatten(1, 2), official_features(state, images_of(64))
    )


def transformers_model(family: str, **options: Any) -> nn.Module:
    """A tiny random model of transformers, in evaluation mode."""
    transformers: Any = pytest.importorskip("transformers")
    config, model = {
        "dino": (transformers.ViTConfig, transformers.ViTModel),
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "dinov2_reg": (
            transformers.Dinov2WithRegistersConfig,
            transformers.Dinov2WithRegistersModel,
        ),
        "dinov3": (transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel),
    }[family]
    made: nn.Module = model(
        config(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=192,
            patch_size=14 if "dinov2" in family else 16,
            layer_norm_eps=1e-5 if family == "dinov3" else 1e-6,
            **options,
        )
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return made.eval()


FAMILIES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "DINO": ("dino", "dino_small", {"image_size": 64}, "encoder.layer.1.intermediate.dense.bias"),
    "DINOv2": ("dinov2", "dinov2_small", {"image_size": 56}, "encoder.layer.1.mlp.fc1.bias"),
    "DINOv2 giant": (
        "dinov2",
        "vit_giant_patch14_dinov2",
        {"image_size": 56, "use_swiglu_ffn": True},
        "encoder.layer.1.mlp.weights_in.bias",
    ),
    "registers": (
        "dinov2_reg",
        "dinov2_reg_small",
        {"image_size": 56},
        "encoder.layer.1.attention.attention.query.bias",
    ),
    "DINOv3": (
        "dinov3",
        "vit_small_patch16_dinov3_qkvb",
        {"num_register_tokens": 4},
        "layer.1.layer_scale1.lambda1",
    ),
    "DINOv3 plus": (
        "dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
        {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        "layer.1.mlp.gate_proj.weight",
    ),
}


@pytest.mark.slow  # importing transformers takes seconds
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("names", ["published", "in memory"])
def test_transformers_weights_give_transformers_features(
    tmp_path: Path, family: str, names: str
) -> None:
    kind, name, options, published = FAMILIES[family]
    model = transformers_model(kind, **options)
    path = tmp_path / "model.safetensors"
    if names == "published":
        model.save_pretrained(tmp_path)  # type: ignore[operator]
        from safetensors.torch import load_file

        assert published in load_file(path)
    else:
        path = tmp_path / "pytorch_model.bin"
        torch.save(model.state_dict(), path)
    side = 64 if kind in ("dino", "dinov3") else 56
    sized = {"img_size": side} if kind != "dinov3" else {}
    backbone = make_backbone(name, str(path), {**TINY, **sized}).eval()
    expected = model(images_of(side)).last_hidden_state[:, backbone.model.num_prefix_tokens :]
    torch.testing.assert_close(
        backbone(images_of(side)).flatten(1, 2), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_dinov3_biases_fit_the_model_with_biases_alone(tmp_path: Path) -> None:
    """The published biases are 0: then both of timm's models give the same features."""
    model = transformers_model("dinov3", num_register_tokens=4)
    path = tmp_path / "w.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(
        SettingsError,
        match="has no attention biases: take the backbone 'vit_small_patch16_dinov3_qkvb'",
    ):
        make_backbone("dinov3_small", str(path), TINY)
    for key, value in model.named_parameters():
        if key.endswith(("q_proj.bias", "v_proj.bias")):
            value.data.zero_()
    torch.save({"model": model.state_dict()}, path)
    expected = model(images_of(64)).last_hidden_state[:, 5:]
    for name in ("dinov3_small", "vit_small_patch16_dinov3_qkvb"):
        features = make_backbone(name, str(path), TINY).eval()(images_of(64)).flatten(1, 2)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_official_dinov3_gives_transformers_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official names, written by hand from those of transformers."""
    model = transformers_model("dinov3", num_register_tokens=4)
    given = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    state = {
        "cls_token": given["embeddings.cls_token"],
        "storage_tokens": given["embeddings.register_tokens"],
        "mask_token": given["embeddings.mask_token"][0],
        "rope_embed.periods": torch.ones(4, dtype=torch.bfloat16),
        "norm.weight": given["norm.weight"],
        "norm.bias": given["norm.bias"],
    }
    for end in ("weight", "bias"):
        state[f"patch_embed.proj.{end}"] = given[f"embeddings.patch_embeddings.{end}"]
        for i in range(2):
            old, new = f"layer.{i}.", f"blocks.{i}."
            q, v = (given[f"{old}attention.{which}_proj.{end}"] for which in "qv")
            k = given.get(f"{old}attention.k_proj.{end}", torch.zeros(48))
            state[f"{new}attn.qkv.{end}"] = torch.cat([q, k, v])
            state[f"{new}attn.proj.{end}"] = given[f"{old}attention.o_proj.{end}"]
            state[f"{new}mlp.fc1.{end}"] = given[f"{old}mlp.up_proj.{end}"]
            state[f"{new}mlp.fc2.{end}"] = given[f"{old}mlp.down_proj.{end}"]
            for n in "12":
                state[f"{new}norm{n}.{end}"] = given[f"{old}norm{n}.{end}"]
                state[f"{new}ls{n}.gamma"] = given[f"{old}layer_scale{n}.lambda1"]
            state[f"{new}attn.qkv.bias_mask"] = torch.ones(144)
    torch.save(state, tmp_path / "w.pth")
    backbone = make_backbone("vit_small_patch16_dinov3_qkvb", str(tmp_path / "w.pth"), TINY).eval()
    expected = model(images_of(64)).last_hidden_state[:, 5:]
    torch.testing.assert_close(
        backbone(images_of(64)).flatten(1, 2), expected, rtol=1e-4, atol=1e-4
    )
    for key in state:
        if key.endswith("qkv.bias"):
            state[key] = torch.zeros(144)
    torch.save(state, tmp_path / "w.pth")
    make_backbone("dinov3_small", str(tmp_path / "w.pth"), TINY)
    assert capsys.readouterr().out == ""


def transformers_names() -> State:
    """The shapes of transformers' DINOv2, with its published names."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 48),
        "embeddings.position_embeddings": (1, 17, 48),
        "embeddings.patch_embeddings.projection.weight": (48, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (48,),
        "layernorm.weight": (48,),
        "layernorm.bias": (48,),
    }
    for i in range(2):
        block = f"encoder.layer.{i}."
        for end, inner in (("weight", (48,)), ("bias", ())):
            for projection in ("query", "key", "value"):
                shapes[f"{block}attention.attention.{projection}.{end}"] = (48, *inner)
            shapes[f"{block}attention.output.dense.{end}"] = (48, *inner)
            shapes[f"{block}norm1.{end}"] = shapes[f"{block}norm2.{end}"] = (48,)
            shapes[f"{block}mlp.fc1.{end}"] = (192, *inner)
        shapes[f"{block}mlp.fc2.weight"], shapes[f"{block}mlp.fc2.bias"] = (48, 192), (48,)
        for scale in "12":
            shapes[f"{block}layer_scale{scale}.lambda1"] = (48,)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_transformers_weights_load_where_transformers_is_not_installed(tmp_path: Path) -> None:
    state = transformers_names()
    save_file(state, tmp_path / "model.safetensors")
    options = {**TINY, "img_size": 56}
    model = make_backbone("dinov2_small", str(tmp_path / "model.safetensors"), options).model
    attention = "encoder.layer.1.attention.attention"
    q, k, v = (state[f"{attention}.{which}.weight"] for which in ("query", "key", "value"))
    assert torch.equal(model.blocks[1].attn.qkv.weight, torch.cat([q, k, v]))
    assert torch.equal(model.blocks[1].ls2.gamma, state["encoder.layer.1.layer_scale2.lambda1"])
    assert torch.equal(model.norm.bias, state["layernorm.bias"])
