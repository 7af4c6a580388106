"""Video files through decord: the fastest where frames are shrunk, but it believes the count that a file declares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, Reason
from shards.errors import first_line


def frames_at(
    path: str, timestamps: Sequence[float], indices: Sequence[int]
) -> Iterator[NDArray[np.uint8]]:
    """Frames [H, W, 3] at increasing `indices`. Raises DecodeError where decord's count is not the true one (`timestamps`')."""
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        # The reader must not outlive this call: an idle open one goes on decoding and fills the memory.
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(timestamps):
            raise DecodeError(
                f"decord sees {len(reader)} frames where {len(timestamps)} decode; set frames.decoder to pyav for this source",
                Reason.DECORD_MISCOUNTS,
            )
        for index in indices:
            yield reader[index].asnumpy()
    except (decord.DECORDError, IndexError) as error:
        raise DecodeError(
            f"decord cannot read it ({_message(error)}): set frames.decoder to pyav"
        ) from error


def _message(error: Exception) -> str:
    """Return the first line of decord's message without its prefix: the time and the place in decord's source code."""
    return re.sub(r"^\[[\d:]+\] \S+: ", "", first_line(error))
