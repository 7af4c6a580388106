"""How many clips, frames and queries are processed at once in a given amount of memory.

Half of the memory holds what lasts for a whole call: the clips and their feature maps. The other
half holds intermediate results: of the encoder, then of the first estimates, then of the
refinement. Their bytes were counted operation by operation, as in
`tests/pipeline/tapir/test_memory.py`; `torch.compile` saves some of them.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_ENCODED_FRAMES = 16
"""Frames encoded at once on a GPU: enough to keep it busy."""
LEAST_QUERIES = 64
"""Queries refined at once at least, as published."""
_ESTIMATE_BYTES_PER_CELL = 200
"""Bytes per cell of the low-resolution map, for the first estimate of a query in a frame."""
_TOKEN_BYTES = {True: 25_000, False: 42_000}
"""Bytes of a query in a frame in the mixer and its input, if it is fast and if it is exact."""
_VECTOR_BYTES = 3_200
"""Bytes of a query in a frame beside its largest map of correlations."""


def clips_at_once(
    memory: int, *, frames: int, frame_bytes: int, sides: Sequence[int], fast: bool
) -> int:
    """Return how many clips fit, with their feature maps; 0 if not even one does.

    frames:      frames per clip
    frame_bytes: of a frame as stored; the next clips are copied to the GPU during a call
    sides:       of the frames that are encoded, in pixels
    fast:        whether the maps are in bfloat16
    """
    return memory // 2 // (frames * (2 * frame_bytes + map_bytes(sides, fast)))


def encoded_at_once(memory: int, *, side: int, fast: bool) -> int:
    """Return how many frames are encoded at once; at least one."""
    return min(MAX_ENCODED_FRAMES, max(1, memory // 2 // encoder_bytes(side, fast)))


def estimated_at_once(memory: int, *, side: int) -> int:
    """Return for how many pairs of a query and a frame tracks are first estimated at once."""
    return max(LEAST_QUERIES, memory // 2 // estimate_bytes(side))


def refined_at_once(memory: int, *, frames: int, side: int, fast: bool) -> int:
    """Return how many queries are refined at once in clips of `frames`."""
    return max(LEAST_QUERIES, memory // 2 // (frames * refine_bytes(side, fast)))


def map_bytes(sides: Sequence[int], fast: bool) -> int:
    """Return the bytes of a frame's feature maps, over all sides."""
    numbers = sum(
        (side // 4) ** 2 * 128 + (side // 8) ** 2 * 256 + (side // 16) ** 2 * 256 for side in sides
    )
    return numbers * (2 if fast else 4)


def encoder_bytes(side: int, fast: bool) -> int:
    """Return the bytes that encoding a frame takes at its peak."""
    return (side // 4) ** 2 * (4100 if fast else 6500)


def estimate_bytes(side: int) -> int:
    """Return the bytes that the first estimate of a query in a frame takes at its peak."""
    return (side // 8) ** 2 * _ESTIMATE_BYTES_PER_CELL


def refine_bytes(side: int, fast: bool) -> int:
    """Return the bytes that refining a query takes at its peak, per frame."""
    correlations = (side // 4) ** 2 * (2 if fast else 4) + _VECTOR_BYTES
    return max(correlations, _TOKEN_BYTES[fast])
