"""Weights as people have them: the same features as where they come from, or one sentence."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import SettingsError
from tests.helpers.evaluation import evaluate
from trainer.checkpoint import save_checkpoint
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.model.backbone import Backbone, make_backbone
from trainer.model.student_teacher import Embedder, Projection, make_teacher
from trainer.model.weights import read_weights

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


# ---- Names


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.backbone.",
        "model._orig_mod.backbone.model.",
        "module.model.module.backbone.",
        "student_backbone.",
        "visual.trunk.",
    ],
)
@pytest.mark.parametrize("name", ["dino_small", "dinov3_small"])
def test_prefixes_of_training_code_are_peeled(tmp_path: Path, name: str, prefix: str) -> None:
    state = random_state(name)
    named = {prefix + key: value for key, value in state.items()}
    torch.save({**named, "head.mlp.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", name, state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": s}}}},
        lambda s: {"model": {"state_dict": {f"module.{k}": v for k, v in s.items()}}},
        lambda s: {"teacher": {"backbone": s, "head": {"weight": torch.zeros(1)}}},
        lambda s: {"state_dict": {f"model.backbone.{k}": v for k, v in s.items()}, "lr": 0.1},
        lambda s: {"state_dict": s, "model": s},
        lambda s: {**s, "epoch": 3, "name": "mine"},
    ],
    ids=["state_dict", "nested", "modules", "lightning", "twice", "flat with values"],
)
def test_nested_checkpoints_are_unwrapped(tmp_path: Path, nest: Callable[[State], Any]) -> None:
    state = random_state("dinov2_reg_small")
    torch.save(nest(state), tmp_path / "w.ckpt")
    assert_loads(tmp_path / "w.ckpt", "dinov2_reg_small", state)


def test_wrappers_within_names_are_removed(tmp_path: Path) -> None:
    """Blocks that were compiled, checkpointed or sharded one by one."""
    state = random_state("dinov2_small")
    for word in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"):
        wrapped = {key.replace("blocks.1.", f"blocks.1.{word}."): v for key, v in state.items()}
        torch.save(wrapped, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", "dinov2_small", state)


def test_the_teacher_is_taken_and_a_part_takes_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, student = random_state("dino_small"), random_state("dino_small", seed=1)
    path = tmp_path / "w.pth"
    torch.save(
        {
            "student": {f"module.backbone.{key}": value for key, value in student.items()},
            "teacher": {f"backbone.{key}": value for key, value in teacher.items()},
        },
        path,
    )
    with caplog.at_level(logging.INFO):
        assert_loads(path, "dino_small", teacher)
    assert (
        "several vision transformers ('student.module.backbone', 'teacher.backbone'): taking "
        "'teacher.backbone', whose weights are averaged"
    ) in caplog.text
    assert_loads(f"{path}:student", "dino_small", student)
    with pytest.raises(SettingsError, match="holds no vision transformer called 'pupil', but 'stu"):
        read_weights(Path(f"{path}:pupil"))


def test_nothing_is_guessed_among_equals(tmp_path: Path) -> None:
    state = random_state("dino_small")
    path = tmp_path / "w.pth"
    torch.save({"left": state, "right": {**random_state("dino_small", seed=1)}}, path)
    with pytest.raises(
        SettingsError, match=r"\('left', 'right'\): choose one with FILE:PART, such"
    ):
        make_backbone("dino_small", str(path), TINY)
    assert_loads(f"{path}:left", "dino_small", state)


def test_pretracks_own_checkpoint_gives_its_teacher(tmp_path: Path) -> None:
    """As `model.weights=RUN/checkpoints/step_….pt` starts another run."""
    state = random_state("dino_small")
    backbone = make_backbone("dino_small", None, TINY)
    backbone.model.load_state_dict(state)
    student = Embedder(backbone, Projection(48, (8,)), align_corners=False)
    teacher = make_teacher(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    student.embed(backbone(images_of(32))).sum().backward()
    optimizer.step()
    checkpoint = {
        "step": 1,
        "settings": {"run": {"steps": 2}},
        "snapshots": ["a"],
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "losses": {},
        "optimizer": optimizer.state_dict(),
    }
    path = save_checkpoint(tmp_path, checkpoint, keep=1)
    assert_loads(path, "dino_small", state)
    trained = student.backbone.model.state_dict()
    assert not torch.equal(trained["norm.weight"], state["norm.weight"])
    assert_loads(f"{path}:student", "dino_small", trained)


def test_an_evaluated_part_has_the_files_digest(tmp_path: Path) -> None:
    """Results say which file a model was read from, also if only a part of it was."""
    states = [
        make_backbone("vit_tiny_patch16_224", None).model.state_dict() for _ in ("left", "right")
    ]
    path = tmp_path / "w.pth"
    torch.save(dict(zip(("left", "right"), states, strict=True)), path)
    model = load_evaluated_model("mine", f"vit_tiny_patch16_224:{path}:right")
    assert model.digest == xxhash.xxh3_64_hexdigest(path.read_bytes())
    loaded = model.backbone.model.state_dict()
    assert torch.equal(loaded["cls_token"], states[1]["cls_token"])
    assert not torch.equal(loaded["cls_token"], states[0]["cls_token"])


def test_the_command_line_ends_with_the_sentence_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    arguments = ["--model", f"mine=dino_small:{path}", "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate(["voc-clusters", str(tmp_path), *arguments]) == 1
    message = capfd.readouterr().err
    assert f"{path} cannot be read as weights: it is a Git LFS pointer" in message
    assert "Traceback" not in message


# ---- Official repositories


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


# ---- Hugging Face transformers


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


# ---- Other architectures and sizes


@pytest.mark.parametrize(
    ("weights", "options", "model", "message"),
    [
        (
            "dinov2_small",
            {},
            "dinov2_reg_small",
            "patches of 14 pixels, layer scale, no registers, but vit_.* has 4 registers: "
            "take the backbone 'dinov2_small'",
        ),
        (
            "dinov2_reg_small",
            {},
            "dinov2_small",
            "4 registers, layer scale, but vit_.* has no registers: "
            "take the backbone 'dinov2_reg_small'",
        ),
        ("dino_small", {"depth": 3}, "dino_small", "3 blocks, .* but vit_.* has 2 blocks$"),
        ("dino_small", {"depth": 1}, "dino_small", "1 block, .* but vit_.* has 2 blocks$"),
        ("dino_small", {"embed_dim": 96}, "dino_small", "96 channels.* has 48 channels$"),
        ("dino_small", {"mlp_ratio": 2}, "dino_small", "MLPs of 96 units, .* MLPs of 192 units$"),
        (
            "dinov2_small",
            {},
            "dino_small",
            "layer scale, but vit_.* has no layer scale: take the backbone 'dinov2_small'",
        ),
        (
            "dinov3_small",
            {},
            "dinov2_reg_small",
            "no learned positions, but vit_.* has learned positions: "
            "take the backbone 'dinov3_small'",
        ),
    ],
)
def test_another_architecture_is_named_on_both_sides(
    tmp_path: Path, weights: str, options: dict[str, Any], model: str, message: str
) -> None:
    torch.save(random_state(weights, options), tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=rf"w\.pth holds a vision transformer with .*{message}"):
        make_backbone(model, str(tmp_path / "w.pth"), TINY)


def test_other_resolutions_and_patches_are_resampled_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(random_state("dino_small", {"img_size": 64}), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="trainer"):
        backbone = make_backbone("vit_small_patch8_224", str(tmp_path / "w.pth"), TINY)
    assert backbone(images_of(64)).shape == (2, 8, 8, 48)
    assert "position embedding is resampled by timm: from 4 x 4 to 28 x 28 patches" in caplog.text
    assert "patch embedding is resampled by timm: from 16 x 16 to 8 x 8 pixels" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize(
    "names", ["dino_small", "dinov2_reg_small", "dinov3_small", "transformers"]
)
def test_tensors_of_odd_shapes_are_refused_in_one_sentence(
    tmp_path: Path, names: str, shape: tuple[int, ...]
) -> None:
    name = "dinov2_small" if names == "transformers" else names
    state = transformers_names() if names == "transformers" else random_state(name)
    for key in state:
        if "blocks.1." in key or "layer.1." in key:
            continue
        torch.save({**state, key: torch.ones(shape)}, tmp_path / "w.pth")
        with pytest.raises(SettingsError) as caught:
            make_backbone(name, str(tmp_path / "w.pth"), {**TINY, "img_size": 64 // 16 * 14})
        assert "\n" not in str(caught.value), key


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


# ---- Files


def test_a_file_is_recognised_by_its_content(tmp_path: Path) -> None:
    state = random_state("dino_small")
    save_file(state, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", "dino_small", state)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "old.pth", "dino_small", state)


def test_a_truncated_safetensors_file_says_so(tmp_path: Path) -> None:
    save_file(random_state("dino_small"), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-100])
    with pytest.raises(SettingsError, match="its end is missing: copy or download it again"):
        read_weights(tmp_path / "w.safetensors")


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(2))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # TorchScript is old
        traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file)  # type: ignore[no-untyped-call]
    return file.getvalue()


WITH_OBJECTS = {"model": {"w": torch.zeros(2)}, "args": Namespace(lr=1)}
OBJECTS = r"beside tensors it holds Python objects \(argparse\.Namespace\), and loading those can"
NOT_A_MAPPING = "it should be a mapping of names to tensors"
UNREADABLE = {
    "empty": (b"", "it is empty: copy or download it again"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Forbidden", "it is an HTML page, such as a server's"),
    "XML": (b'<?xml version="1.0"?><Error>', "it is XML, such as a store's error message"),
    "JSON": (b'{"error": "gated"}', "it is JSON: give the weight file beside it"),
    "ONNX": (b"\x08\x07\x12\x07pytorch", "it is an ONNX graph: give the PyTorch weights"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5 file, as Keras writes"),
    "gzip": (b"\x1f\x8b\x08", "compressed with gzip: unpack it first"),
    "npz": (npz(), "an archive of NumPy arrays: save a state dict as safetensors"),
    "zip": (zipped("readme.txt"), "a zip archive that 'torch.save' did not write: unpack it first"),
    "export": (zipped("m/archive_format", "m/models/model.json"), "a program of torch.export"),
    "script": (scripted(), "it is a TorchScript archive, which holds code"),
    "pickle": (pickle.dumps({"w": 1}), "a pickle that 'torch.save' did not write"),
    "truncated": (saved({"w": torch.zeros(99)})[:-99], "its end is missing: copy or download it"),
    "truncated, old": (
        saved({"w": torch.zeros(99)}, _use_new_zipfile_serialization=False)[:-99],
        "its end is missing: copy or download it again",
    ),
    "objects": (saved(WITH_OBJECTS), OBJECTS),
    "objects, old": (saved(WITH_OBJECTS, _use_new_zipfile_serialization=False), OBJECTS),
    "module": (saved(nn.Linear(1, 1)), r"Python objects \(torch\.nn\.modules\.linear\.Linear\)"),
}
WITHOUT_WEIGHTS = {
    "nothing": ({}, f"holds an empty dictionary: {NOT_A_MAPPING}"),
    "list": ([torch.zeros(1)], f"holds a list: {NOT_A_MAPPING}"),
    "values": ({"epoch": 3}, f"holds no weights: {NOT_A_MAPPING}"),
    "optimizer": (
        torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict(),
        "holds only the state of an optimizer",
    ),
    "adapters": (
        {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 2)},
        r"holds low-rank adapters \(LoRA\), which have to be merged",
    ),
    "BERT": (
        {
            "embeddings.word_embeddings.weight": torch.zeros(2, 2),
            "encoder.layer.0.attention.self.query.weight": torch.zeros(2, 2),
        },
        "holds BERT or a relative, a text model of transformers, not a vision transformer",
    ),
    "ResNet": (
        {"layer1.0.conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)},
        "holds a ResNet, not a vision transformer",
    ),
    "ConvNeXt": (
        {"downsample_layers.0.0.weight": torch.zeros(2)},
        "holds a convolutional or hierarchical model, not a vision transformer",
    ),
    "CLIP": (
        {"vision_model.embeddings.patch_embedding.weight": torch.zeros(2)},
        "holds a CLIP or SigLIP model of transformers, not a vision",
    ),
    "another": (
        {"encoder.weight": torch.zeros(2)},
        r"lacks \d+ tensors of vit_.* \(first: .*\); it has names such as 'encoder.weight'",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    content, message = UNREADABLE[kind]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        make_backbone("dino_small", str(path), TINY)
    assert str(caught.value).startswith(f"{path} cannot be read as weights: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", WITHOUT_WEIGHTS)
def test_checkpoints_of_other_models_are_named(tmp_path: Path, kind: str) -> None:
    value, message = WITHOUT_WEIGHTS[kind]
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=rf"w\.pth {message}"):
        make_backbone("dino_small", str(tmp_path / "w.pth"), TINY)


def test_a_folder_names_the_file_to_give(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is a folder, not a weight file: give a file"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SettingsError, match=r"give one of its files, such as .*/model\.safetensor"):
        read_weights(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(SettingsError, match=r"distributed checkpoint of torch: .* dcp_to_torch"):
        read_weights(tmp_path)


def test_circular_checkpoints_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {"model": {}}
    state["model"]["again"] = state
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match="holds no weights"):
        read_weights(tmp_path / "w.pth")
