"""A small dataset in SPair-71k's layout: views of an object, coloured by position on the object."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

KEYPOINTS = 9


def write_spair(
    root: Path, classes: tuple[str, ...] = ("cat", "bus"), views: int = 4, side: int = 1
) -> Path:
    """Write `views` images per class, 96x72 or 72x96 times `side`, and every pair of them.

    The pairs have viewpoints 0, 1, 2, 0, 1 and so on.
    """
    rng = np.random.default_rng(0)
    for category in classes:
        for part in ("JPEGImages", "ImageAnnotation", "Segmentation"):
            (root / part / category).mkdir(parents=True)
        places = rng.uniform(
            0.2, 0.8, (KEYPOINTS, 2)
        )  # on the object, which is 0..1 in both directions
        sizes, boxes = {}, {}
        for number in range(views):
            name = f"2008_{number:06d}"
            width, height = ((96, 72), (72, 96))[number % 2]
            width, height = width * side, height * side
            left, top = rng.uniform(0, 0.1, 2) * (width, height)
            wide, high = rng.uniform(0.8, 0.9, 2) * (width, height)
            x, y = (np.arange(width) + 0.5 - left) / wide, (np.arange(height) + 0.5 - top) / high
            picture = np.zeros((height, width, 3))
            picture[..., 0], picture[..., 1], picture[..., 2] = (
                30 + 160 * x,
                (30 + 160 * y)[:, None],
                20 * number,
            )
            path = root / "JPEGImages" / category / f"{name}.jpg"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
                path, quality=98, subsampling=0
            )
            spots = np.round(places * (wide, high) + (left, top)).astype(int).tolist()
            kps = {str(i): None if (i + number) % 4 == 0 else spot for i, spot in enumerate(spots)}
            boxes[name] = [round(left), round(top), round(left + wide), round(top + high)]
            sizes[name] = [width, height, 3]
            annotation = {
                "filename": f"{name}.jpg",
                "category": category,
                "bndbox": boxes[name],
                "kps": kps,
            }
            (root / "ImageAnnotation" / category / f"{name}.json").write_text(
                json.dumps(annotation)
            )
        for split in ("trn", "val", "test"):
            folder = root / "PairAnnotation" / split
            folder.mkdir(parents=True, exist_ok=True)
            for number, (source, target) in enumerate(itertools.permutations(sizes, 2)):
                name = f"{number:06d}-{source}-{target}:{category}"
                pair = {
                    "filename": name,
                    "category": category,
                    "viewpoint_variation": number % 3,
                    "src_bndbox": boxes[source],
                    "trg_bndbox": boxes[target],
                    "trg_imsize": sizes[target],
                }
                (folder / f"{name}.json").write_text(json.dumps(pair))
    return root


def colour_features(images: Tensor, patch: int) -> Tensor:
    """Features that tell where on the object a patch is, from its mean red and green.

    Images are padded on all sides to whole patches.
    """
    extra = -images.shape[-1] % patch
    filled = torch.nn.functional.pad(
        images.float(), (extra // 2, extra - extra // 2) * 2, mode="replicate"
    )
    red, green = (avg_pool2d(filled, patch)[:, :2] * (np.pi / 255)).unbind(1)
    return torch.stack([red.cos(), red.sin(), green.cos(), green.sin()], dim=-1)


def noisy_features(images: Tensor, patch: int, noise: float = 0.1) -> Tensor:
    """Colour features with noise that depends only on the image: some keypoints are found."""
    features = colour_features(images, patch)
    seeds = [int(image.long().sum()) for image in images]
    drawn = [
        torch.randn(features.shape[1:], generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return features + noise * torch.stack(drawn)


def random_features(images: Tensor, patch: int) -> Tensor:
    """Features that tell nothing."""
    return noisy_features(images, patch, 1e6)
