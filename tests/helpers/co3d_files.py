"""Write a small sequence of CO3D with cameras, depth maps and masks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEQUENCE = "10_20_30"
WIDTH, HEIGHT = 80, 64
FRAMES = 6


def co3d_depth(number: int) -> NDArray[np.float16]:
    """A slope from 2 to 4 from left to right, 0.5 farther per frame, and a box at depth 1."""
    depth = np.tile(np.linspace(2, 4, WIDTH), (HEIGHT, 1)) + 0.5 * number
    depth[20:40, 31:50] = 1.0
    return depth.astype(np.float16)


def write_co3d(root: Path) -> None:
    """Write a sequence whose depth maps hold float16 numbers, with masks of both kinds."""
    folder = root / "apple" / SEQUENCE
    for name in ("images", "depths", "depth_masks", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(FRAMES):
        noise = rng.integers(30, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"images/frame{number:06d}.jpg")
        bits = co3d_depth(number).view(np.uint16)
        cv2.imwrite(str(folder / f"depths/frame{number:06d}.jpg.geometric.png"), bits)
        known = np.full((HEIGHT, WIDTH), 255, np.uint8)
        known[:, :8] = 0
        Image.fromarray(known).convert("1").save(folder / f"depth_masks/frame{number:06d}.png")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[20:40, 30:50] = 200
        Image.fromarray(mask).save(folder / f"masks/frame{number:06d}.png")
        base = f"apple/{SEQUENCE}"
        rows.append(
            {
                "sequence_name": SEQUENCE,
                "frame_number": number + 10,
                "frame_timestamp": number / 10,
                "image": {"path": f"{base}/images/frame{number:06d}.jpg", "size": [HEIGHT, WIDTH]},
                "depth": {
                    "path": f"{base}/depths/frame{number:06d}.jpg.geometric.png",
                    "scale_adjustment": 3.0,
                    "mask_path": f"{base}/depth_masks/frame{number:06d}.png",
                },
                "mask": {"path": f"{base}/masks/frame{number:06d}.png", "mass": 1.0},
                "viewpoint": {
                    "R": np.eye(3).tolist(),
                    "T": [0.1 * number, 0.0, 5.0],
                    "focal_length": [2.0, 2.0],
                    "principal_point": [0.0, 0.0],
                },
            }
        )
    (root / "apple/frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(rows).encode()))
