"""A small dataset in NAVI's layout: photographs of a ball, coloured by position on the ball."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad

RADIUS, DISTANCE, FOCAL = 0.1, 0.5, 220.0
HEIGHT, WIDTH = 96, 128
ANGLES = (0, 8, 20, 35, 70, 100, 160)
"""Degrees by which the photographs of a wild set are turned about the vertical axis."""


def write_navi(root: Path, objects: tuple[str, ...] = ("ball", "orb"), joint: str = "-") -> Path:
    """Write objects with a wild set at `ANGLES` and two multiview collections.

    Photograph 001 is stored on its side, as its EXIF data says. `joint` is the character after
    "multiview".
    """
    for number, name in enumerate(objects):
        (root / name / "3d_scan").mkdir(parents=True)
        write_collection(root / name / "wild_set", ANGLES, offset=0.02 * number)
        for scene in range(2):
            turned = [30 * i + 10 * scene for i in range(4)]
            write_collection(
                root / name / f"multiview{joint}{scene:02d}-pixel_5", turned, offset=0.01
            )
    return root


def write_collection(folder: Path, angles: list[int] | tuple[int, ...], offset: float) -> None:
    """Write photographs of a ball; its centre is `offset` metres off the optical axis."""
    for part in ("images", "depth", "masks"):
        (folder / part).mkdir(parents=True)
    annotations = []
    for number, angle in enumerate(angles):
        half = math.radians(angle) / 2
        quaternion = (math.cos(half), 0.0, math.sin(half), 0.0)
        centre = np.array([offset, -offset, DISTANCE + 0.02 * number])
        depth, points = render(quaternion, centre)
        value = np.where(depth > 0, np.round(65535 * 10 / np.maximum(depth * 1000, 1)), 0).astype(
            np.uint16
        )
        colours = np.where((depth > 0)[..., None], points / RADIUS * 100 + 127, 90.0)
        picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
        exif = Image.Exif()
        if number == 1:  # taken with the camera turned: orientation 6 asks to turn it clockwise
            picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
        picture.save(folder / "images" / f"{number:03d}.jpg", quality=98, subsampling=0, exif=exif)
        Image.fromarray(value).save(folder / "depth" / f"{number:03d}.png")
        camera = {
            "q": quaternion,
            "t": (centre * 1000).tolist(),
            "focal_length": FOCAL,
            "camera_model": "pixel_5",
        }
        annotations.append(
            {
                "object_id": folder.parent.name,
                "camera": camera,
                "filename": f"{number:03d}.jpg",
                "image_size": [HEIGHT, WIDTH],
                "scene_name": folder.name,
                "split": "train",
                "occluded": False,
            }
        )
    (folder / "annotations.json").write_text(json.dumps(annotations))


def render(
    quaternion: tuple[float, ...], centre: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Render a ball that is turned about y.

    Returns depth [H, W] in metres, 0 beside the ball, and the point on the ball [H, W, 3] in the
    ball's frame.
    """
    x, y = np.arange(WIDTH) + 0.5 - WIDTH / 2, np.arange(HEIGHT) + 0.5 - HEIGHT / 2
    rays = np.stack(
        [*np.broadcast_arrays(x[None] / FOCAL, y[:, None] / FOCAL), np.ones((HEIGHT, WIDTH))],
        axis=-1,
    )
    a, b, c = (rays**2).sum(-1), -2 * rays @ centre, centre @ centre - RADIUS**2
    inside = b**2 - 4 * a * c
    depth = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a), 0.0)
    angle = 2 * math.atan2(quaternion[2], quaternion[0])
    rotation = np.array(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    return depth, (depth[..., None] * rays - centre) @ rotation  # row vectors, so by the inverse


def colour_features(images: Tensor, patch: int) -> Tensor:
    """Features that tell which point of the ball a patch shows."""
    extra = -images.shape[-1] % patch
    filled = pad(images.float(), (extra // 2, extra - extra // 2) * 2, mode="replicate")
    return normalize(avg_pool2d(filled, patch).movedim(1, -1) - 127, dim=-1)


def random_features(images: Tensor, patch: int) -> Tensor:
    """Features that tell nothing, the same for the same image."""
    cells = -(-images.shape[-1] // patch)
    seeds = [int(image.long().sum()) for image in images]
    return torch.stack(
        [
            torch.randn(cells, cells, 16, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
    )
