"""Compute prints of pictures: small perceptual hashes, alike for all decoders of a frame.

A print is five sums of the means of a picture's 16x16 cells, each with a fixed pattern of signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

PATTERNS = 5
"""Numbers in a print."""
_CELLS = 16
"""Cells of a picture, across and down."""
_MOST_SUMMED = (1 << 31) // 256
"""Pixels of a picture whose sum of grey levels fits an int32."""


def picture_print(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the print [5] uint8 of a picture [H, W, 3] RGB of any size."""
    sums = corner_sums(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    (result,) = cell_prints(cell_means([sums]))
    return result


def corner_sums(grey: NDArray[Any]) -> NDArray[np.float64]:
    """Return what `cell_means` needs of a grey picture [H, W]: [4, 289].

    Four entries of the summed-area table for each of the 17x17 corners of cells: the table is
    linear between pixels, and their sum is its value at the corner.
    """
    height, width = grey.shape
    whole = height % _CELLS == width % _CELLS == 0
    if whole or min(height, width) < _CELLS or height * width > _MOST_SUMMED:
        grey = cv2.resize(grey, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
    # Where a cell is not a whole number of pixels, cv2.resize takes ten times as long as the table.
    corners, weights = _cell_corners(*grey.shape)
    return cv2.integral(grey).ravel().take(corners) * weights


def cell_means(sums: Sequence[NDArray[np.float64]]) -> NDArray[np.uint8]:
    """Return the means of 16x16 cells [16, 16, N] of N pictures, given their `corner_sums`."""
    table = np.stack(sums).sum(axis=1).T.reshape(_CELLS + 1, _CELLS + 1, -1)
    means = np.diff(np.diff(table, axis=0), axis=1)
    return np.rint(means).astype(np.uint8)


def cell_prints(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the prints [N, 5] uint8 of the cells [16, 16, N] of N pictures."""
    sums = cells.reshape(_CELLS**2, -1).T @ _SIGNS / _CELLS
    return np.clip(np.rint(sums) + 128, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _cell_corners(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how to find the corners of a picture's cells in its summed-area table.

    Returns indices [4, 289] into the flat table [(H + 1) * (W + 1)] for 17x17 corners, and their
    weights [4, 289], divided by the number of pixels per cell.
    """
    edges = np.arange(_CELLS + 1) / _CELLS
    y, x = edges * height, edges * width
    top, left = np.minimum(y.astype(int), height - 1), np.minimum(x.astype(int), width - 1)
    indices, weights = [], []
    for row, by_row in ((top, 1 + top - y), (top + 1, y - top)):
        for column, by_column in ((left, 1 + left - x), (left + 1, x - left)):
            indices.append(np.add.outer(row * (width + 1), column).ravel())
            weights.append(np.outer(by_row, by_column).ravel())
    return np.array(indices), np.array(weights) * (_CELLS**2 / (height * width))


def _signs() -> NDArray[np.float64]:
    """Derive five balanced patterns of signs [256, 5] from XXH3, so that no update changes them."""
    words = [
        xxhash.xxh3_64_intdigest(f"{row} {cell}".encode())
        for row in range(PATTERNS)
        for cell in range(_CELLS**2)
    ]
    order = np.argsort(np.array(words, np.uint64).reshape(PATTERNS, -1), axis=1)
    return np.where(order % 2 == 0, 1.0, -1.0).T


_SIGNS = _signs()
