"""TAP-Vid's metrics against a plain count, and its file: read, or refused."""

from __future__ import annotations

import os
import pickle
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.tap_vid import Mode, TapMetrics, mean_metrics, queries, tap_metrics
from benchmarks.tap_vid_davis import read_tap_davis
from shards.errors import PretrackError

VISIBLE = np.array([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0]], bool)


def test_queries() -> None:
    tracks, frames = queries(VISIBLE, "first")
    assert (tracks.tolist(), frames.tolist()) == ([0, 2], [1, 0])
    tracks, frames = queries(VISIBLE, "strided")
    assert (tracks.tolist(), frames.tolist()) == ([2, 0, 2], [0, 5, 5])


def counted(
    true: Any, shown: Any, predicted: Any, said: Any, starts: Any, mode: Mode
) -> TapMetrics:
    """The metrics' definitions, counted frame by frame."""
    judged = [
        (q, t)
        for q in range(len(starts))
        for t in range(shown.shape[1])
        if (t > starts[q] or (mode != "first" and t < starts[q]))
    ]
    right = sum(shown[c] == said[c] for c in judged)
    deltas, jaccards = [], []
    for threshold in (1, 2, 4, 8, 16):
        within = {c: np.hypot(*(true[c] - predicted[c])) < threshold for c in judged}
        positives = sum(shown[c] for c in judged)
        deltas.append(sum(shown[c] and within[c] for c in judged) / positives)
        hits = sum(shown[c] and said[c] and within[c] for c in judged)
        false = sum(said[c] and (not shown[c] or not within[c]) for c in judged)
        jaccards.append(hits / (positives + false))
    return TapMetrics(float(np.mean(jaccards)), float(np.mean(deltas)), right / len(judged))


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_metrics_are_what_their_definitions_count(mode: Mode) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 256, (20, 9, 2))
    predicted = true + rng.normal(0, 6, true.shape)
    shown, said = rng.random((2, 20, 9)) < 0.6
    starts = rng.integers(0, 8, 20)
    metrics = tap_metrics(true, shown, predicted, said, starts, mode)
    assert astuple(metrics) == pytest.approx(
        astuple(counted(true, shown, predicted, said, starts, mode))
    )
    assert 0.05 < metrics.average_jaccard < metrics.delta_avg < 0.95


def test_metrics_by_hand() -> None:
    """One point, asked for in frame 1. Frames 2 to 5 count: 0.5 px off, 3 px off, wrongly said visible, wrongly said hidden."""
    true = np.zeros((1, 6, 2))
    predicted = true.copy()
    predicted[0, 2:4, 0] = 0.5, 3.0
    shown = np.array([[True, True, True, True, False, True]])
    said = np.array([[False, True, True, True, True, False]])
    metrics = tap_metrics(true, shown, predicted, said, np.array([1]), "first")
    assert metrics.occlusion_accuracy == 0.5
    assert metrics.delta_avg == pytest.approx((2 / 3 + 2 / 3 + 1 + 1 + 1) / 5)
    assert metrics.average_jaccard == pytest.approx((1 / 5 + 1 / 5 + 2 / 4 + 2 / 4 + 2 / 4) / 5)


def test_nothing_to_judge_is_not_a_number_and_does_not_count() -> None:
    nothing = tap_metrics(
        np.zeros((1, 3, 2)),
        np.ones((1, 3), bool),
        np.zeros((1, 3, 2)),
        np.ones((1, 3), bool),
        np.array([2]),
        "first",
    )
    assert np.isnan(astuple(nothing)).all()
    mean = mean_metrics([TapMetrics(0.2, 0.4, 0.6), nothing, TapMetrics(0.4, 0.6, 0.8)])
    assert astuple(mean) == pytest.approx((0.3, 0.5, 0.7))
    with pytest.raises(ValueError, match="disagree in shape"):
        tap_metrics(
            np.zeros((1, 3, 2)),
            np.ones((1, 4), bool),
            np.zeros((1, 3, 2)),
            np.ones((1, 3), bool),
            np.array([0]),
            "first",
        )


def a_video(frames: int = 4, points: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 255, (frames, 20, 40, 3)).astype(np.uint8),
        "points": np.array([0.0, 1.0]) * np.ones((points, frames, 1)),
        "occluded": rng.random((points, frames)) < 0.5,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_davis_is_read(tmp_path: Path, protocol: int) -> None:
    video = a_video()
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({"goat": video, "car": a_video(6)}, protocol))
    goat, car = read_tap_davis(tmp_path / "davis.pkl")
    assert (goat.name, car.name, car.frames.shape) == ("goat", "car", (6, 20, 40, 3))
    assert (goat.frames == video["video"]).all()
    assert (goat.visible == ~video["occluded"]).all()
    assert (goat.positions == (-0.5, 19.5)).all()
    small = goat.resized(10, 10)
    assert small.frames.shape == (4, 10, 10, 3)
    assert (small.positions == (-0.5, 9.5)).all()


def test_old_names_of_arrays_are_known(tmp_path: Path) -> None:
    data = pickle.dumps({"goat": a_video()}, 2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    (tmp_path / "davis.pkl").write_bytes(data)
    assert len(list(read_tap_davis(tmp_path / "davis.pkl"))) == 1


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "davis.pkl"
    for value in (
        Malicious(tmp_path / "made"),
        {"goat": {**a_video(), "points": np.array([Malicious(tmp_path / "made")])}},
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(PretrackError, match=r"asks for posix.mkdir, and only arrays are read"):
            list(read_tap_davis(path))
    path.write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(PretrackError, match=r"asks for builtins.eval"):
        list(read_tap_davis(path))
    assert not (tmp_path / "made").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "davis.pkl"
    with pytest.raises(PretrackError, match="there is no file"):
        list(read_tap_davis(path))
    whole = pickle.dumps({"goat": a_video()})
    no_points = {key: value for key, value in a_video().items() if key != "points"}
    of_other_length = {**a_video(), "occluded": np.zeros((3, 5), bool)}
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
