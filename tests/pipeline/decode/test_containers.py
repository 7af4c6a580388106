"""Video files of every suffix that a folder of videos may hold: each frame shows its own number."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from pipeline.decode.messages import StoredForm
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from tests.helpers.barcode import HEIGHT, WIDTH, numbered_frame, read_number

FRAMES = 30


def write(path: Path, codec: str, pixels: str, container: str | None) -> None:
    """Write frames 0 to 29 at 25 frames per second."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if codec != "gif":
            stream.bit_rate = 4_000_000
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            file.mux(stream.encode(frame.reformat(format=pixels)))
        file.mux(stream.encode())


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "container"),
    [
        ("mpg", "mpeg1video", "yuv420p", None),
        ("mpeg", "mpeg2video", "yuv420p", "mpeg"),
        ("flv", "flv", "yuv420p", None),
        ("wmv", "wmv2", "yuv420p", "asf"),
        ("mts", "libx264", "yuv420p", "mpegts"),
        ("m2ts", "libx264", "yuv420p", "mpegts"),
        ("3gp", "mpeg4", "yuv420p", None),
        ("gif", "gif", "rgb8", None),
        ("ogv", "libvpx", "yuv420p", "ogg"),
    ],
)
def test_every_frame_shows_its_own_number(
    tmp_path: Path, suffix: str, codec: str, pixels: str, container: str | None
) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, codec, pixels, container)
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        scan = decoder.scan(str(path), shot_cuts=False)
        assert len(scan.timestamps) == FRAMES
        indices = [3, 4, 17, 29]
        frames = decoder.read_video(
            str(path),
            decoder="pyav",
            ledger=scan.ledger,
            indices=indices,
            form=StoredForm(short_side=HEIGHT),
        )
        assert [read_number(frame.pixels) for frame in frames] == indices
