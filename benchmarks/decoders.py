"""Compare video decoders by exactness and speed: `python -m benchmarks.decoders FOLDER`.

For every video file below FOLDER, checks whether each decoder returns for a frame index the frame
that decoding from the start gives, and times 24 consecutive frames from the middle of the file,
resized to short side 256, relative to PyAV. Times are medians over rounds in which decoders take
turns. "refuses" means that the decoder raises an error that says what to do; "WRONG" means that it
returns another frame without an error.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np

from benchmarks.command_line import existing_folder, make_parser
from pipeline.decode.ledger import Ledger
from pipeline.decode.scan import scan
from pipeline.decode.video import Decoder, check_decoder, read_frames
from pipeline.failures import DecodeError
from pipeline.sources.video_folder import VIDEO_SUFFIXES
from shards.errors import PretrackError
from shards.geometry import stored_transform

ROUNDS = 7
CLIP = 24
SAME = 5.0
"""Mean difference in grey levels up to which frames count as the same: decoders convert 10-bit
colours in different ways."""


def available() -> list[Decoder]:
    """Return the decoders that can be loaded here, and print why others are left out."""
    usable: list[Decoder] = []
    for decoder in get_args(Decoder):
        try:
            check_decoder(decoder)
            usable.append(decoder)
        except PretrackError as error:
            print(f"left out: {error}")
    return usable


def verdict(path: str, decoder: Decoder, ledger: Ledger, frames: Sequence[np.ndarray]) -> str:
    """Check frames read by index: the first, the last and some between, together and one by one."""
    count = len(frames)
    picks = sorted({0, count - 1, *np.random.default_rng(0).integers(0, count, 6).tolist()})
    try:
        for indices in (picks, *([index] for index in picks)):
            for index, frame in zip(
                indices, read_frames(path, decoder, ledger, indices), strict=True
            ):
                if (
                    frame.shape != frames[index].shape
                    or np.abs(frame.astype(int) - frames[index]).mean() > SAME
                ):
                    return "WRONG"
    except DecodeError:
        return "refuses"
    return "exact"


def seconds(path: str, decoder: Decoder, ledger: Ledger) -> float:
    """Time reading and resizing CLIP frames from the middle of a file."""
    first = max(0, len(ledger) // 2 - CLIP // 2)
    indices = range(first, min(first + CLIP, len(ledger)))
    resize = stored_transform(*ledger.format_of(first).upright_size, 256)
    started = time.perf_counter()
    for frame in read_frames(path, decoder, ledger, indices):
        resize.frame(frame)
    return time.perf_counter() - started


def main(folder: Path) -> None:
    """Print the table."""
    decoders = available()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {ROUNDS} rounds; in brackets: time relative to PyAV's")
    print(f"{'file':<28}{'frames':>7}  " + "".join(f"{decoder:<18}" for decoder in decoders))
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES):
        try:
            ledger = Ledger.unpack(scan(str(path), shot_cuts=False).ledger)
        except DecodeError as error:
            print(f"{path.name:<28}{'-':>7}  refused: {error}")
            continue
        frames = list(read_frames(str(path), "pyav", ledger, range(len(ledger))))
        verdicts = {decoder: verdict(str(path), decoder, ledger, frames) for decoder in decoders}
        times: dict[str, list[float]] = {
            decoder: [] for decoder in decoders if verdicts[decoder] == "exact"
        }
        for _ in range(ROUNDS):
            for decoder in decoders:
                if decoder in times:
                    times[decoder].append(seconds(str(path), decoder, ledger))
        cells = [
            f"{verdicts[decoder]} ({median(times[decoder]) / median(times['pyav']):.2f})"
            if decoder in times
            else verdicts[decoder]
            for decoder in decoders
        ]
        print(f"{path.name:<28}{len(frames):>7}  " + "".join(f"{text:<18}" for text in cells))


if __name__ == "__main__":
    parser = make_parser("decoders", __doc__)
    parser.add_argument("folder", type=existing_folder, help="a folder of videos")
    main(parser.parse_args().folder)
