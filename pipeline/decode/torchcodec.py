"""Read video files with torchcodec: exact, but it needs FFmpeg installed on the system.

It also imports torch in every decoder process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, Reason
from shards.errors import first_line


def frames_at(path: str, count: int, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] at increasing `indices`.

    count: frames that the scan of the file counted

    Raises DecodeError if torchcodec cannot read the file, or counts another number of frames.
    """
    from torchcodec.decoders import VideoDecoder

    try:
        reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if len(reader) != count:
            raise DecodeError(
                f"torchcodec sees {len(reader)} frames where {count} decode; "
                "set frames.decoder to pyav for this source",
                Reason.TORCHCODEC_MISCOUNTS,
            )
        for index in indices:
            yield reader.get_frame_at(index).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError(
            f"torchcodec cannot read it ({first_line(error)}): set frames.decoder to pyav"
        ) from error
