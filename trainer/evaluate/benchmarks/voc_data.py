"""PASCAL VOC 2012 on disk: the images of a split, and batches of images with their labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.errors import PretrackError, SettingsError
from trainer.evaluate.benchmarks.image_datasets import VOC, as_tensor, check_dataset, open_image
from trainer.evaluate.benchmarks.settings import Split

log = logging.getLogger(__name__)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
IGNORED = 255
"""The label of pixels that do not count."""
BATCH = 16
"""Images per batch."""
_LOG_EVERY = 500  # images


def list_images(root: Path, split: Split, at_most: int | None) -> list[str]:
    """List the images of a split, or `at_most` of them, evenly spaced.

    Raises SettingsError if the dataset or the split is missing.
    """
    check_dataset(root, VOC)
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    missing = [path for path in (file, _mask_folder(root, split)) if not path.exists()]
    if missing:
        remedy = ": unpack the dataset again"
        if split == "trainaug":
            remedy = "; it is no part of the dataset as released: add it, or use the split 'train'"
        raise SettingsError(f"{missing[0]} is missing{remedy}")
    names = file.read_text(encoding="utf-8").split()
    if not names:
        raise SettingsError(f"{file} lists no images")
    if at_most is None or at_most >= len(names):
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, at_most).round().astype(int)]


def read_batches(
    root: Path, split: Split, names: Sequence[str], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images uint8 [B, 3, size, size] and labels int64 [B, size, size].

    Both are squashed to the square: images bilinearly, labels by nearest neighbours.
    """
    masks = _mask_folder(root, split)
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        images = [_read_image(root / "JPEGImages" / f"{name}.jpg", size) for name in batch]
        labels = [_read_labels(masks / f"{name}.png", size) for name in batch]
        yield torch.stack(images), torch.stack(labels)
        done = start + len(batch)
        if done // _LOG_EVERY > start // _LOG_EVERY:
            log.info("%s: %d of %d images done", split, done, len(names))


def _mask_folder(root: Path, split: Split) -> Path:
    return root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")


def _read_image(path: Path, size: int) -> Tensor:
    """Read an image as uint8 [3, size, size]."""
    return as_tensor(open_image(path).resize((size, size), Image.Resampling.BILINEAR))


def _read_labels(path: Path, size: int) -> Tensor:
    """Read labels as int64 [size, size]. Raises PretrackError for a broken or unfit image."""
    image = open_image(path).resize((size, size), Image.Resampling.NEAREST)
    labels = np.array(image).astype(np.int64)
    if labels.ndim != 2 or not np.isin(labels, [*range(len(CLASSES)), IGNORED]).all():
        raise PretrackError(
            f"{path} is no image of labels 0 to {len(CLASSES) - 1} and {IGNORED}: "
            "unpack the dataset again"
        )
    return torch.from_numpy(labels)
