"""How many clips, frames and query sets are processed at once in a given amount of memory.

Half of the memory holds what lasts for a whole call: the clips and their feature maps. The other
half holds intermediate results, of the encoder and then of the refinement. Their bytes were counted
operation by operation, as `tests/pipeline/cotracker3/test_memory.py` does; `torch.compile` saves
some of them.
"""

from __future__ import annotations

MAX_ENCODED_FRAMES = 16
"""Frames encoded at once on a GPU: enough to keep it busy. On a CPU, where the memory is 0 by
default, it is one frame, which fits the caches."""
_CHANNELS = 128
_MAP_NUMBERS = (96 * 128 + 48 * 64 + 24 * 32 + 12 * 16) * _CHANNELS
"""Numbers in the feature maps of a frame, over all four levels."""
_SUPPORT_NUMBERS = 4 * 49 * _CHANNELS
"""Numbers in the support features of a query, over all four levels."""
_NEIGHBOURHOOD_NUMBERS = (8 * 8 + 7 * 8) * _CHANNELS
"""Numbers in a point's neighbourhood of one level while it is interpolated: 8 x 8 pixels as read,
and their copy that is interpolated along x."""
_INDEX_BYTES = 5120
"""Bytes beside a point's neighbourhood: its index in the maps, and the features of earlier
levels."""
_TOKEN_BYTES = 25_000
"""Bytes of a token in the transformer, at its peak."""
_VIRTUAL_TRACKS = 64


def clips_at_once(memory: int, *, frames: int, frame_bytes: int, fast: bool) -> int:
    """Return how many clips fit, with their feature maps; 0 if not even one does.

    frames:      frames per clip
    frame_bytes: of a frame as stored; the next clips are copied to the GPU during a call
    fast:        whether the maps are in bfloat16
    """
    return memory // 2 // (frames * (2 * frame_bytes + map_bytes(fast)))


def encoded_at_once(memory: int, *, fast: bool) -> int:
    """Return how many frames are encoded at once; at least one."""
    return min(MAX_ENCODED_FRAMES, max(1, memory // 2 // encoder_bytes(fast)))


def sets_at_once(memory: int, *, frames: int, points: int, fast: bool) -> int:
    """Return how many query sets of `points` in a window of `frames` fit; at least one."""
    return max(1, memory // 2 // set_bytes(frames, points, fast))


def map_bytes(fast: bool) -> int:
    """Return the bytes of a frame's feature maps."""
    return _MAP_NUMBERS * (2 if fast else 4)


def encoder_bytes(fast: bool) -> int:
    """Return the bytes that encoding a frame takes at its peak."""
    return (50 << 20) if fast else (65 << 20)


def set_bytes(frames: int, points: int, fast: bool) -> int:
    """Return the bytes that refining a query set takes at its peak.

    frames: frames of a window
    fast:   whether neighbourhoods are in bfloat16
    """
    number = 2 if fast else 4
    correlation = points * (_NEIGHBOURHOOD_NUMBERS * number + _INDEX_BYTES)
    transformer = (points + _VIRTUAL_TRACKS) * _TOKEN_BYTES
    # The sliding window holds the support features twice: those it has reached, and all. One level
    # is copied into whole rows of matrix units.
    support = points * (2 * _SUPPORT_NUMBERS + 56 * _CHANNELS) * number
    return frames * max(correlation, transformer) + support
