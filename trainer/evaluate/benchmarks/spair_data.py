"""SPair-71k on disk: pairs of images of one class, and images with their keypoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from shards.errors import SettingsError
from trainer.evaluate.benchmarks.image_datasets import (
    SPAIR,
    as_tensor,
    describing,
    open_image,
    read_json,
)


@dataclass(frozen=True)
class ImagePair:
    """A source and a target image of one class.

    boxes: bounding boxes (left, top, right, bottom) in pixels of the image files
    scale: longer side of the target's box, as a fraction of the longer side of its image
    """

    name: str
    category: str
    viewpoint: int
    images: tuple[str, str]
    boxes: tuple[tuple[float, ...], tuple[float, ...]]
    scale: float


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as a square of S pixels, with its keypoints.

    image:     uint8 [3, S, S]
    keypoints: [K, 2] (x, y) in pixels of the square; NaN for one that is not annotated
    zoom:      pixels of the square per pixel of the image file
    """

    image: Tensor
    keypoints: Tensor
    zoom: float


def read_pairs(root: Path, split: str) -> list[ImagePair]:
    """Read all pairs of a split.

    Raises SettingsError if there is none, and PretrackError if one is broken.
    """
    folder = root / "PairAnnotation" / split
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SettingsError(f"{folder} holds no pairs (*.json): unpack {SPAIR.name} again")
    return [_parse_pair(file, read_json(file)) for file in files]


def _parse_pair(file: Path, values: dict[str, Any]) -> ImagePair:
    with describing(f"a pair of {SPAIR.name}", file):
        # File names look like 000001-2008_000001-2008_000002:cat.
        _, source, target = values["filename"].split(":")[0].split("-")
        left, top, right, bottom = values["trg_bndbox"]
        return ImagePair(
            name=values["filename"],
            category=str(values["category"]),
            viewpoint=int(values["viewpoint_variation"]),
            images=(source, target),
            boxes=(tuple(values["src_bndbox"]), (left, top, right, bottom)),
            scale=max(right - left, bottom - top) / max(values["trg_imsize"][:2]),
        )


def read_annotated_image(root: Path, category: str, name: str, size: int) -> AnnotatedImage:
    """Read an image, padded with white to a square on the right and below, then resized to `size`.

    Resizing is bicubic and antialiased.
    """
    picture = open_image(root / "JPEGImages" / category / f"{name}.jpg").convert("RGB")
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture, (0, 0))
    zoom = size / side
    keypoints = _read_keypoints(root / "ImageAnnotation" / category / f"{name}.json") * zoom
    resized = as_tensor(square.resize((size, size), Image.Resampling.BICUBIC))
    return AnnotatedImage(resized, keypoints, zoom)


def _read_keypoints(file: Path) -> Tensor:
    """Read an image's keypoints in pixels of its file [K, 2]; NaN if one is not annotated."""
    values = read_json(file)
    with describing(f"the keypoints of an image of {SPAIR.name}", file):
        listed = values["kps"]
        positions = [listed[str(i)] or (math.nan, math.nan) for i in range(len(listed))]
        return torch.tensor(positions, dtype=torch.float32).reshape(len(positions), 2)
