"""Read TAP-Vid-DAVIS, and refuse pickles that are damaged, of another layout, or would run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tap_vid_davis import read_tap_davis
from shards.errors import PretrackError


def make_entry(frames: int = 4, points: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 255, (frames, 20, 40, 3)).astype(np.uint8),
        "points": np.array([0.0, 1.0]) * np.ones((points, frames, 1)),
        "occluded": rng.random((points, frames)) < 0.5,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_davis_is_read_from_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    video = make_entry()
    (tmp_path / "davis.pkl").write_bytes(
        pickle.dumps({"goat": video, "car": make_entry(6)}, protocol)
    )
    goat, car = read_tap_davis(tmp_path / "davis.pkl")
    assert (goat.name, car.name, car.frames.shape) == ("goat", "car", (6, 20, 40, 3))
    assert (goat.frames == video["video"]).all()
    assert (goat.visible == ~video["occluded"]).all()
    assert (goat.positions == (-0.5, 19.5)).all()
    small = goat.resized(10, 10)
    assert small.frames.shape == (4, 10, 10, 3)
    assert (small.positions == (-0.5, 9.5)).all()


def test_pickles_of_older_numpy_are_read(tmp_path: Path) -> None:
    data = pickle.dumps({"goat": make_entry()}, 2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    (tmp_path / "davis.pkl").write_bytes(data)
    assert len(list(read_tap_davis(tmp_path / "davis.pkl"))) == 1


class Malicious:
    """Unpickling this creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "davis.pkl"
    for value in (
        Malicious(tmp_path / "made"),
        {"goat": {**make_entry(), "points": np.array([Malicious(tmp_path / "made")])}},
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(PretrackError, match=r"asks for posix.mkdir, and only arrays are read"):
            list(read_tap_davis(path))
    path.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(PretrackError, match=r"asks for builtins.eval"):
        list(read_tap_davis(path))
    assert not (tmp_path / "made").exists()


def test_files_that_are_not_davis_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "davis.pkl"
    with pytest.raises(PretrackError, match="there is no file"):
        list(read_tap_davis(path))
    whole = pickle.dumps({"goat": make_entry()})
    no_points = {key: value for key, value in make_entry().items() if key != "points"}
    of_other_length = {**make_entry(), "occluded": np.zeros((3, 5), bool)}
    for data, why in (
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (pickle.dumps([1, 2]), "expected a dict of videos"),
        (pickle.dumps({"goat": no_points}), "'goat' lacks one of the arrays"),
        (pickle.dumps({"goat": of_other_length}), "'goat' has video, points and occluded of"),
    ):
        path.write_bytes(data)
        with pytest.raises(PretrackError, match=why):
            list(read_tap_davis(path))
