"""One clip as a shard stores it, and how a notebook shows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.clip import ClipInfo, Tracks
from shards.frame_maps import NO_MAPS, FrameMaps, decode_depths, decode_masks
from shards.picture import clip_html


@dataclass(frozen=True, eq=False)
class StoredClip:
    """One clip of a shard: description, tracks and the JPEG bytes of its frames in order.

    maps: its depth maps and masks as stored; `depth` and `masks` decode them
    """

    info: ClipInfo
    tracks: Tracks
    jpegs: tuple[bytes, ...]
    maps: FrameMaps = NO_MAPS

    def depth(self) -> NDArray[np.float32] | None:
        """Decode the depth maps: [T, H, W] along the optical axis, 0 where it is unknown.

        In the world units of the cameras. None for a clip without depth. Raises ShardError for
        damage.
        """
        if not self.maps.depths or self.info.depth_scale is None:
            return None
        size = (self.info.width, self.info.height)
        return decode_depths(self.maps.depths, size, self.info.depth_scale)

    def masks(self) -> NDArray[np.uint8] | None:
        """Decode the masks: [T, H, W]; None for a clip without. Raises ShardError for damage."""
        if not self.maps.masks:
            return None
        return decode_masks(self.maps.masks, (self.info.width, self.info.height))

    def _repr_html_(self) -> str:
        """Show a few frames with tracks drawn over them, in a notebook."""
        return clip_html(self.info, self.tracks, self.jpegs)
