"""Rigid motions [R | t], 3x4: from body coordinates to the world, or from the world to a camera."""

from __future__ import annotations

import numpy as np

from pipeline.scenes.mesh import Floats


def rotation(axis: Floats, angle: float) -> Floats:
    """Return the rotation matrix about a unit axis [3], by an angle in radians (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def pose(turn: Floats, shift: Floats) -> Floats:
    """Make [R | t] from a rotation matrix [3, 3] and a translation [3]."""
    return np.column_stack([turn, shift])


def move(motion: Floats, points: Floats) -> Floats:
    """Apply a motion [..., 3, 4] to points [..., N, 3]."""
    return points @ np.swapaxes(motion[..., :3], -1, -2) + motion[..., None, :, 3]


def inverse(motion: Floats) -> Floats:
    """Return the opposite motion [3, 4]."""
    turn = motion[:, :3].T
    return pose(turn, -turn @ motion[:, 3])
