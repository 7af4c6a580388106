"""Video files, odd ones included: counted, timed and read by index."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.ledger import Ledger
from pipeline.decode.scan import scan
from pipeline.decode.video import Decoder, read_frames
from pipeline.failures import DecodeError
from tests.helpers.panning import panning_frames, write_video

ODD = {
    "av1_video.mkv": 125,
    "fragmented_carphone.mp4": 120,
    "h264_10bits.mp4": 30,
    "h265_video.mp4": 10,
    "minimal.mp4": 1,
    "nasa_13013.mp4": 390,
    "unordered.mov": 4,
    "vfr_bear.mp4": 48,
    "video_270.mov": 3,
    "video_90.mov": 3,
    "bipbop_audioinit.mp4": "the file has no video stream",
    "chunk_out_of_range.mp4": "cannot be opened as a video",
    "corrupted.mp4": 49,
    "not_a_video.mp4": "cannot be opened as a video",
    "truncated_bear_60pct.mp4": "cannot be opened as a video",
    "zero_bytes.mp4": "cannot be opened as a video",
}


def ledger_of(path: str) -> Ledger:
    """Scan a file, and return the ledger of its frames."""
    return Ledger.unpack(scan(path, shot_cuts=False).ledger)


def encode(
    path: Path,
    frames: int = 30,
    seed: int = 0,
    size: tuple[int, int] = (96, 64),
    pts: list[int] | None = None,
) -> None:
    """Write a small H.264 file with B-frames and a key frame every 12; every frame differs."""
    rng = np.random.default_rng(seed)
    width, height = size
    texture = rng.integers(
        80 * (seed % 3), 80 * (seed % 3) + 60, (height // 8, width * 4 // 8, 3)
    ).astype(np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=30, options={"g": "12", "bf": "2", "crf": "18"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.time_base = (
            width,
            height,
            "yuv420p",
            Fraction(1, 30),
        )
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(texture[:, 3 * i : 3 * i + width]), format="rgb24"
            )
            frame.pts, frame.time_base = (pts[i] if pts else i), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("name", sorted(ODD))
def test_every_odd_file_is_counted_correctly_or_refused_with_a_reason(
    shared_data: Path, name: str
) -> None:
    path, expected = str(shared_data / "odd" / name), ODD[name]
    if isinstance(expected, str):
        with pytest.raises(DecodeError, match=expected):
            scan(path, shot_cuts=True)
    else:
        found = scan(path, shot_cuts=True)
        assert len(found.timestamps) == expected
        assert all(b > a for a, b in zip(found.timestamps, found.timestamps[1:], strict=False))


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, expected in ODD.items() if isinstance(expected, int)),
        pytest.param("../videos/bear.mp4", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_read_by_index_equal_those_of_decoding_everything(
    shared_data: Path, name: str, decoder: Decoder
) -> None:
    path = str(shared_data / "odd" / name)
    ledger = ledger_of(path)
    every = list(read_frames(path, "pyav", ledger, range(len(ledger))))
    rng = np.random.default_rng(0)
    for _ in range(3):
        indices = sorted(rng.choice(len(ledger), size=min(4, len(ledger)), replace=False).tolist())
        try:
            got = list(read_frames(path, decoder, ledger, indices))
        except DecodeError as error:
            if decoder == "decord" and "set frames.decoder to pyav" in str(error):
                return  # it may refuse a file and say what to do, but must not give other frames
            raise
        assert len(got) == len(indices)
        for index, frame in zip(indices, got, strict=True):
            assert frame.shape == every[index].shape
            difference = np.abs(frame.astype(int) - every[index]).mean()
            # decord converts 10 bits to 8 in its own way.
            assert difference == 0 if decoder == "pyav" else difference < 5


def test_rotated_videos_are_read_upright(shared_data: Path) -> None:
    for name in ("video_90.mov", "video_270.mov"):
        path = str(shared_data / "odd" / name)
        found = scan(path, shot_cuts=False)
        (frame,) = read_frames(path, "pyav", Ledger.unpack(found.ledger), [0])
        assert (found.width, found.height) == (320, 568)
        assert frame.shape == (568, 320, 3)
        # decord rotates frames by itself, in the same direction.
        (other,) = read_frames(path, "decord", Ledger.unpack(found.ledger), [0])
        assert np.abs(frame.astype(int) - other).mean() < 2.5


def test_a_variable_frame_rate_keeps_its_own_times(shared_data: Path) -> None:
    gaps = np.diff(scan(str(shared_data / "odd" / "vfr_bear.mp4"), shot_cuts=False).timestamps)
    assert gaps.min() == pytest.approx(1 / 30, abs=1e-3)
    assert gaps.max() == pytest.approx(0.467, abs=1e-3)


def test_the_larger_of_two_video_streams_is_read(shared_data: Path) -> None:
    found = scan(str(shared_data / "odd" / "nasa_13013.mp4"), shot_cuts=False)
    assert (found.width, found.height) == (480, 270)


def test_frames_read_by_index_are_right_despite_gaps_in_time_and_b_frames(tmp_path: Path) -> None:
    path = str(tmp_path / "gaps.mp4")
    encode(tmp_path / "gaps.mp4", frames=40, pts=[i + 7 * (i // 5) for i in range(40)])
    ledger = ledger_of(path)
    every = list(read_frames(path, "pyav", ledger, range(40)))
    assert len({frame.tobytes() for frame in every}) == 40
    for index in range(40):
        (frame,) = read_frames(path, "pyav", ledger, [index])
        assert np.array_equal(frame, every[index]), f"frame {index}"


def test_mpeg_ts_is_read_by_seeking(tmp_path: Path) -> None:
    """Its seeks land late. Decoding from the beginning would cost more with every clip."""
    write_video(tmp_path / "a.ts", panning_frames(0, 150))
    ledger = ledger_of(str(tmp_path / "a.ts"))
    every = list(read_frames(str(tmp_path / "a.ts"), "pyav", ledger, range(150)))
    for index in (0, 1, 70, 140):
        decoded = iter(range(80))
        # More than 80 decoded frames end in StopIteration.
        (frame,) = read_frames(
            str(tmp_path / "a.ts"), "pyav", ledger, [index], on_frame=partial(next, decoded)
        )
        assert np.array_equal(frame, every[index])


def test_a_video_that_changed_since_its_scan_is_noticed(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=30)
    ledger = ledger_of(str(tmp_path / "a.mp4"))
    encode(tmp_path / "a.mp4", frames=10)
    for decoder in ("pyav", "decord"):
        with pytest.raises(
            DecodeError, match=r"the file has changed|decord sees 10 frames where 30"
        ):
            list(read_frames(str(tmp_path / "a.mp4"), decoder, ledger, [5, 20]))  # type: ignore[arg-type]
