"""Choose the frames of a sample by their viewing angle (`data.frames_by: angle`).

All randomness is drawn from the generator that is passed, because exact resuming depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.clip import Directions
from shards.epipolar import Poses
from shards.errors import ShardError
from trainer.data.settings import DataSettings


def choose_frames_by_angle(
    poses: Poses,
    anchors: Sequence[int],
    settings: DataSettings,
    random: np.random.Generator,
    *,
    tracked: Directions = "both",
) -> tuple[int, list[int]]:
    """Draw an anchor and T - 1 frames whose optical axes are within `data.angle` of the anchor's.

    poses:            of all frames of the clip
    anchors, tracked: as for `choose_frames`

    Returns as `choose_frames` does; the frames come in the order of their angles. One of the
    anchors with enough such frames is drawn. If none has enough, the one with the most is taken,
    and frames nearest to the bounds with them. Raises ShardError if no anchor with a usable pose
    has T - 1 others.
    """
    smallest, largest = settings.angle
    needed = settings.frames - 1
    frames = np.arange(len(poses.usable))
    options: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []
    for index, anchor in enumerate(anchors if settings.anchor == "random" else anchors[:1]):
        if not 0 <= anchor < len(frames):  # a damaged table
            continue
        angles = poses.angles_from(anchor)
        angles[anchor] = np.nan
        if tracked == "backward":
            angles[frames > anchor] = np.nan
        if tracked == "forward" or settings.direction == "forward":
            angles[frames < anchor] = np.nan
        # Degrees out of bounds: 0 within them, NaN for frames that cannot be taken.
        outside = np.maximum(np.maximum(smallest - angles, angles - largest), 0)
        if np.isfinite(outside).sum() >= needed:
            options.append((index, angles, outside))
    if not options:
        raise ShardError(
            f"none of its anchors {list(anchors)} has {needed} tracked frames with poses"
        )
    counts = [int((outside == 0).sum()) for _, _, outside in options]
    if fitting := [
        option for option, count in zip(options, counts, strict=True) if count >= needed
    ]:
        index, angles, outside = fitting[int(random.integers(len(fitting)))]
        chosen = random.choice(np.flatnonzero(outside == 0), needed, replace=False)
    else:
        index, angles, outside = options[int(np.argmax(counts))]
        chosen = np.argsort(outside, kind="stable")[:needed]  # NaN comes last
    chosen = chosen[np.argsort(angles[chosen], kind="stable")]
    if settings.control == "same":
        chosen = np.full(needed, anchors[index])
    return index, [anchors[index], *chosen.tolist()]
