"""The names of a scene's parts: what they are made of, and the split that may show them.

A part is a kind and a number ("lathe-183922"). Its name alone determines its content and its split,
so no shape, photograph or texture is ever in both splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pipeline.scenes.scene_id import Split

_NUMBERS = 1_000_000
"""How many parts of each kind there are."""
_EVAL_FRACTION = 0.25
_SALT = "split 52"
"""Chosen so that both splits have photographs in colour and of plain materials."""


def split_of_part(name: str) -> Split:
    """Return the only split that may show the part."""
    return "eval" if _hash(f"{_SALT} {name}") < _EVAL_FRACTION * 2**64 else "train"


def part_random(name: str) -> np.random.Generator:
    """Return the random numbers that make the part."""
    return np.random.default_rng(_hash(f"content {name}"))


def draw_part(rng: np.random.Generator, kinds: Sequence[str], split: Split) -> str:
    """Draw a part of one of the kinds that is in the split."""
    kind = kinds[int(rng.integers(len(kinds)))]
    while True:
        name = f"{kind}-{int(rng.integers(_NUMBERS)):06d}"
        if split_of_part(name) == split:
            return name


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
