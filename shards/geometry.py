"""Resize, crop and flip frames, points and cameras together; no other module does pixel geometry.

Convention: pixel centres at integer coordinates (see `shards.clip`). A resize from w to w' pixels
keeps the frame's *borders* in place, so x' = (x + 0.5) * w' / w - 0.5, as the resizing of OpenCV
and torch (align_corners=False) does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.clip import Camera

Array = TypeVar("Array")
Number = TypeVar("Number", bound=np.generic)

_DEPTH_EDGE = 1.05
"""The ratio of two depths within a pixel from which it counts as an edge. On a plane that is tilted
by 80 degrees, neighbours in a frame of 256 pixels differ by 2 %."""


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Compute the (width, height) at which a source frame is stored.

    It is shrunk so that its short side is `short_side`; it is never enlarged.
    """
    shortest = min(width, height)
    if shortest <= short_side:
        return width, height
    scale = short_side / shortest
    return round(width * scale), round(height * scale)


def grid_points(grid: int, width: int, height: int) -> NDArray[np.float32]:
    """Place a regular grid of points over a frame: [grid * grid, 2] (x, y) in pixels, row-major.

    The grid is CoTracker3's: in a 512x384 frame it leaves a margin of 8 pixels on every side; a
    single point is (256, 192). The points are mapped to the frame's size corner to corner, as that
    tracker's predictor does. Raises ValueError for a grid of no points.
    """
    if grid < 1:
        raise ValueError(f"a grid needs at least 1 point per side, not {grid}")
    xs = np.linspace(8.0, 504.0, grid) if grid > 1 else np.array([256.0])
    ys = np.linspace(8.0, 376.0, grid) if grid > 1 else np.array([192.0])
    points = np.stack(np.meshgrid(xs * (width - 1) / 511, ys * (height - 1) / 383), axis=-1)
    return points.reshape(-1, 2).astype(np.float32)


def inside(points: NDArray[np.floating], width: int, height: int) -> NDArray[np.bool_]:
    """Tell which points [..., 2] lie in a frame, its half-pixel border included: bool [...]."""
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def normalised(coordinate: Array, size: int) -> Array:
    """Normalise a pixel coordinate along a side of `size` pixels for `grid_sample`.

    For `align_corners=False`: the frame's borders are at -1 and 1.
    """
    return (2 * coordinate + 1) / size - 1  # type: ignore[operator, return-value]


def normalised_corners(coordinate: Array, size: int) -> Array:
    """Normalise a pixel coordinate for `grid_sample(align_corners=True)`.

    The centres of the first and the last pixel are at -1 and 1.
    """
    return 2 * coordinate / (size - 1) - 1  # type: ignore[operator, return-value]


