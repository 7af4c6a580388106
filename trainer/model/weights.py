"""Weights for a backbone: a file as people have it → the model's parameters, all of them or none.

`read_weights` finds the backbone within a checkpoint, `Architecture` says whether it is the
model's, and `load_weights` fills the model through timm's own converters.
"""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from torch import Tensor, nn

from shards.errors import SettingsError
from trainer.model.weight_file import read_tensors
from trainer.model.weight_names import backbones_in, official_names, other_model, without_wrappers

log = logging.getLogger(__name__)

PREFERRED = ("teacher", "model_ema", "ema")
"""Which backbone of a checkpoint is taken if it holds several: the one whose weights are averaged,
as published weights are."""


MLP_FIRST = ("fc1", "fc1_g", "fc1_x", "w1", "w2", "w12")
"""Names of an MLP's first layer; a gated MLP has two, or one of double width."""


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of weights say about a vision transformer.

    channels:       width of a token
    blocks:         number of blocks
    hidden:         rows of an MLP's first layer, both halves of a gated one; 0 if unknown
    patch:          side of a patch in pixels; timm resamples patch embeddings, so it may differ
    registers:      number of register tokens
    class_token:    whether there is one
    layer_scale:    whether blocks scale their outputs
    positions:      whether position embeddings are learned (rotary ones need no weights)
    attention_bias: whether queries and values have biases; in weights, whether any is not 0
    """

    channels: int
    blocks: int
    hidden: int
    patch: int
    registers: int
    class_token: bool
    layer_scale: bool
    positions: bool
    attention_bias: bool

    def differences(self, model: Architecture) -> list[str]:
        """Return the fields in which weights do not fit a model."""
        fields = ["channels", "blocks", "registers", "class_token", "layer_scale", "positions"]
        if self.channels == model.channels and self.hidden and model.hidden:
            fields.append("hidden")
        different = [name for name in fields if getattr(self, name) != getattr(model, name)]
        if self.attention_bias and not model.attention_bias:
            different.append("attention_bias")
        return different

    def words(self, field: str) -> str:
        """Say a field in words, such as `4 registers` or `no layer scale`."""
        value = getattr(self, field)
        if field == "patch":
            return f"patches of {value} pixels"
        if field == "hidden":
            return f"MLPs of {value} units"
        if field in ("channels", "blocks", "registers"):
            return f"{value or 'no'} {field[:-1] if value == 1 else field}"
        noun = {
            "class_token": "class token",
            "layer_scale": "layer scale",
            "positions": "learned positions",
            "attention_bias": "attention biases",
        }[field]
        return noun if value else f"no {noun}"

    def describe(self, different: list[str]) -> str:
        """Say what distinguishes a transformer, the fields that do not fit included."""
        fields = ["channels", "blocks", "patch"]
        fields += [name for name in ("registers", "layer_scale") if getattr(self, name)]
        fields += [name for name in different if name not in fields]
        return ", ".join(self.words(name) for name in fields)


def architecture_of(state: dict[str, Tensor], model: bool = False) -> Architecture | None:
    """Return what the names and shapes of a transformer's weights say; None if they say nothing.

    state: with official names or timm's
    model: whether they are a model's own, whose biases count even if they are 0
    """
    embedding = state.get("patch_embed.proj.weight")
    numbers = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    if embedding is None or not numbers:
        return None
    registers = [
        state[name].shape[-2]
        for name in ("reg_token", "register_tokens", "storage_tokens")
        if name in state
    ]
    first_layers = [f"blocks.0.mlp.{name}.weight" for name in MLP_FIRST]
    return Architecture(
        channels=embedding.shape[0],
        blocks=max(numbers) + 1,
        hidden=sum(state[name].shape[0] for name in first_layers if name in state),
        patch=embedding.shape[-1] if embedding.ndim == 4 else 0,
        registers=sum(registers),
        class_token="cls_token" in state,
        layer_scale=any(re.search(r"\.(ls1\.gamma|gamma_1)$", name) for name in state),
        positions="pos_embed" in state,
        attention_bias=any(
            model or _counts(name, value)
            for name, value in state.items()
            if re.search(r"\.attn\.(qkv\.bias|[qv]_bias|[qv]_proj\.bias)$", name)
        ),
    )


def _counts(name: str, bias: Tensor) -> bool:
    """Say whether an attention bias changes anything: the keys' part cancels in the softmax."""
    if not name.endswith("qkv.bias"):
        return bool(bias.any())
    query, _, value = bias.chunk(3)
    return bool(query.any() or value.any())


