"""Video files of every suffix that a folder of videos may hold: each frame shows its own number."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.decode.messages import StoredForm
from pipeline.decode.scan import scan
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.failures import DecodeError
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


@pytest.mark.parametrize("with_video", [True, False])
def test_a_cover_picture_is_no_video(tmp_path: Path, with_video: bool) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 640, 640, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        grey = av.VideoFrame.from_ndarray(np.full((640, 640, 3), 90, np.uint8), format="rgb24")
        packets = [*cover.encode(grey), *cover.encode()]
        if with_video:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
                packets += video.encode(frame)
            packets += video.encode()
        container.mux(packets)
    if with_video:
        found = scan(str(path), shot_cuts=False)
        assert (len(found.timestamps), found.width, found.height) == (10, WIDTH, HEIGHT)
    else:
        with pytest.raises(DecodeError, match="only a cover picture"):
            scan(str(path), shot_cuts=False)
