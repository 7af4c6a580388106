"""Angles between camera poses."""

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
