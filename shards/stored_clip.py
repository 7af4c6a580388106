"""One clip as a shard stores it, and how a notebook shows it."""

from __future__ import annotations

from dataclasses import dataclass

from shards.clip import ClipInfo, Tracks
from shards.picture import clip_html


@dataclass(frozen=True, eq=False)
class StoredClip:
    """One clip of a shard: description, tracks and the JPEG bytes of its frames in order."""

    info: ClipInfo
    tracks: Tracks
    jpegs: tuple[bytes, ...]

    def _repr_html_(self) -> str:
        """Show a few frames with tracks drawn over them, in a notebook."""
        return clip_html(self.info, self.tracks, self.jpegs)
