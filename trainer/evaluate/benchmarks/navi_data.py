"""NAVI on disk: photographs of scanned objects with poses and depth, read as in Probe3D.

Versions 1.0 and 1.5.
"""

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

# Probe3D shrinks the photographs once, to this shorter side, under names with this prefix.
_SHORT_SIDE = 1024
_SHRUNK = "downsampled_"
_DISPARITY = 65535 * 10  # a depth image's value is this / depth in mm


@dataclass(frozen=True)
class Photograph:
    """A photograph with its camera: x_camera = rotation @ x_object + translation.

    In metres; the camera looks along +z.

    focal:         focal length in pixels of the photograph; the principal point is its middle
    height, width: size in pixels
    """

    folder: Path
    stem: str
    rotation: Floats
    translation: Floats
    focal: float
    height: int
    width: int

    @property
    def name(self) -> str:
        """Object, collection and number: `bunny/wild_set/003`."""
        return f"{self.folder.parent.name}/{self.folder.name}/{self.stem}"


@dataclass(frozen=True)
class Crop:
    """The square around an object, resized to `size`.

    image:  uint8 RGB [3, size, size]
    depth:  float32 [size, size] in metres; 0 beside the object
    points: float32 [size, size, 3], surface points in metres in the camera's frame; 0 beside the
            object
    box:    float32 depth [side, side] of the square before it is resized, for normals
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


def list_photographs(root: Path, subset: Subset) -> list[Photograph]:
    """List the photographs of a subset, sorted by name.

    `wild_set`, or all multiview collections of the objects that also have a wild set. Raises
    SettingsError or PretrackError, in one sentence, if the dataset is missing, incomplete or
    broken.
    """
    check_dataset(root, NAVI)
    photographs = []
    for wild in sorted(root.glob("*/wild_set")):
        if subset == "wild_set":
            folders = [wild]
        else:
            # Version 1.0 writes multiview_00…, version 1.5 multiview-00….
            folders = sorted(p for p in wild.parent.glob("multiview[-_]*") if p.is_dir())
        for folder in folders:
            photographs += _read_collection(folder)
    if not photographs:
        raise SettingsError(
            f"{root} holds no {subset} photographs: "
            f"expected OBJECT/{subset}…/annotations.json and images/"
        )
    return photographs


def _read_collection(folder: Path) -> list[Photograph]:
    """Read the photographs of one collection, sorted by name."""
    file = folder / "annotations.json"
    annotations = read_json(file)
    with describing(f"photographs of {NAVI.name}", file):
        photographs = [_parse_photograph(folder, values) for values in annotations]
        return sorted(photographs, key=lambda photograph: photograph.stem)


def _parse_photograph(folder: Path, values: dict[str, Any]) -> Photograph:
    camera = values["camera"]
    height, width = (int(side) for side in values["image_size"])
    if min(height, width) < 1:
        raise ValueError(f"a photograph of {width}x{height} pixels")
    return Photograph(
        folder=folder,
        stem=values["filename"].split(".")[0],
        rotation=rotation_of(camera["q"]),
        translation=np.array(camera["t"], np.float64).reshape(3) / 1000,  # from mm
        focal=float(camera["focal_length"]),
        height=height,
        width=width,
    )


def rotation_of(quaternion: Sequence[float]) -> Floats:
    """Compute the rotation matrix [3, 3] of a quaternion (w, x, y, z) of any length but 0."""
    w, x, y, z = np.array(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def read_crop(photograph: Photograph, size: int = 512) -> Crop:
    """Read a photograph as Probe3D shows it: the square around the object, resized to `size`.

    The shorter side is resized to `size`, the middle square is cut out, then the square around the
    object, and that is resized to `size` again. All but the first shrinking take the nearest
    neighbour, so that image and depth stay aligned.

    Raises PretrackError if a file is missing or broken, or if the object is not in the picture.
    """
    image, depth = _read_image_and_depth(photograph)
    image, depth = _middle_square(image, size), _middle_square(depth, size)
    focal = photograph.focal * size / min(photograph.height, photograph.width)
    points = unproject(depth, focal, (size / 2, size / 2))
    rows, columns = _square_around(depth > 0, photograph.name)
    box = depth[rows, columns]
    return Crop(
        image=resize_nearest(image[:, rows, columns], size, size),
        depth=resize_nearest(box, size, size),
        points=resize_nearest(points[rows, columns].movedim(-1, 0), size, size).movedim(0, -1),
        box=box,
        box_focal=focal,
        focal=focal * size / len(box),
        corner=(rows.start, columns.start),
    )


def shown_camera(photograph: Photograph, crop: Crop) -> tuple[Tensor, Tensor]:
    """Return a crop's intrinsics [3, 3], pixel centres at whole numbers, and its pose [3, 4].

    Axes are OpenCV's, and the world is the object, in metres.
    """
    size, side = crop.image.shape[-1], len(crop.box)
    # Pixel i shows pixel floor(i * side / size) of the box (`resize_nearest`): a shift that is not
    # the same for all pixels. The mean over pixels counts.
    middle, shown = (size - 1) / 2, (torch.arange(size) * side // size).double().mean() + 0.5
    cy, cx = (middle + float(size / 2 - first - shown) * size / side for first in crop.corner)
    intrinsics = torch.tensor([[crop.focal, 0, cx], [0, crop.focal, cy], [0, 0, 1]])
    pose = np.concatenate([photograph.rotation, photograph.translation[:, None]], axis=1)
    return intrinsics, torch.from_numpy(pose).float()


def _read_image_and_depth(photograph: Photograph) -> tuple[Tensor, Tensor]:
    """Read uint8 RGB [3, H, W], and float32 depth [H, W] in metres; 0 beside the object.

    Raises PretrackError if a file is missing or broken, or if their sizes differ.
    """
    folder, stem = photograph.folder, photograph.stem
    image = as_tensor(_read_shrunk(folder / "images", f"{stem}.jpg", Image.Resampling.BICUBIC))
    stored = _read_shrunk(folder / "depth", f"{stem}.png", Image.Resampling.NEAREST)
    disparity = torch.from_numpy(np.array(stored).astype(np.float32))
    if disparity.ndim != 2 or disparity.shape != image.shape[1:]:
        raise PretrackError(
            f"depth and image of {photograph.name} are {tuple(disparity.shape)} and "
            f"{tuple(image.shape[1:])}: unpack again"
        )
    depth = torch.where(disparity > 0, _DISPARITY / disparity.clamp(min=1) / 1000, 0.0)
    return image, depth


def _read_shrunk(folder: Path, name: str, method: Image.Resampling) -> Image.Image:
    """Read a file with its shorter side at most 1024 px: Probe3D's shrunk file, or shrunk here."""
    if (folder / f"{_SHRUNK}{name}").is_file():
        return open_image(folder / f"{_SHRUNK}{name}")
    image = open_image(folder / name)
    factor = _SHORT_SIDE / min(image.size)
    if factor >= 1:
        return image
    return image.resize((int(image.width * factor), int(image.height * factor)), method)


