"""Angles between camera poses, and between rays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def angle_between(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Compute the degrees between two poses with rotation matrices [3, 3].

    The angle of the rotation `second @ first.T`, from its trace, 1 + 2 cos(angle).
    """
    cosine = (np.trace(second @ first.T) - 1) / 2
    return math.degrees(math.acos(float(np.clip(cosine, -1, 1))))


def angles_between(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the degrees between vectors [..., 3]. Exact for small angles, too."""
    crossed = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.asarray(np.degrees(np.arctan2(crossed, (first * second).sum(axis=-1))))
