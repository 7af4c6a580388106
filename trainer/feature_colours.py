"""Draw features as colours, for training logs and for evaluation."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def frames_above_features(frames: Tensor, features: Tensor) -> NDArray[np.uint8]:
    """Draw frames in a row and their features below them, as colours: [2 S, T S, 3], RGB.

    frames: [T, 3, S, S] uint8; features: [T, h, w, D], enlarged to S x S without interpolation.
    """
    side = frames.shape[-1]
    colours = np.rint(255 * principal_colours(features.double().numpy()).clip(0, 1))
    enlarged = [
        cv2.resize(colour, (side, side), interpolation=cv2.INTER_NEAREST)
        for colour in colours.astype(np.uint8)
    ]
    pictures = list(frames.permute(0, 2, 3, 1).numpy())
    return np.vstack([np.hstack(pictures), np.hstack(enlarged)]).astype(np.uint8)


def principal_colours(
    features: NDArray[np.float64], like: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Map features [T, h, w, D] to RGB by their first three principal components: [T, h, w, 3].

    The components are those of the anchor frame, `features[0]`. Values 0 and 1 are the anchor
    frame's 1st and 99th percentile of each component; other frames may exceed that range.
    The sign of a component is arbitrary: choose the one that correlates with `like` [T, h, w, 3],
    or, without `like`, the one with a non-negative sum.
    """
    anchor = features[0].reshape(-1, features.shape[-1])
    _, _, axes = np.linalg.svd(anchor - anchor.mean(axis=0), full_matrices=False)
    # fewer than three components (few patches or channels): the missing colours stay constant
    axes = np.vstack([axes[:3], np.zeros((3, anchor.shape[1]))])[:3]
    components = (features - anchor.mean(axis=0)) @ axes.T
    for k in range(3):
        agreement = (
            components[..., k].sum()
            if like is None
            else ((like[..., k] - like[..., k].mean()) * components[..., k]).sum()
        )
        components[..., k] *= -1 if agreement < 0 else 1
    low, high = np.percentile(components[0].reshape(-1, 3), [1, 99], axis=0)
    return (components - low) / np.maximum(high - low, 1e-12)
