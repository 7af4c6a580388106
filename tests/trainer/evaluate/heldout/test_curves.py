"""Plots of curves: gaps and legends."""

from __future__ import annotations

import math

import numpy as np

from trainer.evaluate.heldout.curves import plot


def test_a_curve_has_a_gap_where_nothing_is_known() -> None:
    whole, gap = (
        np.array(plot("", "abc", {"a": [0.9, middle, 0.9]})) for middle in (0.9, math.nan)
    )
    height = np.nonzero((whole != gap).any(axis=(1, 2)))[0].mean()
    between = slice(180, 220)  # the first place is at 149 of 640 pixels, the second at 336
    assert (whole[round(height), between] != 255).all(axis=0).any()
    assert (gap[round(height), between] == 255).all()


def test_names_that_do_not_fit_beside_each_other_are_below() -> None:
    names = [f"a model trained for {n} steps" for n in range(5)]
    few, many = (
        np.array(plot("", "ab", {name: [0.5, 0.5] for name in chosen}))
        for chosen in (names[:1], names)
    )
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] == few.shape[0] + 40  # two in a line
    assert (many[:, -20:] == 255).all()
