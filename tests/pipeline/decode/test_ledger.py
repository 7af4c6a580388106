"""No frame is stored in place of another, whatever a decoder returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode import decord as decord_module
from pipeline.decode import pyav as pyav_module
from pipeline.decode import torchcodec as torchcodec_module
from pipeline.decode.ledger import Ledger
from pipeline.decode.picture_print import cell_means, corner_sums, picture_print
from pipeline.decode.scan import scan
from pipeline.decode.video import Decoder, read_frames
from pipeline.failures import DecodeError, Reason
from tests.helpers.barcode import Recipe, numbered_frame, read_number, write_numbered


def ledger_of(path: Path) -> Ledger:
    return Ledger.unpack(scan(str(path), shot_cuts=False).ledger)


def test_a_ledger_survives_being_stored(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(b_frames=2))
    ledger = ledger_of(tmp_path / "a.mp4")
    again = Ledger.unpack(ledger.pack())
    for name in ("times", "checksums", "prints", "flags"):
        assert np.array_equal(getattr(again, name), getattr(ledger, name)), name
    assert (again.time_base, again.formats) == (ledger.time_base, ledger.formats)
    assert again.key_frames.tolist() == [0, 12, 24, 36, 48]
    assert [again.key_before(index) for index in (0, 11, 12, 59)] == [0, 0, 12, 48]
    assert [again.key_frames_before(index) for index in (0, 12, 13)] == [0, 1, 2]


def test_a_ledger_takes_at_most_12_bytes_per_frame(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(frames=200, b_frames=2))
    assert len(scan(str(tmp_path / "a.mp4"), shot_cuts=True).ledger) <= 12 * 200


@pytest.mark.parametrize("data", [b"", b"no ledger", b"\x28\xb5\x2f\xfd\x00\x00"])
def test_a_damaged_ledger_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"ledger|frames|version|JSON|Expecting"):
        Ledger.unpack(data)


def test_a_cut_off_ledger_is_refused(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(frames=20))
    packed = ledger_of(tmp_path / "a.mp4").pack()
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger.unpack(packed[:-10])


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_a_decoder_that_gives_the_next_frame_is_refused(
    tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault in the two decoders that return RGB, both when seeking and in order."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())
    ledger = ledger_of(path)

    def next_frames(path: str, count: int, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        return pyav_module.frames_at(path, ledger, [index + 1 for index in indices])

    modules: dict[str, ModuleType] = {"decord": decord_module, "torchcodec": torchcodec_module}
    monkeypatch.setattr(modules[decoder], "frames_at", next_frames)
    with pytest.raises(DecodeError, match=f"{decoder} gives another frame 17 than") as error:
        list(read_frames(str(path), decoder, ledger, [17, 30]))
    assert error.value.reason is Reason.WRONG_FRAME


def test_a_decoder_that_seeks_to_the_next_frame_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault that reading in order does not have: the frames come out right."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())
    ledger = ledger_of(path)

    def wrong_seeks(path: str, count: int, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        in_order = list(indices) == list(range(len(indices)))
        shifted = indices if in_order else [index + 1 for index in indices]
        return pyav_module.frames_at(path, ledger, shifted)

    monkeypatch.setattr(decord_module, "frames_at", wrong_seeks)
    frames = read_frames(str(path), "decord", ledger, [17, 30])
    assert [read_number(frame) for frame in frames] == [17, 30]


def test_pyav_that_lands_one_frame_late_is_read_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault in the numbering after a seek."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe())
    ledger = ledger_of(path)
    right = pyav_module._after_seek

    def one_late(
        path: str, ledger: Ledger, key_frame: int, early: float
    ) -> Iterator[tuple[int, object]]:
        for index, frame in right(path, ledger, key_frame, early):
            yield index - 1, frame

    monkeypatch.setattr(pyav_module, "_after_seek", one_late)
    frames = read_frames(str(path), "pyav", ledger, [17, 30])
    assert [read_number(frame) for frame in frames] == [17, 30]


def test_a_file_replaced_in_place_is_noticed(tmp_path: Path) -> None:
    """Even one of the same length whose frames all differ by their number alone."""
    path = tmp_path / "a.mp4"
    write_numbered(path, Recipe(frames=40))
    ledger = ledger_of(path)
    write_numbered(path, Recipe(frames=40, times=tuple(range(40)), gop=13))
    with pytest.raises(DecodeError, match=r"frame 20 is not the one .* the file has changed"):
        list(read_frames(str(path), "pyav", ledger, [20]))


def test_prints_of_different_pictures_differ_and_of_one_picture_in_two_sizes_do_not() -> None:
    small = numbered_frame(3)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    assert np.array_equal(picture_print(small), picture_print(large))
    apart = picture_print(numbered_frame(4)).astype(int) - picture_print(small)
    assert np.abs(apart).max() > 6
    # Five sums of signs that add up to nothing: a grey picture has none.
    assert picture_print(np.full((64, 64, 3), 90, np.uint8)).tolist() == [128] * 5


@pytest.mark.parametrize("size", [(135, 240), (17, 301), (128, 192), (9, 300), (1080, 1920)])
def test_cells_are_the_means_of_equal_parts_of_a_picture(size: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    grey[: size[0] // 3] //= 4
    cells = cell_means([corner_sums(grey)])[..., 0].astype(int)
    expected = cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA)
    assert np.abs(cells - expected).max() <= 1  # means that end in .5 are rounded either way
