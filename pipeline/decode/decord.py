"""Read video files with decord: the fastest decoder where frames are shrunk.

It trusts the frame count that a file declares, so a file whose count is wrong is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, Reason
from shards.errors import first_line


def frames_at(path: str, count: int, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] at increasing `indices`.

    count: frames that the scan of the file counted

    Raises DecodeError if decord cannot read the file, or counts another number of frames.
    """
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        # The reader must not outlive this call: an idle open one keeps decoding and fills memory.
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != count:
            raise DecodeError(
                f"decord sees {len(reader)} frames where {count} decode; "
                "set frames.decoder to pyav for this source",
                Reason.DECORD_MISCOUNTS,
            )
        for index in indices:
            yield reader[index].asnumpy()
    except (decord.DECORDError, IndexError) as error:
        raise DecodeError(
            f"decord cannot read it ({_message(error)}): set frames.decoder to pyav"
        ) from error


def _message(error: Exception) -> str:
    """Return the first line of decord's message, without its prefix "[time] file:line: "."""
    return re.sub(r"^\[[\d:]+\] \S+: ", "", first_line(error))
