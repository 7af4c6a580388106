"""Read frames of a video file by index, and prove each by the ledger of the file's scan.

The scan (`scan.py`) always uses PyAV, whatever `frames.decoder` says. It alone decides how many
frames there are and when each is shown. The decoder then reads the clips; if it returns another
frame than the scan entered, the file is refused.

The modules `pyav`, `decord` and `torchcodec` implement one function with the same meaning,
`frames_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import decord as with_decord
from pipeline.decode import pyav as with_pyav
from pipeline.decode import torchcodec as with_torchcodec
from pipeline.decode.frame_format import progressive_picture
from pipeline.decode.ledger import Ledger
from pipeline.failures import DecodeError, Reason
from shards.errors import PretrackError, first_line

Decoder = Literal["pyav", "decord", "torchcodec"]


def check_decoder(decoder: Decoder) -> None:
    """Raise PretrackError, saying what to install, if a decoder cannot be loaded here."""
    try:
        import_module(
            {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}[decoder]
        )
    except (ImportError, RuntimeError, OSError) as error:
        fix = {
            "pyav": "pip install 'pretrack[pipeline]'",
            "decord": "pip install 'pretrack[pipeline]'",
            "torchcodec": "pip install 'pretrack[torchcodec]' "
            "and FFmpeg from the system's packages",
        }[decoder]
        raise PretrackError(
            f"frames.decoder {decoder} cannot be loaded here ({first_line(error)}): {fix}, "
            "or choose pyav"
        ) from error


def read_frames(
    path: str,
    decoder: Decoder,
    ledger: Ledger,
    indices: Sequence[int],
    *,
    deinterlace: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] RGB uint8 at increasing `indices`, upright, each proven.

    Frames have the size of their format in `ledger`, with pixels as coded (see `FrameFormat`).
    `on_frame` is called for each frame that PyAV decodes, and each packet that it skips. Raises
    DecodeError if the file cannot be read, is not the file that was scanned, or the decoder returns
    another frame.
    """
    if decoder == "pyav":
        return with_pyav.frames_at(
            path, ledger, indices, deinterlace=deinterlace, on_frame=on_frame
        )
    reader = with_decord if decoder == "decord" else with_torchcodec
    return _proven(reader.frames_at, decoder, path, ledger, indices, deinterlace)


def _proven(
    frames_at: Callable[[str, int, Sequence[int]], Iterator[NDArray[np.uint8]]],
    decoder: Decoder,
    path: str,
    ledger: Ledger,
    indices: Sequence[int],
    deinterlace: bool,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a decoder that returns only RGB, each compared with its entry.

    A frame that differs is read once more, in order from the file's start. Raises DecodeError if it
    still differs.
    """
    for index, first_read in zip(indices, frames_at(path, len(ledger), indices), strict=True):
        picture = first_read
        if not ledger.resembles(index, picture):
            # Reading in order needs no seek, which may have led to another frame.
            picture = _in_order(frames_at, path, ledger, index)
        if not ledger.resembles(index, picture):
            raise DecodeError(
                f"{decoder} gives another frame {index} than the scan found: set "
                "frames.decoder to pyav for this source",
                Reason.WRONG_FRAME,
            )
        interlaced = deinterlace and ledger.interlaced(index)
        yield progressive_picture(picture) if interlaced else picture


def _in_order(
    frames_at: Callable[[str, int, Sequence[int]], Iterator[NDArray[np.uint8]]],
    path: str,
    ledger: Ledger,
    index: int,
) -> NDArray[np.uint8]:
    """Read all frames up to `index` in order, and return the last."""
    *_, picture = frames_at(path, len(ledger), range(index + 1))
    return picture
