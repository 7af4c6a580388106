"""Encode the views of held-out clips: together or apart, with right cameras or others.

Legend of shapes: T views of S x S pixels, h x w patches of D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shards.epipolar import read_poses
from shards.geometry import FrameTransform, shown_cameras
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.features import ShownCameras, patch_features
from trainer.evaluate.heldout.clips import HeldOutClip
from trainer.model.backbone import normalised_images


@dataclass(frozen=True)
class Encoding:
    """A way to encode the views of a clip.

    views:   which are encoded together: all (`set`), the anchor and one other (`pairs`), or none
             (`single`)
    cameras: whose rays each view has: its own (`right`), those of the view before it in the set
             (`wrong`), or none
    blank:   show grey images
    """

    title: str
    views: Literal["set", "pairs", "single"] = "set"
    cameras: Literal["right", "wrong", "none"] = "right"
    blank: bool = False


WHOLE = Encoding("")
ENCODINGS = (
    WHOLE,
    Encoding("pairs", views="pairs"),
    Encoding("each view alone", views="single"),
    Encoding("no cameras", cameras="none"),
    Encoding("wrong cameras", cameras="wrong"),
    Encoding("blank images", blank=True),
)
"""How a model that uses cameras is encoded. The first is what it is made for."""
WITHOUT_CAMERAS = (
    Encoding("", cameras="none"),
    Encoding("pairs", views="pairs", cameras="none"),
    Encoding("each view alone", views="single", cameras="none"),
)
"""The same where there are no cameras, or a model uses none."""


def cameras_of(clip: HeldOutClip, side: int) -> ShownCameras | None:
    """Return the cameras of a clip's frames, squashed to `side` pixels; None if one is unusable."""
    stored = clip.info.cameras
    chosen = [stored[number] if stored else None for number in clip.frame_numbers]
    if not read_poses(chosen, len(chosen)).usable.all():
        return None
    squash = FrameTransform.whole(clip.info.width, clip.info.height, side, side)
    shown = [c for c in shown_cameras([squash] * len(chosen), chosen) if c]
    intrinsics = [[[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]] for c in shown]
    poses = [np.reshape(c.world_to_camera, (3, 4)).tolist() for c in shown]
    return ShownCameras(torch.tensor(intrinsics), torch.tensor(poses))


def angles_of(clip: HeldOutClip) -> list[float]:
    """Return the degrees between the anchor's optical axis and each view's; NaN if unknown."""
    stored = clip.info.cameras
    chosen = [stored[number] if stored else None for number in clip.frame_numbers]
    return read_poses(chosen, len(chosen)).angles_from(0).tolist()


def encodings_of(model: EvaluatedModel, posed: bool) -> tuple[Encoding, ...]:
    """Return the ways to encode a model: one if it sees each image alone anyway."""
    if model.multiview is None:
        return (Encoding("", views="single", cameras="none"),)
    return ENCODINGS if model.uses_cameras and posed else WITHOUT_CAMERAS


@torch.no_grad()
def encode_clip(
    model: EvaluatedModel, encoding: Encoding, clip: HeldOutClip, side: int
) -> list[tuple[Tensor, Tensor]]:
    """Return for each view but the anchor the features [h, w, D] of the anchor and of the view.

    They are float32, on the CPU. The anchor's differ from view to view with `pairs`.
    """
    images = clip.images[side]
    others = range(1, len(images))
    if model.multiview is None:
        features = patch_features(model, final_norm=True)(images).cpu()
        return [(features[0], features[t]) for t in others]
    cameras = cameras_of(clip, side) if encoding.cameras != "none" else None
    if cameras and encoding.cameras == "wrong":
        cameras = cameras.exchanged()
    if encoding.views == "pairs":
        pairs = [_encode(model, images, cameras, [0, t], encoding.blank) for t in others]
        return [(anchor, view) for anchor, view in pairs]
    groups = [[t] for t in range(len(images))]
    if encoding.views == "set":
        groups = [list(range(len(images)))]
    features = torch.cat(
        [_encode(model, images, cameras, group, encoding.blank) for group in groups]
    )
    return [(features[0], features[t]) for t in others]


def _encode(
    model: EvaluatedModel,
    images: Tensor,
    cameras: ShownCameras | None,
    views: Sequence[int],
    blank: bool,
) -> Tensor:
    """Encode some views of a clip together: one map [h, w, D] for each."""
    multiview = model.multiview
    assert multiview is not None
    device = next(multiview.parameters()).device
    chosen = list(views)
    shown = normalised_images(images[chosen].to(device), model.mean, model.std)
    if blank:
        shown = torch.zeros_like(shown)  # the mean colour
    given: tuple[Tensor, ...] = ()
    if cameras:
        both = cameras.intrinsics, cameras.world_to_camera
        given = tuple(values[None, chosen].to(device) for values in both)
    features: Tensor = multiview(shown[None], *given)[0]
    return features.float().cpu()
