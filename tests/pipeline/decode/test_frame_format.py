"""Pictures are stored upright, with square pixels and without combs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.frame_format import FrameFormat, Orientation, progressive_picture
from pipeline.decode.ledger import Ledger
from pipeline.decode.messages import StoredForm
from pipeline.decode.scan import scan
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.decode.video import read_frames
from tests.helpers.barcode import Recipe, corner_colours, numbered_frame, write_numbered

UPRIGHT = ["red", "green", "blue", "yellow"]


@pytest.mark.parametrize(
    ("rotation", "mirror", "corners"),
    [
        (0, False, UPRIGHT),
        (0, True, ["green", "red", "yellow", "blue"]),
        (90, False, ["green", "yellow", "red", "blue"]),
        (180, False, ["yellow", "blue", "green", "red"]),
        (270, False, ["blue", "red", "yellow", "green"]),
        (180, True, ["blue", "yellow", "red", "green"]),
        (90, True, ["yellow", "green", "blue", "red"]),
        (270, True, ["red", "blue", "green", "yellow"]),
    ],
)
def test_all_eight_display_matrices_are_applied(
    tmp_path: Path, rotation: int, mirror: bool, corners: list[str]
) -> None:
    """`rotation` is counter-clockwise: the colour of the top right corner comes to the top left."""
    path = str(tmp_path / "a.mp4")
    write_numbered(tmp_path / "a.mp4", Recipe(frames=3, rotation=rotation, mirror=mirror))
    found = scan(path, shot_cuts=False)
    (frame,) = read_frames(path, "pyav", Ledger.unpack(found.ledger), [1])
    assert corner_colours(frame) == corners
    width, height = (128, 192) if rotation % 180 else (192, 128)
    assert frame.shape == (height, width, 3)
    assert (found.width, found.height) == (width, height)


def test_an_orientation_is_read_from_the_matrix_as_ffmpeg_defines_it() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)
    transposed = Orientation(transpose=True).apply(picture)
    assert transposed[..., 0].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert Orientation(mirror_x=True).apply(picture)[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert Orientation(mirror_y=True).apply(picture)[..., 0].tolist() == [[3, 4, 5], [0, 1, 2]]


def test_the_display_size_has_square_pixels() -> None:
    """PAL widescreen on DVD: 720x576 with pixels of 64:45 is shown as 1024x576."""
    widescreen = FrameFormat(720, 576, "yuv420p", Orientation(), Fraction(64, 45))
    assert widescreen.display_size == (1024, 576)
    assert widescreen.upright_size == (720, 576)
    turned = FrameFormat(720, 576, "yuv420p", Orientation(transpose=True), Fraction(64, 45))
    assert turned.display_size == (576, 1024)


@pytest.mark.parametrize(("square", "shape"), [(True, (128, 288)), (False, (128, 192))])
def test_pixels_are_stored_square_unless_asked_otherwise(
    tmp_path: Path, square: bool, shape: tuple[int, int]
) -> None:
    path = str(tmp_path / "a.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        stream.sample_aspect_ratio = Fraction(3, 2)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        (frame,) = decoder.read_video(
            path,
            decoder="pyav",
            ledger=decoder.scan(path, shot_cuts=False).ledger,
            indices=[1],
            form=StoredForm(short_side=256, square_pixels=square),
        )
    assert frame.pixels.shape[:2] == shape
    assert frame.source_size == (192, 128)
    assert corner_colours(frame.pixels) == UPRIGHT


def comb(picture: np.ndarray) -> float:
    """How much lines differ from the mean of those above and below, in grey levels."""
    grey = picture.astype(float).mean(axis=2)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean())


def test_interlaced_frames_lose_their_combs(shared_data: Path) -> None:
    path = str(shared_data / "bugs" / "interlaced.mp4")
    ledger = Ledger.unpack(scan(path, shot_cuts=False).ledger)
    assert ledger.interlaced(3)
    for decoder in ("pyav", "decord"):
        (combed,) = read_frames(path, decoder, ledger, [3], deinterlace=False)  # type: ignore[arg-type]
        (smooth,) = read_frames(path, decoder, ledger, [3])  # type: ignore[arg-type]
        assert comb(combed) > 8
        assert comb(smooth) < 0.5 * comb(combed)


def test_a_deinterlaced_frame_keeps_one_field() -> None:
    even, odd = numbered_frame(0), numbered_frame(8)
    woven = even.copy()
    woven[1::2] = odd[1::2]
    kept = progressive_picture(woven).astype(int)
    assert np.abs(kept[0::2] - even[0::2]).mean() < 1
    assert np.abs(kept - even).mean() < np.abs(woven.astype(int) - even).mean() / 2
