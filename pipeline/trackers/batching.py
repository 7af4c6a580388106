"""Split clips into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def split_evenly(items: Sequence[T], limit: int) -> list[Sequence[T]]:
    """Split items into as few consecutive parts of at most `limit` as possible, of even lengths.

    17 items with a limit of 16 become 9 and 8, not 16 and 1: a part of one leaves a GPU half idle,
    and each new length may have to be compiled.
    """
    parts = math.ceil(len(items) / limit)
    bounds = [math.ceil(part * len(items) / parts) for part in range(parts)]
    return [items[first:end] for first, end in pairwise([*bounds, len(items)])]
