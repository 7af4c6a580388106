"""Which datasets the evaluations read, where people get them and under which terms; and what is said when one is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from shards.errors import PretrackError, SettingsError


@dataclass(frozen=True)
class Dataset:
    """A dataset that somebody has to fetch: what it is, its home page, its terms, and folders that show that it is there."""

    name: str
    what: str
    home: str
    terms: str
    holds: tuple[str, ...]
    """Folders or files directly below the root; a pattern such as `*/wild_set` has to match something."""


SPAIR = Dataset(
    "SPair-71k",
    "pairs of photographs with keypoints, 0.25 GB",
    "cvlab.postech.ac.kr/research/SPair-71k",
    "its photographs are PASCAL VOC's, under Flickr's terms of use",
    ("JPEGImages", "ImageAnnotation", "PairAnnotation"),
)
NAVI = Dataset(
    "NAVI",
    "photographs of scanned objects with poses and depth, 16 GB (v1.0) or 30 GB (v1.5)",
    "navidataset.github.io",
    "read the terms that come with it",
    ("*/wild_set",),
)
VOC = Dataset(
    "PASCAL VOC 2012",
    "photographs with segmentations, 2 GB",
    "host.robots.ox.ac.uk/pascal/VOC/voc2012",
    "its photographs are under Flickr's terms of use",
    ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
)


def check_dataset(root: Path, dataset: Dataset) -> None:
    """Raises SettingsError, in one sentence, if `root` is not there or is not laid out as the dataset is."""
    told = f"{dataset.name} ({dataset.what}; {dataset.terms})"
    if not root.is_dir():
        raise SettingsError(
            f"there is no folder {root}: fetch {told} from {dataset.home} and give the folder it unpacks to"
        )
    for part in dataset.holds:
        if not any(root.glob(part)):
            raise SettingsError(
                f"{root} is not {dataset.name} as it unpacks: {root / part} is missing; give the folder that holds it, "
                f"or fetch {told} from {dataset.home}"
            )


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises PretrackError, in one sentence, if it is missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PretrackError(f"{path} is missing: unpack the dataset again") from error
    except (ValueError, RecursionError) as error:
        raise PretrackError(
            f"{path} is not valid JSON ({error}): unpack the dataset again"
        ) from error


@contextmanager
def describing(what: str, path: Path) -> Iterator[None]:
    """Inside, values of a JSON file are taken to describe something: any that do not become a PretrackError, in one sentence."""
    try:
        yield
    except (
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        raise PretrackError(
            f"{path} does not describe {what} ({error!r}): unpack the dataset again"
        ) from error


def open_image(path: Path) -> Image.Image:
    """An image file, upright as its EXIF data says. Raises PretrackError, in one sentence, if it is missing or broken."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise PretrackError(f"{path} is missing: unpack the dataset again") from error
    except Exception as error:  # of damaged pixels Pillow raises an OSError, of damaged EXIF data whatever comes of them
        raise PretrackError(
            f"{path} cannot be read as an image ({error}): unpack the dataset again"
        ) from error


def as_tensor(image: Image.Image) -> Tensor:
    """An image as uint8 RGB [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