def split_part(weights: str) -> tuple[Path, str]:
    """Split `FILE:PART`, such as `w.pth:student`; a plain file has the part ""."""
    file, colon, part = weights.rpartition(":")
    if colon and not Path(weights).is_file() and Path(file).is_file():
        return Path(file), part
    return Path(weights), ""


def read_weights(weights: str | Path) -> dict[str, Tensor]:
    """Read a backbone's weights from a checkpoint, with names that timm's filters read.

    weights: a file, or `FILE:PART` to choose one of several backbones in it

    Raises SettingsError, in one sentence, if the file is missing, is no weight file, holds another
    kind of model or adapters, or holds several backbones and none is the averaged one.
    """
    path, part = split_part(str(weights))
    state = without_wrappers(read_tensors(path))
    prefixes = backbones_in(state)
    if any(".lora_" in name for name in state):
        raise SettingsError(
            f"{path} holds low-rank adapters (LoRA), which have to be merged into the weights that "
            "they adapt; a run's adapters are merged in its folder 'weights'"
        )
    if not prefixes:
        if model := other_model(state):
            raise SettingsError(f"{path} holds {model}, not a vision transformer")
        if part:
            raise SettingsError(f"{path} holds no vision transformer called '{part}'")
        return state
    prefix = _chosen(prefixes, part, path)
    inner = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    try:
        inner = official_names(inner)
        architecture = architecture_of(inner)
    except (RuntimeError, LookupError, ValueError) as error:
        raise SettingsError(
            f"{path} has a vision transformer's names, but tensors of other shapes "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    if architecture is None and (model := other_model(inner)):
        raise SettingsError(f"{path} holds {model}, not a vision transformer")
    return inner


def _chosen(prefixes: list[str], part: str, path: Path) -> str:
    """Return the prefix of the backbone to take."""
    fitting = [prefix for prefix in prefixes if not part or f".{part}." in f".{prefix}"]
    names = _quoted([prefix.rstrip(".") for prefix in prefixes])
    if not fitting:
        raise SettingsError(f"{path} holds no vision transformer called '{part}', but {names}")
    if len(fitting) == 1:
        return fitting[0]
    for word in PREFERRED:
        preferred = [prefix for prefix in fitting if word in prefix.split(".")]
        if len(preferred) == 1 and not part:
            log.info(
                "%s holds several vision transformers (%s): taking '%s', whose weights are "
                "averaged; 'FILE:PART' takes another",
                path,
                names,
                preferred[0].rstrip("."),
            )
            return preferred[0]
    raise SettingsError(
        f"{path} holds several vision transformers ({names}): choose one with FILE:PART, such as "
        f"{path}:{fitting[-1].rstrip('.')}"
    )


def _quoted(names: list[str]) -> str:
    """List names of a file in a message; they may be any text, and many."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(repr(name[:60]) for name in names[:4]) + more


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str, timm_id: str) -> None:
    """Fill a timm model with weights, converted and resampled by timm's own filter.

    timm's loading ignores missing parameters for a model without a classifier, as these are: a
    block would silently stay random. Raises SettingsError if a parameter is missing, and whatever
    timm and torch raise for shapes that do not fit.
    """
    wanted = architecture_of(model.state_dict(), model=True)
    if wanted and not wanted.attention_bias:
        # They are all 0 (`Architecture.differences`), and timm prints a line for each.
        state = {name: v for name, v in state.items() if not name.endswith("attn.qkv.bias")}
    _log_resampling(model, state)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    converted = convert(dict(state), model) if convert else state  # the filter removes entries
    missing = set(model.load_state_dict(converted, strict=False).missing_keys)
    lacking = [name for name, _ in model.named_parameters() if name in missing]
    if lacking:
        raise SettingsError(
            f"{source} lacks {len(lacking)} tensors of {timm_id} "
            f"(first: {lacking[0]}); it has names such as {_quoted(list(state)[:2])}"
        )


def _log_resampling(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Log what timm resamples: position embeddings and patch embeddings of another size."""
    own = model.state_dict()
    for name, unit in (("pos_embed", "patches"), ("patch_embed.proj.weight", "pixels")):
        if name not in own or name not in state or state[name].ndim not in (3, 4):
            continue
        # Position embeddings are [1, prefix tokens + side * side, D], with fewer prefix tokens than
        # change the root's whole part.
        before, after = (
            isqrt(tensor.shape[1]) if name == "pos_embed" else tensor.shape[-1]
            for tensor in (state[name], own[name])
        )
        if before != after:
            log.info(
                "%s is resampled by timm: from %d x %d to %d x %d %s",
                "the position embedding" if name == "pos_embed" else "the patch embedding",
                before,
                before,
                after,
                after,
                unit,
            )
