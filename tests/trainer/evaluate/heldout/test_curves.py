"""Curves of a metric: what is unknown is not drawn."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from trainer.evaluate.heldout.curves import plot


def test_a_curve_has_a_gap_where_nothing_is_known() -> None:
    whole, gap = (
        np.array(Image.open(io.BytesIO(plot("", ["a", "b", "c"], {"a": [0.9, middle, 0.9]}))))
        for middle in (0.9, math.nan)
    )
    # 0.9 of an axis of 156 units from 12 on, below a title of 28 units, 2 pixels per unit
    y = round(2 * (28 + 12 + 0.1 * 156))
    between = slice(100, 450)  # the first position is at 88, the second at 464
    assert (whole[y, between] != 255).any(axis=-1).all()
    assert (gap[y - 10 : y + 10, between] == 255).all()
