"""Check that stored frames are the right ones, and what proving them costs.

    python -m benchmarks.frames FOLDER [FOLDER ...]

For every video file below the folders: how many frames a build would store, how many of these equal
an independent decode of the whole file from its start, and how many do not (which must be none),
per decoder; then what the scan notes. "refuses" means an error that says what to do.

Then, for the files of the folders: the CPU time of a scan with its ledger relative to one without,
and the ledger's size. Last, an AVI without usable times, in two lengths: the CPU time to read all
its clips. Times are medians over rounds in which both sides take turns.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import existing_folder, make_parser
from benchmarks.decoders import available
from pipeline.config import FrameSettings
from pipeline.decode.ledger import Ledger
from pipeline.decode.pyav import decode, open_video, packets
from pipeline.decode.scan import scan
from pipeline.decode.shots import ShotDetector, small_picture
from pipeline.decode.video import Decoder, read_frames
from pipeline.failures import DecodeError
from pipeline.planning.clip_windows import clip_windows
from pipeline.sources.video import Scan
from pipeline.sources.video_folder import VIDEO_SUFFIXES
from tests.helpers.barcode import Recipe, write_numbered

ROUNDS = 7
WINDOWS = FrameSettings(clip_frames=24, min_frames=8)
SHARD = 64
SAME = 5.0
"""Mean difference in grey levels up to which frames count as equal: decoders convert colours in
different ways."""


def stored_indices(video: Scan) -> list[int]:
    """Return the frames that a build stores, in clips of 24 frames, or shorter ones down to 8."""
    cuts = np.array(video.cuts, np.int32)
    _, starts, counts = clip_windows(
        np.array([len(video.timestamps)], np.int32), cuts, np.array([0, len(cuts)]), WINDOWS
    )
    return [
        int(start) + number
        for start, count in zip(starts, counts, strict=True)
        for number in range(count)
    ]


def reference(path: str, ledger: Ledger) -> list[NDArray[np.uint8]]:
    """Decode a file from its start, without our reader: frames [H, W, 3], upright."""
    frames: list[NDArray[np.uint8]] = []
    with av.open(path) as container:
        stream = container.streams.best("video")
        assert stream is not None
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                orientation = ledger.format_of(min(len(frames), len(ledger) - 1)).orientation
                frames.append(orientation.apply(frame.to_ndarray(format="rgb24")))
    return frames


def verdict(
    path: str,
    decoder: Decoder,
    ledger: Ledger,
    indices: Sequence[int],
    frames: Sequence[NDArray[np.uint8]],
) -> str:
    """Count the stored frames that equal the reference, and those that do not."""
    equal = wrong = 0
    try:
        for index, frame in zip(
            indices,
            read_frames(path, decoder, ledger, indices, deinterlace=False),
            strict=True,
        ):
            expected = frames[index].astype(int)
            same = frame.shape == expected.shape and np.abs(frame - expected).mean() <= SAME
            equal, wrong = equal + same, wrong + (not same)
    except DecodeError as error:
        return f"refuses after {equal}" + (f", {wrong} WRONG" if wrong else "") + f": {error}"
    return f"{equal} equal, {wrong} wrong"


def check(paths: Sequence[Path]) -> None:
    """Print what is stored of each file, per decoder, and the notes."""
    decoders = available()
    for path in paths:
        try:
            video = scan(str(path), shot_cuts=True)
        except DecodeError as error:
            print(f"{path.name}: a row: {error}")
            continue
        ledger = Ledger.unpack(video.ledger)
        indices = stored_indices(video)
        frames = reference(str(path), ledger)
        print(f"{path.name}: {len(ledger)} frames, {len(indices)} stored")
        for decoder in decoders if indices else []:
            print(f"    {decoder}: {verdict(str(path), decoder, ledger, indices, frames)}")
        for note in video.notes:
            print(f"    note: {note.detail}")


def plain_scan(path: str) -> None:
    """Scan without a ledger: decode everything, and find shot cuts."""
    shots = ShotDetector()
    with open_video(path) as (container, stream):
        for frame in decode(packets(container, stream)):
            shots.add(small_picture(frame))
    shots.cuts()


def seconds(action: Callable[..., object], *arguments: object) -> float:
    """Return the CPU time of a call, all threads together."""
    started = time.process_time()
    action(*arguments)
    return time.process_time() - started


def cost(paths: Sequence[Path]) -> None:
    """Print the time of a scan relative to one without a ledger, and the ledger's size."""
    for path in paths:
        with_ledger, without = [], []
        for _ in range(ROUNDS):
            with_ledger.append(seconds(scan, str(path), True))
            without.append(seconds(plain_scan, str(path)))
        packed = scan(str(path), shot_cuts=True).ledger
        frames = len(Ledger.unpack(packed))
        print(
            f"{path.name}: {frames} frames, scan {median(with_ledger) / median(without):.2f} of "
            f"one without a ledger, {len(packed) / frames:.1f} bytes per frame"
        )


def read_shards(path: str, ledger: Ledger) -> None:
    """Read all frames of a file as a build does: in one pass per shard of 64 clips."""
    step = SHARD * WINDOWS.clip_frames
    for first in range(0, len(ledger), step):
        for _ in read_frames(path, "pyav", ledger, range(first, min(first + step, len(ledger)))):
            pass


def linear(lengths: tuple[int, int] = (3000, 6000)) -> None:
    """Print the time to read all clips of an AVI with B-frames, shard by shard, in two lengths."""
    took: dict[int, list[float]] = {length: [] for length in lengths}
    with tempfile.TemporaryDirectory() as folder:
        for length in lengths:
            recipe = Recipe("avi", frames=length, b_frames=2, gop=25)
            write_numbered(Path(folder) / f"{length}.avi", recipe)
        for _ in range(3):
            for length in lengths:
                path = str(Path(folder) / f"{length}.avi")
                video = scan(path, shot_cuts=False)
                ledger = Ledger.unpack(video.ledger)
                assert not ledger.seekable

                took[length].append(seconds(read_shards, path, ledger))
    short, long = (median(took[length]) for length in lengths)
    print(
        f"AVI without times: {lengths[0]} frames {short:.1f} s, {lengths[1]} frames {long:.1f} s: "
        f"{long / short:.2f} times as long"
    )


def main(folders: Sequence[Path]) -> None:
    """Print all three parts."""
    cv2.setNumThreads(1)  # as in a build: workers are the parallelism
    print(f"{platform.processor() or platform.machine()}")
    paths = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES
    )
    check(paths)
    cost([path for path in paths if path.parent.name == "videos"] or paths)
    linear()


if __name__ == "__main__":
    parser = make_parser("frames", __doc__)
    parser.add_argument("folder", nargs="+", type=existing_folder, help="a folder of videos")
    main(parser.parse_args().folder)
