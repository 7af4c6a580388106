"""Depth maps in HDF5 files, and masks that are frames of a video."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.decode.frame_maps import read_depth, read_video_masks
from pipeline.decode.hdf5 import read_dataset
from pipeline.decode.mask_video import grey_frames
from pipeline.failures import DecodeError, MachineError
from tests.helpers.uco3d_files import FRAMES, HEIGHT, RATE, WIDTH, write_masks


def first_column(mask: object) -> int:
    assert isinstance(mask, np.ndarray)
    return int(np.flatnonzero(mask[50])[0])


def test_the_frame_nearest_to_each_time_is_taken(tmp_path: Path) -> None:
    write_masks(tmp_path / "mask.mkv")
    times = [0.0, 0.9 / RATE, 1.4 / RATE, 12 / RATE, (FRAMES - 0.4) / RATE]
    columns = [first_column(mask) for mask in grey_frames(str(tmp_path / "mask.mkv"), times)]
    assert columns == [20, 24, 24, 20 + 4 * 12, 20 + 4 * (FRAMES - 1)]


def test_late_masks_are_found_without_decoding_from_the_start(tmp_path: Path) -> None:
    write_masks(tmp_path / "mask.mkv", frames=30, rate=2)
    decoded: list[None] = []
    masks = grey_frames(str(tmp_path / "mask.mkv"), [14.0], lambda: decoded.append(None))
    assert [first_column(mask) for mask in masks] == [20 + 4 * 28]
    assert len(decoded) < 10


def test_masks_of_an_unusable_video_are_one_error_each(tmp_path: Path) -> None:
    (tmp_path / "broken.mkv").write_bytes(b"no video")
    write_masks(tmp_path / "wide.mkv")
    for file, message in [
        ("gone.mkv", "the file is gone"),
        ("broken.mkv", "the file cannot be opened as a video"),
        ("wide.mkv", "it has 160x120 pixels, another shape than its frame of 120x160"),
    ]:
        names = [f"{file}!0.0", f"{file}!0.04"]
        found = read_video_masks(
            str(tmp_path),
            names,
            source_sizes=[(HEIGHT, WIDTH)] * 2,
            stored_size=(60, 80),
            on_frame=lambda: None,
        )
        for error in found:
            assert isinstance(error, DecodeError)
            assert message in str(error)
            names.pop()
        assert names == []


def depth_of(root: Path, name: str) -> np.ndarray:
    return read_depth(
        str(root),
        name,
        encoding="float",
        scale=2.0,
        mask="",
        source_size=(8, 4),
        stored_size=(4, 2),
    )


def test_a_dataset_is_read_at_its_own_resolution_and_scaled(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "depth.h5", "w") as file:
        file["7"] = np.array([[1, np.inf], [np.nan, 4]], np.float16).repeat(2, 1)
        file["8"] = np.zeros((2, 4))
        file["9"] = np.ones((4, 4))
        file["10"] = np.ones((2, 4, 3))
        file["11"] = h5py.ExternalLink("other.h5", "/1")
        file["12"] = h5py.SoftLink("/7")
        file.create_group("13")
        file.create_dataset("14", (2, 4), "u1", external=[(str(tmp_path / "raw"), 0, 8)])
    assert depth_of(tmp_path, "depth.h5!7").tolist() == [[2, 2, 0, 0], [0, 0, 8, 8]]
    for name, message in [
        ("depth.h5!8", "no pixel has a depth"),
        ("depth.h5!9", "it has 4x4 pixels, another shape than its frame of 8x4"),
        ("depth.h5!10", "'10' is not a dataset of numbers with two axes"),
        ("depth.h5!11", "it has no dataset '11'"),
        ("depth.h5!12", "it has no dataset '12'"),
        ("depth.h5!13", "'13' is not a dataset"),
        ("depth.h5!14", "'14' is not a dataset"),
        ("depth.h5!99", "it has no dataset '99'"),
        ("gone.h5!1", "the file is missing"),
    ]:
        with pytest.raises(DecodeError, match=message):
            depth_of(tmp_path, name)
    (tmp_path / "depth.h5").write_bytes((tmp_path / "depth.h5").read_bytes()[:600])
    with pytest.raises(DecodeError, match="it cannot be read"):
        depth_of(tmp_path, "depth.h5!7")


def test_without_h5py_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)  # as if it were not installed
    with pytest.raises(MachineError, match=r"pip install 'pretrack\[uco3d\]', or set frames"):
        read_dataset(tmp_path / "depth.h5", "1")
