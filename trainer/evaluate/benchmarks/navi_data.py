"""NAVI: photographs of scanned objects with poses and depth, read as Probe3D reads them (versions 1.0 and 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shards.errors import PretrackError, SettingsError
from trainer.evaluate.benchmarks.image_datasets import (
    NAVI,
    as_tensor,
    check_dataset,
    describing,
    open_image,
    read_json,
)

Floats = NDArray[np.float64]

Subset = Literal["wild_set", "multiview"]

_SHORT_SIDE = 1024  # what Probe3D shrinks the photographs to, once, under names with this prefix
_SHRUNK = "downsampled_"
_DISPARITY = 65535 * 10  # of a depth image: value = this / mm


@dataclass(frozen=True)
class Photograph:
    """A photograph with its camera: x_camera = rotation @ x_object + translation, in metres, camera looking along +z."""

    folder: Path
    stem: str
    rotation: Floats
    translation: Floats
    focal: float
    """Focal length in pixels of the photograph; the principal point is its middle."""
    height: int
    width: int

    @property
    def name(self) -> str:
        """Object, collection and number: `bunny/wild_set/003`."""
        return f"{self.folder.parent.name}/{self.folder.name}/{self.stem}"


@dataclass(frozen=True)
class Crop:
    """The square around an object, resized.

    image: uint8 RGB [3, size, size]
    depth: float32 [size, size] in metres, 0 where the object is not
    points: float32 [size, size, 3], the places seen, in metres in the camera's frame; 0 where the object is not
    box: float32 depth [side, side] before the last resize, for normals
    box_focal, focal: focal lengths in pixels of `box` and of the crop
    corner: (row, column) of the box's first pixel in the centre-cropped square of `size`
    """

    image: Tensor
    depth: Tensor
    points: Tensor
    box: Tensor
    box_focal: float
    focal: float
    corner: tuple[int, int]


def list_views(root: Path, subset: Subset) -> list[Photograph]:
    """The photographs of a subset, sorted by name: `wild_set`, or all multiview collections of objects that have a wild set too.

    Raises SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or broken.
    """
    check_dataset(root, NAVI)
    views = []
    for wild in sorted(root.glob("*/wild_set")):
        folders = (
            [wild]
            if subset == "wild_set"
            else sorted(p for p in wild.parent.glob("multiview[-_]*") if p.is_dir())
        )
        for folder in folders:
            views += _collection(folder)
    if not views:
        raise SettingsError(
            f"{root} holds no {subset} photographs: expected OBJECT/{subset}…/annotations.json and images/"
        )
    return views


def _collection(folder: Path) -> list[Photograph]:
    """The photographs of one collection, sorted."""
    file = folder / "annotations.json"
    listed = read_json(file)
    with describing(f"photographs of {NAVI.name}", file):
        return sorted((_as_view(folder, values) for values in listed), key=lambda view: view.stem)


def _as_view(folder: Path, values: dict[str, Any]) -> Photograph:
    camera = values["camera"]
    height, width = (int(side) for side in values["image_size"])
    if min(height, width) < 1:
        raise ValueError(f"a photograph of {width}x{height} pixels")
    return Photograph(
        folder=folder,
        stem=values["filename"].split(".")[0],
        rotation=rotation_of(camera["q"]),
        translation=np.array(camera["t"], np.float64).reshape(3) / 1000,
        focal=float(camera["focal_length"]),
        height=height,
        width=width,
    )


def rotation_of(quaternion: Sequence[float]) -> Floats:
    """The rotation matrix of a quaternion (w, x, y, z), which need not be of unit length."""
    w, x, y, z = np.array(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def read_crop(view: Photograph, size: int = 512) -> Crop:
    """A photograph as Probe3D shows it: the shorter side resized to `size`, the middle square cut out, then the square around the
    object, resized to `size` again. All but the first shrinking is by nearest neighbours, so that image and depth stay together.

    Raises PretrackError if a file is missing or broken, or if the object is not in the picture.
    """
    photograph = _shrunk(view.folder / "images", f"{view.stem}.jpg", Image.Resampling.BICUBIC)
    image = as_tensor(photograph)
    value = torch.from_numpy(
        np.array(
            _shrunk(view.folder / "depth", f"{view.stem}.png", Image.Resampling.NEAREST)
        ).astype(np.float32)
    )
    if value.ndim != 2 or value.shape != image.shape[1:]:
        raise PretrackError(
            f"depth and image of {view.name} are {tuple(value.shape)} and {tuple(image.shape[1:])}: unpack again"
        )
    depth = torch.where(value > 0, _DISPARITY / value.clamp(min=1) / 1000, 0.0)
    image, depth = _middle(image, size), _middle(depth, size)
    focal = view.focal * size / min(view.height, view.width)
    points = unprojected(depth, focal, (size / 2, size / 2))
    rows, columns = _square_around(depth > 0, view.name)
    box = depth[rows, columns]
    return Crop(
        image=nearest(image[:, rows, columns], size, size),
        depth=nearest(box, size, size),
        points=nearest(points[rows, columns].movedim(-1, 0), size, size).movedim(0, -1),
        box=box,
        box_focal=focal,
        focal=focal * size / len(box),
        corner=(rows.start, columns.start),
    )


def _shrunk(folder: Path, name: str, how: Image.Resampling) -> Image.Image:
    """A file with its shorter side at most 1024 px: Probe3D's own shrunk file where there is one, or the same made here."""
    if (folder / f"{_SHRUNK}{name}").is_file():
        return open_image(folder / f"{_SHRUNK}{name}")
    image = open_image(folder / name)
    factor = _SHORT_SIDE / min(image.size)
    return (
        image
        if factor >= 1
        else image.resize((int(image.width * factor), int(image.height * factor)), how)
    )


def nearest(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes [..., H, W] by nearest neighbours: pixel i takes pixel floor(i * H / height)."""
    rows = torch.arange(height) * image.shape[-2] // height
    columns = torch.arange(width) * image.shape[-1] // width
    return image[..., rows[:, None], columns]


def _middle(image: Tensor, size: int) -> Tensor:
    """[..., H, W] with the shorter side resized to `size`, and the middle square of it: [..., size, size]."""
    height, width = image.shape[-2:]
    image = nearest(image, *(size * side // min(height, width) for side in (height, width)))
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def unprojected(depth: Tensor, focal: float, principal: tuple[float, float]) -> Tensor:
    """Places [H, W, 3] in the camera's frame from depth along +z; a pixel (x, y) is seen at (x + 0.5, y + 0.5)."""
    y, x = (torch.arange(side, dtype=depth.dtype) + 0.5 for side in depth.shape)
    return torch.stack(
        [depth * (x - principal[0]) / focal, depth * ((y - principal[1]) / focal)[:, None], depth],
        dim=-1,
    )


def _square_around(mask: Tensor, name: str) -> tuple[slice, slice]:
    """Rows and columns of Probe3D's square around an object: centred on its box if that fits, or else moved up and left.

    As there, the box leaves out the object's last row and column. Raises PretrackError if the mask is empty.
    """
    found = mask.nonzero()
    if not len(found):
        raise PretrackError(
            f"the middle of {name} shows no pixel of the object: its depth image is empty"
        )
    first, last = found.min(dim=0).values, found.max(dim=0).values
    side = int((last - first).max().clamp(min=1))
    missing = side - (last - first).clamp(max=side)
    start = first - missing // 2
    if (start < 0).any() or (start + side > torch.tensor(mask.shape)).any():
        start = (first - missing).clamp(min=0)
    top, left = start.tolist()
    return slice(top, top + side), slice(left, left + side)