def resize_nearest(image: Tensor, height: int, width: int) -> Tensor:
    """Resize [..., H, W] by nearest neighbours: pixel i takes pixel floor(i * H / height)."""
    rows = torch.arange(height) * image.shape[-2] // height
    columns = torch.arange(width) * image.shape[-1] // width
    return image[..., rows[:, None], columns]


def _middle_square(image: Tensor, size: int) -> Tensor:
    """Resize [..., H, W] to a shorter side of `size` and cut out the middle: [..., size, size]."""
    height, width = image.shape[-2:]
    shorter = min(height, width)
    image = resize_nearest(image, size * height // shorter, size * width // shorter)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def unproject(depth: Tensor, focal: float, principal: tuple[float, float]) -> Tensor:
    """Compute points [H, W, 3] in the camera's frame from depth [H, W] along +z.

    principal: principal point (x, y) in pixels, measured from the image's corner: pixel (x, y) is
    seen at (x + 0.5, y + 0.5)
    """
    y, x = (torch.arange(side, dtype=depth.dtype) + 0.5 for side in depth.shape)
    return torch.stack(
        [depth * (x - principal[0]) / focal, depth * ((y - principal[1]) / focal)[:, None], depth],
        dim=-1,
    )


def _square_around(mask: Tensor, name: str) -> tuple[slice, slice]:
    """Find Probe3D's square around an object, in rows and columns: centred on its box, if it fits.

    If it does not, the square is moved up and left. As in Probe3D, the box leaves out the object's
    last row and column. Raises PretrackError if the mask is empty.
    """
    pixels = mask.nonzero()
    if not len(pixels):
        raise PretrackError(
            f"the middle of {name} shows no pixel of the object: its depth image is empty"
        )
    first, last = pixels.min(dim=0).values, pixels.max(dim=0).values
    side = int((last - first).max().clamp(min=1))
    missing = side - (last - first).clamp(max=side)
    start = first - missing // 2
    if (start < 0).any() or (start + side > torch.tensor(mask.shape)).any():
        start = (first - missing).clamp(min=0)
    top, left = start.tolist()
    return slice(top, top + side), slice(left, left + side)
