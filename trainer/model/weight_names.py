"""Names of weights: those of training code, official repositories and transformers → timm's input.

timm's own filters (`checkpoint_filter_fn`) read the names of the official DINO, DINOv2 and DINOv3
repositories, and those of CLIP and others. This module finds the backbone within a checkpoint, and
turns the names of Hugging Face transformers into the official ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

PATCH_EMBEDDING = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?:"
    r"patch_embed\.proj"  # timm and the official repositories
    r"|embeddings\.patch_embeddings(?:\.projection)?"  # transformers
    # Others that timm's filters convert: CLIP, AIMv2, RADIO, BEiT-3, Sapiens 2 and NaFlexViT.
    r"|visual\.conv1|preprocessor\.patchifier\.proj|radio_model\.model\.patch_generator\.embedder"
    r"|beit3\.vision_embed\.proj|patch_embed\.projection|embeds\.proj"
    r")\.weight"
)
"""The weight that every vision transformer has once; what stands before it is its prefix."""

WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing insert anywhere in a name."""

TRANSFORMERS = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"^layernorm\.", "norm."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
    )
]
"""Names of transformers' ViT, DINOv2 and DINOv3, and the official names, applied in this order."""

OTHER_MODELS = [
    (re.compile(pattern), model)
    for pattern, model in (
        (
            r"vision_model\.embeddings\.|^embeddings\.class_embedding$",
            "a CLIP or SigLIP model of transformers",
        ),
        (r"word_embeddings\.weight$", "BERT or a relative, a text model of transformers"),
        (r"(embed_tokens|wte)\.weight$", "a language model"),
        (r"updateformer\.", "the tracker CoTracker"),
        (r"(down_blocks|input_blocks)\.\d", "a diffusion model"),
        (
            r"(patch_embed|patch_embeddings)\.0\.|relative_position_bias_table$",
            "Swin or a relative",
        ),
        (r"(downsample_layers|stages)\.\d", "a convolutional or hierarchical model"),
        (r"(layer|encoder\.stages\.)\d\.\d+\.(conv1|layer\.0)", "a ResNet"),
    )
]
"""Models that are often taken for a vision transformer, by a name in them."""


def backbones_in(names: Iterable[str]) -> list[str]:
    """Return the prefixes under which a checkpoint holds vision transformers, such as `teacher.`.

    Names should be without wrappers (`without_wrappers`).
    """
    matches = (PATCH_EMBEDDING.fullmatch(name) for name in names)
    return list(dict.fromkeys(match["prefix"] for match in matches if match))


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove from every name what torch.compile, FSDP and activation checkpointing inserted."""
    return {WRAPPERS.sub("", name): value for name, value in state.items()}


def other_model(names: Iterable[str]) -> str | None:
    """Say in words whose weights these names are, if they are no vision transformer's."""
    names = list(names)
    for pattern, model in OTHER_MODELS:
        if any(pattern.search(name) for name in names):
            return model
    return None


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a vision transformer's names into those that timm's filters read."""
    if any(name.startswith("embeddings.patch_embeddings.") for name in state):
        state = _from_transformers(state)
    # DINOv2 trains with its blocks in chunks. `blocks.CHUNK.BLOCK` has the block's own number.
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): v for name, v in state.items()}
    dinov2 = (
        "register_tokens" in state
        or {
            "blocks.0.ls1.gamma",
            "blocks.0.mlp.w12.weight",
        }
        <= state.keys()
    )
    if dinov2 and "mask_token" not in state:
        # timm's filter takes the mask token, which it drops, for the sign of DINOv2.
        state["mask_token"] = torch.zeros(0)
    return state


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the names of transformers' ViT (DINO), DINOv2 and DINOv3 into the official ones.

    Published names and those of transformers 5 in memory are read. Query, key and value become one
    tensor.
    """
    dinov3 = "embeddings.position_embeddings" not in state
    gated = any(".mlp.gate_proj." in name for name in state)
    renamed = {_official_name(name, dinov3, gated): value for name, value in state.items()}
    for name in [name for name in renamed if ".attn.q." in name]:
        query, value = renamed[name], renamed.get(name.replace(".q.", ".v."))
        # DINOv3 has biases of queries and values, none of keys.
        key = renamed.get(name.replace(".q.", ".k."), torch.zeros_like(query))
        if value is not None:
            renamed[name.replace(".q.", ".qkv.")] = torch.cat([query, key, value])
    if gated and not dinov3:  # the official DINOv2 has gate and value in one tensor
        for name in [name for name in renamed if ".mlp.w1." in name]:
            both = [renamed.pop(name), renamed.pop(name.replace(".w1.", ".w2."))]
            renamed[name.replace(".w1.", ".w12.")] = torch.cat(both)
    return {name: v for name, v in renamed.items() if not re.search(r"\.attn\.[qkv]\.", name)}


def _official_name(name: str, dinov3: bool, gated: bool) -> str:
    for pattern, replacement in TRANSFORMERS:
        name = pattern.sub(replacement, name)
    name = name.replace(
        "embeddings.register_tokens", "storage_tokens" if dinov3 else "register_tokens"
    )
    # A gated MLP is w3(silu(w1 x) * w2 x) in the official repositories.
    name = name.replace(".mlp.gate_proj.", ".mlp.w1.")
    name = name.replace(".mlp.up_proj.", ".mlp.w2." if gated else ".mlp.fc1.")
    return name.replace(".mlp.down_proj.", ".mlp.w3." if gated else ".mlp.fc2.")
