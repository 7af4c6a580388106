"""Clips decoded, proven, shrunk and encoded on the device (`frames.device`) against the CPU's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu.line import Line, attempt
from benchmarks.gpu.moving_pictures import moving_pictures
from shards import jpeg
from shards.geometry import FrameTransform

CODECS = ("libx264", "libx265")


def lines(device: str, small: bool) -> Iterator[Line]:
    """Write a video file per codec, and make its clips in both ways."""
    for codec in CODECS[:1] if small else CODECS:
        yield from attempt(codec, partial(_video, codec, device, small))


def _video(codec: str, device: str, small: bool) -> Iterator[Line]:
    from pipeline.decode import gpu
    from pipeline.decode.ledger import Ledger
    from pipeline.decode.messages import EncodedClip, EncodeRequest, StoredForm
    from pipeline.decode.scan import scan
    from pipeline.decode.video import read_frames
    from pipeline.failures import MachineError

    frames, per_clip, height, width = (8, 4, 96, 128) if small else (240, 48, 720, 1280)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, codec, frames, height, width)
        packed = scan(str(path), shot_cuts=False).ledger
        clips = tuple(tuple(range(k, k + per_clip)) for k in range(0, frames, per_clip))
        form = StoredForm(height // 3)
        request = EncodeRequest(
            path=str(path), device=device, ledger=packed, clips=clips, form=form, jpeg_quality=90
        )
        try:
            gpu.check_device(device)
            list(gpu.encode_clips(request))  # starts CUDA and NVDEC
            started, used = time.perf_counter(), time.process_time()
            results = list(gpu.encode_clips(request))
        except MachineError as error:
            yield Line(f"{codec} on {device}", f"not measured: {error}")
            return
        taken, used = time.perf_counter() - started, time.process_time() - used
        made = [clip for clip in results if isinstance(clip, EncodedClip)]
        yield Line(f"{codec}: clips made", float(len(made)), at_least=len(clips))
        if refused := [result for result in results if not isinstance(result, EncodedClip)]:
            yield Line(f"{codec}: a clip", str(refused[0]), failed=True)
        if not made:
            return
        yield Line(f"{codec}: speed", frames / taken, "frames/s")
        yield Line(f"{codec}: time of a core per clip", used / len(clips), "s")
        ledger, size = Ledger.unpack(packed), made[0].size
        transform = FrameTransform.whole(width, height, *size)
        used = time.process_time()
        expected = [
            jpeg.encode(transform.frame(frame), 90)
            for frame in read_frames(str(path), "pyav", ledger, clips[0])
        ]
        used = time.process_time() - used
        yield Line(f"{codec}: time of a core per clip, without the device", used, "s")
        apart = [
            np.abs(jpeg.decode(a).astype(int) - jpeg.decode(b)).mean()
            for a, b in zip(made[0].jpegs, expected, strict=True)
        ]
        yield Line(f"{codec}: mean difference", float(np.max(apart)), "grey levels", at_most=2)


def write_video(path: Path, codec: str, frames: int, height: int, width: int) -> None:
    """Write moving pictures as a video file of 25 frames per second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, picture in enumerate(moving_pictures(1, frames, height, width)[0]):
            pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
