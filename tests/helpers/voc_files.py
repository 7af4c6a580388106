"""A small dataset in PASCAL VOC 2012's layout: squares, each in the colour of its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

KINDS = 5  # background and four classes are in the pictures


def write_voc(root: Path) -> Path:
    """Write images of 64x64 pixels in 4x4 squares, each of one class and in its colour.

    The first two rows of pixels do not count (label 255).
    """
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 226, (KINDS, 3))
    names: dict[str, list[str]] = {
        "train": [f"2007_{i:06d}" for i in range(10)],
        "val": [f"2008_{i:06d}" for i in range(8)],
    }
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, listed in names.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            mask = (
                rng.integers(0, KINDS, (4, 4))
                .repeat(16, axis=0)
                .repeat(16, axis=1)
                .astype(np.uint8)
            )
            picture = colours[mask] + rng.normal(0, 2, (64, 64, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
                root / "JPEGImages" / f"{name}.jpg", quality=98
            )
            mask[:2] = 255
            labels = Image.fromarray(mask).convert("P")
            labels.putpalette([255 - i // 3 for i in range(768)])
            labels.save(root / "SegmentationClass" / f"{name}.png")
    return root


def colour_features(images: Tensor, patch: int) -> Tensor:
    """The mean colour of each patch, which is its class's."""
    return avg_pool2d(images.float(), patch).movedim(1, -1) - 128


def random_features(images: Tensor, patch: int) -> Tensor:
    """Features that tell nothing, the same for the same image."""
    side = images.shape[-1] // patch
    seeds = [int(image.long().sum()) for image in images]
    return torch.stack(
        [
            torch.randn(side, side, 16, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )
