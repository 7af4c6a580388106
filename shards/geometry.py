"""The one home of pixel geometry: resize, crop and flip of frames, points and cameras together.

Convention: pixel centres at integer coordinates (see `shards.clip`). A resize from w to w' pixels keeps the frame's *borders* in
place, so x' = (x + 0.5) * w' / w - 0.5; this is what OpenCV's and torch's (align_corners=False) resizing does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera

Array = TypeVar("Array")


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) at which a source frame is stored: shrunk so that its short side is `short_side`, never enlarged."""
    shortest = min(width, height)
    if shortest <= short_side:
        return width, height
    scale = short_side / shortest
    return max(1, round(width * scale)), max(1, round(height * scale))


def grid_points(grid: int, width: int, height: int) -> NDArray[np.float32]:
    """A regular grid over a frame, row-major: [grid * grid, 2] (x, y) in its pixels.

    The grid is CoTracker3's: in a 512x384 frame it leaves a margin of 8 pixels on every side; a single point is (256, 192). The
    points are mapped to the frame's size corner to corner, as that tracker's predictor maps its own.
    """
    if grid < 1:
        raise ValueError(f"a grid needs at least 1 point a side, not {grid}")
    xs = np.linspace(8.0, 504.0, grid) if grid > 1 else np.array([256.0])
    ys = np.linspace(8.0, 376.0, grid) if grid > 1 else np.array([192.0])
    points = np.stack(np.meshgrid(xs * (width - 1) / 511, ys * (height - 1) / 383), axis=-1)
    return points.reshape(-1, 2).astype(np.float32)


def inside(points: NDArray[np.floating], width: int, height: int) -> NDArray[np.bool_]:
    """Which points [..., 2] lie in a frame, its half-pixel border included: [...]."""
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def normalised(coordinate: Array, size: int) -> Array:
    """A pixel coordinate along a side of `size` pixels as `grid_sample(align_corners=False)` wants it: borders at -1 and 1."""
    return (2 * coordinate + 1) / size - 1  # type: ignore[operator, return-value]


def normalised_corners(coordinate: Array, size: int) -> Array:
    """The same for `align_corners=True`: the centres of the first and last pixel at -1 and 1."""
    return 2 * coordinate / (size - 1) - 1  # type: ignore[operator, return-value]


@dataclass(frozen=True)
class FrameTransform:
    """A box of a frame (whole pixels), resized to `out_width` x `out_height`, then perhaps flipped left to right."""

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int
    flip: bool = False

    @classmethod
    def whole(cls, width: int, height: int, out_width: int, out_height: int) -> FrameTransform:
        """The whole frame, resized; its aspect ratio is not kept unless the sizes keep it."""
        return cls(0, 0, width, height, out_width, out_height)

    def flipped(self) -> FrameTransform:
        """The same view, mirrored."""
        return replace(self, flip=not self.flip)

    @property
    def reduction(self) -> int:
        """1, 2, 4 or 8: how much smaller a frame may be decoded, with the view still shrinking it and its box in whole pixels."""
        for factor in (8, 4, 2):
            whole = (self.left | self.top | self.width | self.height) % factor == 0
            if (
                whole
                and self.width >= factor * self.out_width
                and self.height >= factor * self.out_height
            ):
                return factor
        return 1

    def reduced(self, factor: int) -> FrameTransform:
        """The same view of a frame decoded `factor` times smaller. Raises ValueError if its box is not in whole pixels there."""
        if any(side % factor for side in (self.left, self.top, self.width, self.height)):
            raise ValueError(
                f"the box {self} does not lie on whole pixels of a frame {factor} times smaller"
            )
        left, top, width, height = (
            side // factor for side in (self.left, self.top, self.width, self.height)
        )
        return replace(self, left=left, top=top, width=width, height=height)

    def frame(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The view of a frame [H, W, 3] uint8: [out_height, out_width, 3]. Shrinking averages areas, enlarging is bilinear."""
        box = frame[self.top : self.top + self.height, self.left : self.left + self.width]
        if box.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"the box {self} does not fit a frame of {frame.shape[1]}x{frame.shape[0]}"
            )
        if (self.width, self.height) != (self.out_width, self.out_height):
            shrinks = self.out_width <= self.width and self.out_height <= self.height
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            box = cv2.resize(box, (self.out_width, self.out_height), interpolation=how)  # type: ignore[assignment]
        return np.ascontiguousarray(box[:, ::-1] if self.flip else box)

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps points [..., 2] of the frame into the view; they may fall outside it (see `inside`)."""
        x = (points[..., 0] - self.left + 0.5) * (self.out_width / self.width) - 0.5
        y = (points[..., 1] - self.top + 0.5) * (self.out_height / self.height) - 0.5
        return np.stack([self.out_width - 1 - x if self.flip else x, y], axis=-1).astype(np.float32)

    def camera(self, camera: Camera) -> Camera:
        """The camera of the view. A mirrored view has no camera: raises ValueError."""
        if self.flip:
            raise ValueError("a mirrored view has no pinhole camera")
        sx, sy = self.out_width / self.width, self.out_height / self.height
        return replace(
            camera,
            fx=camera.fx * sx,
            fy=camera.fy * sy,
            cx=(camera.cx - self.left + 0.5) * sx - 0.5,
            cy=(camera.cy - self.top + 0.5) * sy - 0.5,
        )


def stored_transform(
    width: int, height: int, short_side: int, size: tuple[int, int] | None = None
) -> FrameTransform:
    """From a source frame to the stored one: shrunk to `short_side`, or squashed to `size` (width, height) if that is given."""
    return FrameTransform.whole(width, height, *(size or stored_size(width, height, short_side)))
