"""Rows of the videos table from what sources list, without the results of scans."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from manifests.fingerprint import fingerprint_lines
from manifests.rows import VideoRow
from manifests.tables import VIDEOS, table_of
from pipeline.config import BuildSettings, FrameSettings, SplitSettings
from pipeline.decode.hdf5 import require_h5py
from pipeline.sources.listing import files_named, identity_of
from pipeline.sources.rendering import is_rendered
from pipeline.sources.scenes import split_of_scene
from pipeline.sources.video import Video

_ROWS_PER_TABLE = 500
"""Videos converted to an Arrow table at once."""


def video_row(video: Video, settings: BuildSettings) -> VideoRow:
    """Return a video's row of the videos table, without the results of a scan.

    Its size is that of the frames that its cameras are for, 0 if the source does not say. Raises
    PretrackError if this machine cannot read its depth maps.
    """
    fields = {name: value for name, value in vars(video).items() if name != "size"}
    width, height = video.size or (0, 0)
    if settings.frames.depth and video.depth and video.depth.encoding == "float":
        require_h5py()
    return VideoRow(
        **{
            **fields,
            "identity": content_identity(video, settings.frames),
            "depth": video.depth if settings.frames.depth else None,
            "mask_files": video.mask_files if settings.frames.masks else None,
        },
        split=split_of(video.dataset, video.sequence, settings.split),
        width=width,
        height=height,
        cuts=(),
        frames=len(video.image_files),
        scan="",
    )


def split_of(dataset: str, sequence: str, split: SplitSettings) -> str:
    """Return `train` or `eval`, by a hash of the sequence's name.

    All footage of a sequence is in the same split, in any source, on any machine. Scenes were made
    for a split, and are in that one.
    """
    if dataset == "scenes":
        return split_of_scene(sequence)
    digest = hashlib.blake2b(f"{split.salt}{sequence}".encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < split.eval_fraction * 2**64 else "train"


def content_identity(video: Video, frames: FrameSettings) -> str:
    """Digest everything about a video that its clips depend on."""
    poses = [list(vars(camera).values()) if camera else None for camera in video.cameras or ()]
    times = np.asarray(video.timestamps or (), np.float64).tobytes().hex()
    lines = [video.identity, repr(video.frame_numbers), times, repr(poses), video.terms]
    # Nothing is added for maps that are not stored, and their files are not looked at.
    if frames.depth and video.depth:
        files = _identity_of_maps(video, (*video.depth.files, *video.depth.masks))
        lines += [f"{video.depth.encoding} {video.depth.scales!r}", files]
    if frames.masks and video.mask_files:
        lines.append(_identity_of_maps(video, video.mask_files))
    return fingerprint_lines(lines)


def _identity_of_maps(video: Video, files: Sequence[str]) -> str:
    """Digest the files of depth maps or masks, and only the names of rendered ones, which may not
    be there yet.
    """
    if is_rendered(video.dataset):
        return fingerprint_lines(files)
    return identity_of(files_named(video.root, files))


class VideoTables:
    """Collect rows of the videos table. Cameras take a tenth of the memory in an Arrow table."""

    def __init__(self) -> None:
        self._tables = [VIDEOS.empty_table()]
        self._rows: list[VideoRow] = []

    def add(self, row: VideoRow) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_TABLE:
            self._tables.append(_videos_table(self._rows))
            self._rows = []

    def tables(self) -> list[pa.Table]:
        """Return all rows that were added, in order."""
        return [*self._tables, _videos_table(self._rows)]


def _videos_table(rows: Iterable[VideoRow]) -> pa.Table:
    """Convert rows to a table. Only cameras and depth are nested; `asdict` copies every number."""
    return table_of(
        (
            {
                **vars(row),
                "cameras": row.cameras and [c and vars(c) for c in row.cameras],
                "depth": row.depth and vars(row.depth),
            }
            for row in rows
        ),
        VIDEOS,
    )
