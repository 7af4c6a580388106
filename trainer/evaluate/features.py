"""Patch features for the evaluations: uint8 images in, feature maps out, padded as in Probe3D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from shards.errors import PretrackError, SettingsError
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.model.backbone import normalised_images
from trainer.multiview.multiview_model import ray_map


@dataclass(frozen=True)
class ShownCameras:
    """Cameras of M views, in pixels of what is shown: float32 [M, 3, 3] and [M, 3, 4]."""

    intrinsics: Tensor
    world_to_camera: Tensor

    def only(self, view: int) -> ShownCameras:
        """Return the camera of one view, as a set of one."""
        one = slice(view, view + 1)
        return ShownCameras(self.intrinsics[one], self.world_to_camera[one])

    def exchanged(self) -> ShownCameras:
        """Return wrong cameras: each view has the pose of the view before it."""
        return ShownCameras(self.intrinsics, self.world_to_camera.roll(1, dims=0))


PatchFeatures = Callable[[Tensor], Tensor]
"""uint8 RGB images [B, 3, H, W] → float32 features [B, h, w, D].

A side that is not a multiple of the patch size is padded (`padding`).
"""

SetFeatures = Callable[[Tensor, ShownCameras | None], Tensor]
"""uint8 RGB images [M, 3, H, W] of one set of views, and their cameras if they are to be used →
float32 features [M, h, w, D]."""

LevelFeatures = Callable[[Tensor], Sequence[Tensor]]
"""uint8 RGB images [B, 3, H, W] → four float32 maps [B, h, w, D], from early to late blocks."""


@torch.no_grad()
def encode_images(features: PatchFeatures, images: Tensor, patch: int) -> Tensor:
    """Encode images [B, 3, H, W] to float32 maps [B, h, w, D].

    Raises SettingsError if h and w are not what patches of `patch` pixels give.
    """
    maps = features(images).float()
    (rows, columns), (height, width) = maps.shape[1:3], images.shape[2:]
    if (rows, columns) != (-(-height // patch), -(-width // patch)):
        raise SettingsError(
            f"{rows}x{columns} features do not fit images of {height}x{width} pixels "
            f"in patches of {patch} pixels"
        )
    return maps


def padding(side: int, patch: int) -> tuple[int, int]:
    """Return the zero pixels before and after a side that make patches fill it, as in Probe3D."""
    extra = -side % patch
    return extra // 2, extra - extra // 2


def patch_features(model: EvaluatedModel, final_norm: bool = False) -> PatchFeatures:
    """Make an encoder to the patch tokens of the last block.

    The tokens are taken before the final norm, as in Probe3D, or after it, as in 3DPoV's training.
    """
    backbone = model.backbone

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        padded = _normalise_and_pad(images, model)
        (tokens,) = backbone.model.forward_intermediates(
            padded, indices=1, norm=final_norm, output_fmt="NLC", intermediates_only=True
        )
        return _as_map(tokens, padded, model)

    return features


def level_features(model: EvaluatedModel) -> LevelFeatures:
    """Make an encoder to the patch tokens of four blocks, a quarter of the depth apart.

    The tokens are from before the final norm. Each is concatenated with the image's CLS token
    ("dense-cls" of Probe3D): four maps [B, h, w, 2 D]. Raises SettingsError for a backbone with
    fewer than four blocks or without a CLS token.
    """
    backbone = model.backbone
    depth = len(backbone.model.blocks)
    if depth < 4 or backbone.model.num_prefix_tokens < 1:
        raise SettingsError(
            "the DPT probe reads four blocks and a CLS token: "
            f"{backbone.timm_id} does not have them"
        )
    # The last block of each quarter: 2, 5, 8 and 11 of a ViT-B's 0 to 11.
    blocks = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]

    @torch.no_grad()
    def features(images: Tensor) -> list[Tensor]:
        padded = _normalise_and_pad(images, model)
        levels = backbone.model.forward_intermediates(
            padded,
            indices=blocks,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=True,
        )
        maps = []
        for tokens, prefix in levels:
            patches = _as_map(tokens, padded, model)
            # The CLS token is the first prefix token; register tokens follow it.
            cls_token = prefix[:, :1, None].float().expand_as(patches)
            maps.append(torch.cat([patches, cls_token], dim=-1))
        return maps

    return features


def set_features(model: EvaluatedModel, final_norm: bool = False) -> SetFeatures:
    """Make an encoder that lets the views of a set see each other; the model is a multi-view one.

    Padding and norm are those of `patch_features`, which encodes each image alone.
    """
    encode = patch_features(model, final_norm)

    def features(images: Tensor, cameras: ShownCameras | None) -> Tensor:
        with _as_set(model, images, cameras):
            return encode(images)

    return features


def set_level_features(
    model: EvaluatedModel,
) -> Callable[[Tensor, ShownCameras | None], Sequence[Tensor]]:
    """Make an encoder of a set of views to the four maps of `level_features`."""
    encode = level_features(model)

    def features(images: Tensor, cameras: ShownCameras | None) -> Sequence[Tensor]:
        with _as_set(model, images, cameras):
            return encode(images)

    return features


def grey_images(images: Tensor, model: EvaluatedModel) -> Tensor:
    """Return images [..., 3, H, W] of the mean colour, in whole numbers, as a control."""
    mean = torch.tensor(model.mean).view(3, 1, 1).mul(255).round().to(images)
    return mean.expand_as(images)


def _as_set(
    model: EvaluatedModel, images: Tensor, cameras: ShownCameras | None
) -> AbstractContextManager[None]:
    """Let a multi-view model's backbone take images [M, 3, H, W], once padded, for one set."""
    multiview = model.multiview
    assert multiview is not None
    if cameras is None:
        return multiview.sets_of(len(images), None)
    rows, columns = (padding(side, model.patch) for side in images.shape[-2:])
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 2] += columns[0]
    intrinsics[:, 1, 2] += rows[0]
    height, width = (side + -side % model.patch for side in images.shape[-2:])
    device = next(multiview.parameters()).device
    values = (intrinsics[None].to(device), cameras.world_to_camera[None].to(device))
    return multiview.sets_of(len(images), ray_map(*values, (height, width), multiview.scale))


def _normalise_and_pad(images: Tensor, model: EvaluatedModel) -> Tensor:
    """Move images to the model's device, normalise them, then pad with zeros."""
    device = next(model.backbone.parameters()).device
    rows, columns = (padding(side, model.patch) for side in images.shape[-2:])
    return pad(normalised_images(images.to(device), model.mean, model.std), (*columns, *rows))


def _as_map(tokens: Tensor, images: Tensor, model: EvaluatedModel) -> Tensor:
    """Reshape tokens [B, h w, D] of padded images to float32 [B, h, w, D].

    Raises PretrackError if they are not finite: the first candidate would then always win.
    """
    if not tokens.isfinite().all():
        raise PretrackError(
            f"the model '{model.name}' gives features that are not finite: "
            f"its weights ({model.file}) are broken"
        )
    rows, columns = (side // model.patch for side in images.shape[2:])
    return tokens.float().reshape(len(tokens), rows, columns, tokens.shape[-1])
