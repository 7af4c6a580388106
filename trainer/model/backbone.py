"""Vision transformers of timm as maps of patch features.

They are made by name, with weights from a file, and frozen except for their last blocks.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from shards.errors import SettingsError
from trainer.model.weights import Architecture, architecture_of, load_weights, read_weights

log = logging.getLogger(__name__)

BACKBONES = {
    "dino_small": "vit_small_patch16_224.dino",
    "dino_base": "vit_base_patch16_224.dino",
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_reg_small": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_reg_base": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_reg_large": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3_small": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3_base": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3_large": "vit_large_patch16_dinov3.lvd1689m",
}
"""Short names of the backbones that the method is published for, and their names in timm."""

WITH_ATTENTION_BIASES = (
    "vit_small_patch16_dinov3_qkvb",
    "vit_base_patch16_dinov3_qkvb",
    "vit_large_patch16_dinov3_qkvb",
)
"""timm's DINOv3 models with attention biases. Its others have none, because the published biases
are all 0."""

TIMM_ERRORS = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
)
"""What timm and torch raise for options and weights that do not fit."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of B images between the frozen and the other blocks of a transformer.

    values: [B, n, D], prefix tokens first
    extras: per remaining block, the arguments that timm passes beside the tokens, such as rotary
            positions; the same for every image
    grid:   rows and columns of patches
    """

    values: Tensor
    extras: tuple[dict[str, Any], ...]
    grid: tuple[int, int]

    def __getitem__(self, images: Tensor | slice) -> Tokens:
        """Return the tokens of some images."""
        return replace(self, values=self.values[images])


class _DeferredBlock(nn.Module):
    """Placeholder that records the arguments of a deferred block and passes tokens on."""

    def forward(self, values: Tensor, **extras: Any) -> Tensor:
        self.extras = extras
        return values


def _bfloat16_copy(module: nn.Module) -> nn.Module:
    """Copy a module, with the weights of linear layers and convolutions in bfloat16.

    These are the layers whose weights autocast converts. All other weights are shared.
    """
    twin = copy.copy(module)
    if isinstance(module, nn.Linear | nn.Conv2d):
        twin._parameters = {
            name: weight
            if weight is None
            else nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
            for name, weight in module._parameters.items()
        }
    twin._modules = {
        name: part if part is None else _bfloat16_copy(part)
        for name, part in module._modules.items()
    }
    return twin


class Backbone(nn.Module):
    """A timm vision transformer that returns the last block's patch tokens, normed, as a map.

    It is cut in two before the first trained block: `trunk`, which is frozen, and `tail`.
    """

    def __init__(self, model: nn.Module, timm_id: str) -> None:
        super().__init__()
        self.model: Any = model
        self.timm_id = timm_id
        self.frozen = 0
        """Blocks before the cut."""
        self.trains_embeddings = False
        """Whether the trunk has gradients: it is then the embeddings alone, which are trained."""
        # Not a submodule, so that no checkpoint and no `to` sees it; see `keep_bfloat16_trunk`.
        self._bfloat16: list[nn.Module] = []

    @property
    def width(self) -> int:
        """Channels of a patch feature, D."""
        return int(self.model.embed_dim)

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.patch_embed.patch_size[0])

    def grid(self, size: int) -> int:
        """Return the patches along a side of `size` pixels.

        Raises SettingsError if that is not a whole number.
        """
        if size % self.patch:
            near = max(1, round(size / self.patch)) * self.patch
            raise SettingsError(
                f"{self.timm_id} has patches of {self.patch} pixels, which do not fill "
                f"'size: {size}': take {near}"
            )
        return size // self.patch

    def forward(self, images: Tensor) -> Tensor:
        """Run it: normalised images [B, 3, H, W] → features [B, H / patch, W / patch, D]."""
        return self._as_map(self.model.forward_features(images), self._grid_of(images))

    def trunk(self, images: Tensor) -> Tokens:
        """Run the frozen blocks: normalised images [B, 3, H, W] → tokens.

        Without gradients, unless embeddings are trained. `tail(trunk(x))` equals `forward(x)`.
        """
        with torch.set_grad_enabled(self.trains_embeddings and torch.is_grad_enabled()):
            return self._trunk(images)

    def _trunk(self, images: Tensor) -> Tokens:
        # timm's own forward pass prepares each block's arguments, in a way that depends on the
        # model. So run it on a shallow copy, which shares every weight, with the other blocks
        # replaced by placeholders that record their arguments for `tail`.
        deferred = [_DeferredBlock() for _ in self.model.blocks[self.frozen :]]
        use_bfloat16 = self._bfloat16 and torch.is_autocast_enabled(images.device.type)
        source: Any = self._bfloat16[0] if use_bfloat16 else self.model
        model = copy.copy(source)
        model._modules = dict(source._modules)
        model.blocks = nn.Sequential(*source.blocks[: self.frozen], *deferred)
        model.norm = nn.Identity()
        return Tokens(
            model.forward_features(images),
            tuple(block.extras for block in deferred),
            self._grid_of(images),
        )

    def keep_bfloat16_trunk(self) -> None:
        """Keep the frozen weights that autocast converts in bfloat16 too, for `trunk`.

        Call it when the weights are on their device, and again if they change. Under autocast to
        bfloat16 the trunk then returns the same numbers. Autocast itself converts a weight without
        a gradient whenever it is used. Everything else still sees the float32 weights.
        """
        trunk = copy.copy(self.model)
        trunk._modules = dict(self.model._modules)
        trunk.blocks = self.model.blocks[: self.frozen]
        self._bfloat16 = [_bfloat16_copy(trunk)]

    def tail(self, tokens: Tokens) -> Tensor:
        """Run the other blocks and the final norm: tokens → features [B, rows, columns, D]."""
        values = tokens.values
        for block, extras in zip(self.model.blocks[self.frozen :], tokens.extras, strict=True):
            values = block(values, **extras)
        return self._as_map(self.model.norm(values), tokens.grid)

    def compile(self) -> None:  # type: ignore[override]
        """Compile each block on its own.

        That keeps the names of weights, and compiling takes only as long as for one block. Every
        shape is compiled on its own: a step has the same few in every step.
        """
        for model in (self.model, *self._bfloat16):
            for block in model.blocks:
                block.compile(dynamic=False)

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch, images.shape[3] // self.patch

    def _as_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, self.model.num_prefix_tokens :].reshape(
            len(tokens), *grid, tokens.shape[-1]
        )

    def freeze(
        self, trainable_blocks: int, train_norm: bool, train_embeddings: bool = False
    ) -> None:
        """Freeze all but the last `trainable_blocks` blocks and, with `train_norm`, the final norm.

        train_embeddings: train the embeddings of patches and positions, and prefix tokens, too

        Raises SettingsError for more blocks than there are, and for embeddings that are trained
        below frozen blocks.
        """
        blocks = self.model.blocks
        if trainable_blocks > len(blocks):
            raise SettingsError(
                f"'model.trainable_blocks: {trainable_blocks}' is more than the {len(blocks)} of "
                f"{self.timm_id}"
            )
        self.requires_grad_(False)
        self.frozen = len(blocks) - trainable_blocks
        for block in blocks[self.frozen :]:
            block.requires_grad_(True)
        if train_embeddings and self.frozen:
            raise SettingsError(
                f"'model.train_embeddings' needs all {len(blocks)} blocks of {self.timm_id} to be "
                f"trained: set 'model.trainable_blocks={len(blocks)}'"
            )
        if train_embeddings:
            self.requires_grad_(True)
        self.trains_embeddings = train_embeddings
        self.model.norm.requires_grad_(train_norm)


def normalised_images(
    frames: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """Normalise for a backbone: uint8 [..., 3, H, W] RGB → float32, (value / 255 - mean) / std."""
    shift, scale = (
        torch.as_tensor(values, device=frames.device).view(3, 1, 1) for values in (mean, std)
    )
    return (frames.float() / 255 - shift) / scale


def make_backbone(
    name: str, weights: str | None, options: dict[str, Any] | None = None
) -> Backbone:
    """Make a backbone.

    name:    a short name from BACKBONES, or timm's
    weights: a file or `FILE:PART` (`read_weights`), `hub` (timm downloads them), or `random` (drawn
             from torch's global generator, with a warning); None for random ones without a warning,
             if the caller loads others
    options: further arguments for timm's `create_model`

    Raises SettingsError, in one sentence, for an unknown name, for a model that is no vision
    transformer, and for weights that are missing, unreadable, incomplete or another model's.
    """
    timm_id = BACKBONES.get(name, name)
    if not timm.is_model(timm_id):
        near = difflib.get_close_matches(
            name, [*BACKBONES, *timm.list_models("*vit*"), *timm.list_pretrained("*vit*")], 1
        )
        raise SettingsError(
            f"there is no backbone '{name}'" + (f" (did you mean '{near[0]}'?)" if near else "")
        )
    options = options or {}
    if weights == "random":
        log.warning(
            "%s starts from random weights: good for trying the code out, not for results", timm_id
        )
    file = None if weights in ("random", "hub") else weights
    state = read_weights(file) if file else None
    model = _timm_model(timm_id, weights, options)
    if not all(
        hasattr(model, part) for part in ("blocks", "norm", "num_prefix_tokens", "forward_features")
    ):
        raise SettingsError(
            f"'{name}' is not a vision transformer: it has no blocks of tokens to take features "
            "from"
        )
    if file and state:
        _check_fits(file, state, model, timm_id, options)
        try:
            load_weights(model, state, file, timm_id)
        except TIMM_ERRORS as error:
            raise _cannot_be_made(timm_id, weights, options, error) from error
    if weights not in ("random", None):
        log.info("%s starts from %s", timm_id, "timm's weights" if weights == "hub" else weights)
    return Backbone(model, timm_id)


def _timm_model(timm_id: str, weights: str | None, options: dict[str, Any]) -> Any:
    """Make a model, with timm's weights if `weights` is `hub`."""
    try:
        return timm.create_model(
            timm_id, pretrained=weights == "hub", **timm_arguments(timm_id, options)
        )
    except TIMM_ERRORS as error:
        raise _cannot_be_made(timm_id, weights, options, error) from error
    except Exception as error:
        if weights != "hub":
            raise
        reason = type(error).__name__
        accept = "accept its licence on its page and log in with 'hf auth login', or "
        raise SettingsError(
            f"timm could not download the weights of {timm_id} ({reason}): "
            f"{accept if reason == 'GatedRepoError' else ''}give a file with 'model.weights=PATH'"
        ) from error


def _cannot_be_made(
    timm_id: str, weights: str | None, options: dict[str, Any], error: Exception
) -> SettingsError:
    """Say in one sentence why timm refused options or weights."""
    reason = " ".join(str(error).split())[:300]
    return SettingsError(
        f"{timm_id} cannot be made with weights '{weights}' and options {options}: {reason}"
    )


def _check_fits(
    file: str, state: dict[str, Tensor], model: nn.Module, timm_id: str, options: dict[str, Any]
) -> None:
    """Raise SettingsError if weights are those of another architecture, and name one that fits."""
    given, wanted = architecture_of(state), architecture_of(model.state_dict(), model=True)
    different = given.differences(wanted) if given and wanted else []
    if not given or not wanted or not different:
        return
    fitting = _fitting_backbone(given, options)
    raise SettingsError(
        f"{file} holds a vision transformer with {given.describe(different)}, but {timm_id} has "
        + ", ".join(wanted.words(field) for field in different)
        + (f": take the backbone '{fitting}'" if fitting else "")
    )


def _fitting_backbone(given: Architecture, options: dict[str, Any]) -> str | None:
    """Return the backbone that weights fit, with the same options."""
    for name, timm_id in {**BACKBONES, **{n: n for n in WITH_ATTENTION_BIASES}}.items():
        try:
            with torch.device("meta"):  # shapes alone
                model = timm.create_model(timm_id, **timm_arguments(timm_id, options))
        except TIMM_ERRORS:
            continue
        fits = architecture_of(model.state_dict(), model=True)
        if fits and fits.patch == given.patch and not given.differences(fits):
            return name
    return None


def timm_arguments(timm_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments for `create_model`.

    They make a model accept other image sizes than its own: learned positions must be resampled;
    rotary positions (DINOv3) need nothing.
    """
    any_size = {} if "dinov3" in timm_id else {"dynamic_img_size": True}
    return {"num_classes": 0, **any_size, **options}
