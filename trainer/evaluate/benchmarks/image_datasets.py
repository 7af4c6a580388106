"""The datasets of the benchmarks: home, terms, and errors for files that are missing or broken."""

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
    """A dataset that users fetch themselves.

    what:  content and size, in a phrase
    home:  its home page
    terms: its terms of use, in a phrase
    parts: glob patterns of files or folders that its root must contain
    """

    name: str
    what: str
    home: str
    terms: str
    parts: tuple[str, ...]


SPAIR = Dataset(
    name="SPair-71k",
    what="pairs of photographs with keypoints, 0.25 GB",
    home="cvlab.postech.ac.kr/research/SPair-71k",
    terms="its photographs are PASCAL VOC's, under Flickr's terms of use",
    parts=("JPEGImages", "ImageAnnotation", "PairAnnotation"),
)
NAVI = Dataset(
    name="NAVI",
    what="photographs of scanned objects with poses and depth, 16 GB (v1.0) or 30 GB (v1.5)",
    home="navidataset.github.io",
    terms="read the terms that come with it",
    parts=("*/wild_set",),
)
VOC = Dataset(
    name="PASCAL VOC 2012",
    what="photographs with segmentations, 2 GB",
    home="host.robots.ox.ac.uk/pascal/VOC/voc2012",
    terms="its photographs are under Flickr's terms of use",
    parts=("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
)


def check_dataset(root: Path, dataset: Dataset) -> None:
    """Raise SettingsError, in one sentence, if `root` is missing or not laid out as the dataset."""
    described = f"{dataset.name} ({dataset.what}; {dataset.terms})"
    if not root.is_dir():
        raise SettingsError(
            f"there is no folder {root}: fetch {described} from {dataset.home} "
            "and give the folder it unpacks to"
        )
    for part in dataset.parts:
        if not any(root.glob(part)):
            raise SettingsError(
                f"{root} is not {dataset.name} as it unpacks: {root / part} is missing; "
                f"give the folder that holds it, or fetch {described} from {dataset.home}"
            )


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises PretrackError, in one sentence, if it is missing or broken."""
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
    """Parse values of a JSON file inside this context.

    Values of the wrong kind raise a PretrackError that says, in one sentence, that the file does
    not describe `what`.
    """
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
    """Open an image upright, as its EXIF data says.

    Raises PretrackError, in one sentence, if it is missing or broken.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise PretrackError(f"{path} is missing: unpack the dataset again") from error
    # Pillow raises OSError for damaged pixels, but any error at all for damaged EXIF data.
    except Exception as error:
        raise PretrackError(
            f"{path} cannot be read as an image ({error}): unpack the dataset again"
        ) from error


def as_tensor(image: Image.Image) -> Tensor:
    """Convert an image to uint8 RGB [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
