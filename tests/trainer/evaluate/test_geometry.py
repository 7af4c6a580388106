"""Angles between poses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluate.geometry import angle_between


def turned(degrees: float, axis: int) -> NDArray[np.float64]:
    """The rotation matrix of a turn about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_angles_about_one_axis_subtract(axis: int) -> None:
    assert angle_between(turned(10, axis), turned(75, axis)) == pytest.approx(65)
    assert angle_between(turned(75, axis), turned(10, axis)) == pytest.approx(65)
    assert angle_between(turned(0, axis), turned(180, axis)) == pytest.approx(180)
    assert angle_between(turned(200, axis), turned(200, axis)) == pytest.approx(0, abs=1e-5)


def test_two_quarter_turns_make_a_third_of_a_turn() -> None:
    assert angle_between(turned(90, 0).T, turned(90, 1)) == pytest.approx(120)
