"""Which video decoder is exact, and how fast: `python -m benchmarks.decoders FOLDER`.

For every video file below FOLDER: does each decoder give, for frames asked by index, those that decoding from the start gives? And
how long do 24 consecutive frames from the file's middle take, shrunk to short side 256, beside PyAV? Times are medians over rounds
in which the decoders take turns. "refuses" means an error that names the way out; "WRONG" means another frame without a word.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np

from pipeline.decode.video import Decoder, check_decoder, read_frames, scan
from pipeline.failures import DecodeError
from pipeline.sources.video import Scan
from pipeline.sources.video_folder import VIDEO_SUFFIXES
from shards.errors import PretrackError
from shards.geometry import stored_transform

ROUNDS = 7
CLIP = 24
SAME = 5.0
"""Mean difference in grey levels up to which frames count as the same: 10-bit colours are converted in more than one way."""


def available() -> list[Decoder]:
    """The decoders that can be loaded here."""
    usable: list[Decoder] = []
    for decoder in get_args(Decoder):
        try:
            check_decoder(decoder)
            usable.append(decoder)
        except PretrackError as error:
            print(f"left out: {error}")
    return usable


def verdict(path: str, decoder: Decoder, found: Scan, every: Sequence[np.ndarray]) -> str:
    """Whether frames by index are right: the first, the last, and some in between, in one call and one by one."""
    count = len(every)
    picks = sorted({0, count - 1, *np.random.default_rng(0).integers(0, count, 6).tolist()})
    try:
        for indices in (picks, *([index] for index in picks)):
            for index, frame in zip(
                indices, read_frames(path, decoder, found.timestamps, indices), strict=True
            ):
                if (
                    frame.shape != every[index].shape
                    or np.abs(frame.astype(int) - every[index]).mean() > SAME
                ):
                    return "WRONG"
    except DecodeError:
        return "refuses"
    return "exact"


def seconds(path: str, decoder: Decoder, found: Scan) -> float:
    """Time to read and shrink CLIP frames from the middle."""
    first = max(0, len(found.timestamps) // 2 - CLIP // 2)
    indices = range(first, min(first + CLIP, len(found.timestamps)))
    view = stored_transform(found.width, found.height, 256)
    started = time.perf_counter()
    for frame in read_frames(path, decoder, found.timestamps, indices):
        view.frame(frame)
    return time.perf_counter() - started


def main(folder: Path) -> None:
    """Prints the table."""
    decoders = available()
    print(
        f"{platform.processor() or platform.machine()}, {ROUNDS} rounds; in brackets: time / PyAV's"
    )
    print(f"{'file':<28}{'frames':>7}  " + "".join(f"{decoder:<18}" for decoder in decoders))
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES):
        try:
            found = scan(str(path), shot_cuts=False)
        except DecodeError as error:
            print(f"{path.name:<28}{'-':>7}  refused: {error}")
            continue
        every = list(read_frames(str(path), "pyav", found.timestamps, range(len(found.timestamps))))
        verdicts = {decoder: verdict(str(path), decoder, found, every) for decoder in decoders}
        times: dict[str, list[float]] = {
            decoder: [] for decoder in decoders if verdicts[decoder] == "exact"
        }
        for _ in range(ROUNDS):
            for decoder in decoders:
                if decoder in times:
                    times[decoder].append(seconds(str(path), decoder, found))
        shown = [
            f"{verdicts[decoder]} ({median(times[decoder]) / median(times['pyav']):.2f})"
            if decoder in times
            else verdicts[decoder]
            for decoder in decoders
        ]
        print(f"{path.name:<28}{len(every):>7}  " + "".join(f"{text:<18}" for text in shown))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m benchmarks.decoders FOLDER-OF-VIDEOS")
    main(Path(sys.argv[1]))