@dataclass(frozen=True)
class FrameTransform:
    """Crop a frame to a box of whole pixels, resize it, and optionally flip it left to right.

    left, top, width, height: the box, in pixels of the frame
    out_width, out_height:    the size after resizing; aspect ratio need not be kept
    """

    left: int
    top: int
    width: int
    height: int
    out_width: int
    out_height: int
    flip: bool = False

    @classmethod
    def whole(cls, width: int, height: int, out_width: int, out_height: int) -> FrameTransform:
        """Resize the whole frame; its aspect ratio changes unless the sizes keep it."""
        return cls(0, 0, width, height, out_width, out_height)

    def flipped(self) -> FrameTransform:
        """Give the same transform with the opposite flip."""
        return replace(self, flip=not self.flip)

    @property
    def reduction(self) -> int:
        """Largest of 1, 2, 4 and 8 by which the frame may be decoded smaller.

        The transform must still shrink the box, and the box stay on whole pixels.
        """
        for factor in (8, 4, 2):
            # Factors are powers of two, so the bitwise or is divisible if all four are.
            whole_pixels = (self.left | self.top | self.width | self.height) % factor == 0
            if (
                whole_pixels
                and self.width >= factor * self.out_width
                and self.height >= factor * self.out_height
            ):
                return factor
        return 1

    def reduced(self, factor: int) -> FrameTransform:
        """Give the transform that does the same to a frame decoded `factor` times smaller.

        Raises ValueError if the box is not on whole pixels there.
        """
        if any(side % factor for side in (self.left, self.top, self.width, self.height)):
            raise ValueError(
                f"the box {self} does not lie on whole pixels of a frame {factor} times smaller"
            )
        left, top, width, height = (
            side // factor for side in (self.left, self.top, self.width, self.height)
        )
        return replace(self, left=left, top=top, width=width, height=height)

    def frame(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transform a frame, uint8 [H, W, 3] → [out_height, out_width, 3].

        Shrinking averages areas, enlarging is bilinear. Raises ValueError if the frame is smaller
        than the box needs.
        """
        box = frame[self.top : self.top + self.height, self.left : self.left + self.width]
        if box.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"the box {self} does not fit a frame of {frame.shape[1]}x{frame.shape[0]}"
            )
        if (self.width, self.height) != (self.out_width, self.out_height):
            shrinks = self.out_width <= self.width and self.out_height <= self.height
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            out = (self.out_width, self.out_height)
            box = cv2.resize(box, out, interpolation=interpolation)  # type: ignore[assignment]
        return np.ascontiguousarray(box[:, ::-1] if self.flip else box)

    def nearest(self, values: NDArray[Number]) -> NDArray[Number]:
        """Transform values that must not be mixed, [H, W] → [out_height, out_width].

        Each pixel takes the value at its centre.
        """
        rows, columns = self._sources()
        return np.ascontiguousarray(values[rows[:, None], columns])

    def depth(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transform a depth map [H, W], 0 where the depth is unknown.

        Each pixel takes the depth at its centre. If it covers depths that differ by more than 5 %,
        it lies on an edge, its colour is a mixture, and its depth is unknown.
        """
        rows, columns = self._sources()
        taken = depth[rows[:, None], columns]
        # Pixels that a pixel of the result covers, at most: its own, and those of its borders.
        cover = (_covered(self.width, self.out_width), _covered(self.height, self.out_height))
        if cover != (1, 1):
            kernel = np.ones(cover[::-1], np.uint8)
            farthest = cv2.dilate(depth, kernel)[rows[:, None], columns]
            nearest = cv2.erode(np.where(depth > 0, depth, np.inf).astype(np.float32), kernel)
            edge = farthest / _DEPTH_EDGE > nearest[rows[:, None], columns]
            taken = np.where(edge, 0, taken)
        return np.ascontiguousarray(taken, np.float32)

    def _sources(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and columns of the frame that hold the centres of the result's pixels."""
        rows = self.top + (np.arange(self.out_height) + 0.5) * (self.height / self.out_height)
        columns = self.left + (np.arange(self.out_width) + 0.5) * (self.width / self.out_width)
        if self.flip:
            columns = columns[::-1]
        return rows.astype(np.int64), columns.astype(np.int64)

    def resize_weights(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the matrices of the resize, for devices that OpenCV does not run on.

        rows [out_height, height] and columns [out_width, width]: `rows @ box @ columns.T`, rounded,
        is within 1 grey level of what `frame` makes of a channel of the box, before the flip.
        """
        shrinks = self.out_width <= self.width and self.out_height <= self.height
        side = _area_weights if shrinks else _linear_weights
        return side(self.height, self.out_height), side(self.width, self.out_width)

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points [..., 2] of the frame to the result; some may fall outside (see `inside`)."""
        # Scaling keeps the frame's border in place, half a pixel before the first centre; mirroring
        # swaps the first centre, 0, with the last, W - 1.
        x = (points[..., 0] - self.left + 0.5) * (self.out_width / self.width) - 0.5
        y = (points[..., 1] - self.top + 0.5) * (self.out_height / self.height) - 0.5
        return np.stack([self.out_width - 1 - x if self.flip else x, y], axis=-1).astype(np.float32)

    def camera(self, camera: Camera) -> Camera:
        """Map a camera of the frame to the result. Raises ValueError if that is mirrored."""
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


def _covered(size: int, out: int) -> int:
    """Return how many pixels of a side a pixel of the result covers: an odd number about one."""
    return 2 * math.ceil((size / out - 1) / 2) + 1 if size > out else 1


def _area_weights(size: int, out: int) -> NDArray[np.float32]:
    """Return how much each pixel along a side counts in each pixel of a smaller one: [out, size].

    A weight is the share of the result's pixel that the pixel covers.
    """
    scale = size / out
    starts, pixels = np.arange(out)[:, None] * scale, np.arange(size)
    covered = np.minimum(starts + scale, pixels + 1) - np.maximum(starts, pixels)
    return (covered.clip(min=0) / scale).astype(np.float32)


def _linear_weights(size: int, out: int) -> NDArray[np.float32]:
    """Return the weights [out, size] of linear interpolation along a side."""
    centres = ((np.arange(out) + 0.5) * (size / out) - 0.5).clip(0, size - 1)
    return (1 - np.abs(centres[:, None] - np.arange(size))).clip(min=0).astype(np.float32)


def shown_cameras(
    transforms: Sequence[FrameTransform], cameras: Sequence[Camera | None]
) -> list[Camera | None]:
    """Map the cameras of a sample's frames to what is shown of them, exactly.

    A mirrored picture is one of a mirrored world: if all frames are flipped, the world's x is
    mirrored, and cameras stay proper rotations. If only some are flipped, the world stays, and
    theirs get a negative fx.
    """
    mirrored_world = all(transform.flip for transform in transforms)
    shown: list[Camera | None] = []
    for transform, camera in zip(transforms, cameras, strict=True):
        if camera is None:
            shown.append(None)
            continue
        mapped = replace(transform, flip=False).camera(camera)
        if transform.flip:
            mapped = replace(mapped, cx=transform.out_width - 1 - mapped.cx)
            mapped = (
                _in_mirrored_world(mapped) if mirrored_world else replace(mapped, fx=-mapped.fx)
            )
        shown.append(mapped)
    return shown


def _in_mirrored_world(camera: Camera) -> Camera:
    """Mirror x of world and camera: [R | t] becomes [S R S | S t] with S = diag(-1, 1, 1)."""
    signs = (1, -1, -1, -1, -1, 1, 1, 1, -1, 1, 1, 1)
    matrix = tuple(s * v for s, v in zip(signs, camera.world_to_camera, strict=True))
    return replace(camera, world_to_camera=matrix)


def stored_transform(
    width: int, height: int, short_side: int, size: tuple[int, int] | None = None
) -> FrameTransform:
    """Give the transform from a source frame to the stored frame.

    It shrinks to `short_side`, or resizes to `size` (width, height) if that is given.
    """
    return FrameTransform.whole(width, height, *(size or stored_size(width, height, short_side)))
