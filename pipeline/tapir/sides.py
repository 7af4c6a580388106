"""The sides of the square frames that are encoded, in pixels."""

from __future__ import annotations

import math

from shards.errors import PretrackError

BASE_SIDE = 256
"""Side of the frames in which tracks are first estimated, as published."""
SIDE_MULTIPLE = 8
"""Frame pixels per cell of the low-resolution map."""


def level_sides(base: int, side: int) -> list[int]:
    """Return the sides of the frames that are encoded: from `base` to `side`, as published.

    Raises PretrackError if `side` is smaller than `base`, or not a multiple of 8.
    """
    if side < base or side % SIDE_MULTIPLE:
        raise PretrackError(
            f"frames are tracked at a side of {base} or more pixels that is a multiple of "
            f"{SIDE_MULTIPLE}: not {side}"
        )
    steps = math.ceil(math.log2(side / base))
    sides = [base * (side / base) ** (step / steps) for step in range(1, steps + 1)]
    return [base, *(round(exact // SIDE_MULTIPLE) * SIDE_MULTIPLE for exact in sides)]
