"""A model as the evaluations see it: uint8 images in, maps of patch features out, padded as Probe3D pads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from shards.errors import PretrackError, SettingsError
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.model.backbone import normalised_images

PatchFeatures = Callable[[Tensor], Tensor]
"""uint8 RGB images [B, 3, H, W] → float32 features [B, h, w, D]. A side that patches do not fill is padded (`padding`)."""

LevelFeatures = Callable[[Tensor], Sequence[Tensor]]
"""uint8 RGB images [B, 3, H, W] → four float32 maps [B, h, w, D] from early to late blocks, for the DPT probe."""


@torch.no_grad()
def maps_of(features: PatchFeatures, images: Tensor, patch: int) -> Tensor:
    """Features of images [B, 3, H, W] as float32 [B, h, w, D]. Raises SettingsError if they are no map of such patches."""
    maps = features(images).float()
    (rows, columns), (height, width) = maps.shape[1:3], images.shape[2:]
    if (rows, columns) != (-(-height // patch), -(-width // patch)):
        raise SettingsError(
            f"{rows}x{columns} features are no map of patches of {patch} pixels of images of {height}x{width} pixels"
        )
    return maps


def padding(side: int, patch: int) -> tuple[int, int]:
    """Pixels of zeros before and after a side so that patches fill it: Probe3D's centred padding."""
    extra = -side % patch
    return extra // 2, extra - extra // 2


def patch_features(subject: EvaluatedModel, normed: bool = False) -> PatchFeatures:
    """The last block's patch tokens: as the block leaves them (Probe3D), or after the final norm (3DPoV's training) if `normed`."""
    backbone = subject.backbone

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        given = _prepared(images, subject)
        (tokens,) = backbone.model.forward_intermediates(
            given, indices=1, norm=normed, output_fmt="NLC", intermediates_only=True
        )
        return _as_map(tokens, given, subject)

    return features


def level_features(subject: EvaluatedModel) -> LevelFeatures:
    """The patch tokens of four blocks, a quarter of the depth apart, before the final norm, each beside the image's CLS token
    ("dense-cls" of Probe3D): four maps [B, h, w, 2 D]. Raises SettingsError for a backbone of fewer than four blocks."""
    backbone = subject.backbone
    depth = len(backbone.model.blocks)
    if depth < 4 or backbone.model.num_prefix_tokens < 1:
        raise SettingsError(
            f"the DPT probe reads four blocks and a CLS token, and {backbone.timm_id} has not got them"
        )
    blocks = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]

    @torch.no_grad()
    def features(images: Tensor) -> list[Tensor]:
        given = _prepared(images, subject)
        levels = backbone.model.forward_intermediates(
            given,
            indices=blocks,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        maps = []
        for tokens, prefix in levels:
            patches = _as_map(tokens, given, subject)
            maps.append(
                torch.cat([patches, prefix[:, :1, None].float().expand_as(patches)], dim=-1)
            )
        return maps

    return features


def _prepared(images: Tensor, subject: EvaluatedModel) -> Tensor:
    """Normalised, then padded with zeros, where the model is."""
    device = next(subject.backbone.parameters()).device
    rows, columns = (padding(side, subject.patch) for side in images.shape[-2:])
    return pad(normalised_images(images.to(device), subject.mean, subject.std), (*columns, *rows))


def _as_map(tokens: Tensor, images: Tensor, subject: EvaluatedModel) -> Tensor:
    """Raises PretrackError for features that are not finite: with those, whatever is compared first would be the most similar."""
    if not tokens.isfinite().all():
        raise PretrackError(
            f"the model '{subject.name}' gives features that are not finite: its weights ({subject.file}) are broken"
        )
    rows, columns = (side // subject.patch for side in images.shape[2:])
    return tokens.float().reshape(len(tokens), rows, columns, tokens.shape[-1])
