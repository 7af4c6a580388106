"""Make videos whose motion is known: a texture that moves by whole pixels per frame.

Every true track is therefore known too.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

STEP = (2, 1)
"""How far the content moves from frame to frame: (x, y) in pixels."""


def texture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Make smooth coloured noise [height, width, 3] with corners everywhere."""
    rng = np.random.default_rng(seed)
    noise = sum(
        cv2.resize(
            rng.normal(0, 1, (height // cell, width // cell, 3)),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        for cell in (4, 9, 20)
    )
    return np.clip(128 + 45 * noise, 0, 255).astype(np.uint8)


def panning_frames(
    seed: int, frames: int, width: int = 160, height: int = 120
) -> list[NDArray[np.uint8]]:
    """Make frames [height, width, 3] in which everything moves by STEP."""
    dx, dy = STEP
    whole = texture(seed, width + dx * frames, height + dy * frames)
    starts = [(dx * (frames - t), dy * (frames - t)) for t in range(frames)]
    return [whole[y : y + height, x : x + width].copy() for x, y in starts]


def write_video(path: Path, frames: list[NDArray[np.uint8]], rate: int = 25) -> None:
    """Write an H.264 file of good quality, with a key frame every 10 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(rate), options={"crf": "12", "preset": "veryfast", "g": "10"}
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
