"""Compare TAP-Vid's metrics with a plain count, and with values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from benchmarks.tap import StandingStill
from benchmarks.tap_vid import (
    Mode,
    TapClip,
    TapMetrics,
    evaluate_tracker,
    mean_metrics,
    predict,
    select_queries,
    tap_metrics,
)
from shards.clip import Tracks

VISIBLE = np.array([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0]], bool)


def test_points_are_queried_in_their_first_visible_frame_or_in_every_fifth() -> None:
    tracks, frames = select_queries(VISIBLE, "first")
    assert (tracks.tolist(), frames.tolist()) == ([0, 2], [1, 0])
    tracks, frames = select_queries(VISIBLE, "strided")
    assert (tracks.tolist(), frames.tolist()) == ([2, 0, 2], [0, 5, 5])


def plain_count(
    true: Any, visible: Any, predicted: Any, positive: Any, starts: Any, mode: Mode
) -> TapMetrics:
    """Count the metrics frame by frame, as they are defined."""
    evaluated = [
        (q, t)
        for q in range(len(starts))
        for t in range(visible.shape[1])
        if (t > starts[q] or (mode != "first" and t < starts[q]))
    ]
    correct = sum(visible[c] == positive[c] for c in evaluated)
    deltas, jaccards = [], []
    for threshold in (1, 2, 4, 8, 16):
        near = {c: np.hypot(*(true[c] - predicted[c])) < threshold for c in evaluated}
        total = sum(visible[c] for c in evaluated)
        deltas.append(sum(visible[c] and near[c] for c in evaluated) / total)
        hits = sum(visible[c] and positive[c] and near[c] for c in evaluated)
        false = sum(positive[c] and (not visible[c] or not near[c]) for c in evaluated)
        jaccards.append(hits / (total + false))
    accuracy = correct / len(evaluated)
    return TapMetrics(float(np.mean(jaccards)), float(np.mean(deltas)), accuracy)


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_metrics_equal_a_count_of_their_definitions(mode: Mode) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 256, (20, 9, 2))
    predicted = true + rng.normal(0, 6, true.shape)
    visible, positive = rng.random((2, 20, 9)) < 0.6
    starts = rng.integers(0, 8, 20)
    metrics = tap_metrics(
        true=true,
        true_visible=visible,
        predicted=predicted,
        predicted_visible=positive,
        query_frames=starts,
        mode=mode,
    )
    expected = plain_count(true, visible, predicted, positive, starts, mode)
    assert astuple(metrics) == pytest.approx(astuple(expected))
    assert 0.05 < metrics.average_jaccard < metrics.delta_avg < 0.95


def test_metrics_by_hand() -> None:
    """One point, queried in frame 1, so frames 2 to 5 are evaluated.

    It is 0.5 px off, 3 px off, wrongly predicted visible, and wrongly predicted hidden.
    """
    true = np.zeros((1, 6, 2))
    predicted = true.copy()
    predicted[0, 2:4, 0] = 0.5, 3.0
    metrics = tap_metrics(
        true=true,
        true_visible=np.array([[True, True, True, True, False, True]]),
        predicted=predicted,
        predicted_visible=np.array([[False, True, True, True, True, False]]),
        query_frames=np.array([1]),
        mode="first",
    )
    assert metrics.occlusion_accuracy == 0.5
    assert metrics.delta_avg == pytest.approx((2 / 3 + 2 / 3 + 1 + 1 + 1) / 5)
    assert metrics.average_jaccard == pytest.approx((1 / 5 + 1 / 5 + 2 / 4 + 2 / 4 + 2 / 4) / 5)


def test_a_metric_of_nothing_is_nan_and_is_left_out_of_the_mean() -> None:
    nothing = tap_metrics(
        true=np.zeros((1, 3, 2)),
        true_visible=np.ones((1, 3), bool),
        predicted=np.zeros((1, 3, 2)),
        predicted_visible=np.ones((1, 3), bool),
        query_frames=np.array([2]),
        mode="first",
    )
    assert np.isnan(astuple(nothing)).all()
    mean = mean_metrics([TapMetrics(0.2, 0.4, 0.6), nothing, TapMetrics(0.4, 0.6, 0.8)])
    assert astuple(mean) == pytest.approx((0.3, 0.5, 0.7))


def test_tracks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree in shape"):
        tap_metrics(
            true=np.zeros((1, 3, 2)),
            true_visible=np.ones((1, 4), bool),
            predicted=np.zeros((1, 3, 2)),
            predicted_visible=np.ones((1, 3), bool),
            query_frames=np.array([0]),
            mode="first",
        )


def moving_clip() -> TapClip:
    """Make a clip of 128x128 pixels with one point that moves by 1 pixel after frame 0."""
    positions = np.array([[[50.0, 50.0], [51.0, 50.0], [51.0, 50.0]]])
    visible = np.ones((1, 3), bool)
    return TapClip("moving", np.zeros((3, 128, 128, 3), np.uint8), positions, visible)


def test_distances_are_measured_in_frames_of_256_pixels() -> None:
    """1 pixel of 128 is 2 of 256: less than 4, 8 and 16, but not less than 1 or 2."""
    metrics = evaluate_tracker(StandingStill(), moving_clip(), "first")
    assert metrics.delta_avg == pytest.approx(3 / 5)
    assert metrics.average_jaccard == pytest.approx(3 / 5)
    assert metrics.occlusion_accuracy == 1


class WithVisibility(StandingStill):
    """Predicts the same visibility, 0 to 255, in every frame."""

    def __init__(self, visibility: int) -> None:
        self.visibility = visibility

    def track(self, clips: Any, infos: Any, anchors: Sequence[int], queries: Any) -> list[Tracks]:
        (tracks,) = super().track(clips, infos, anchors, queries)
        visibility = np.full_like(tracks.visibility, self.visibility)
        return [Tracks(tracks.anchors, tracks.positions, visibility, tracks.confidence)]


@pytest.mark.parametrize(
    ("visible_from", "visibility", "accuracy"),
    [(0.5, 127, 0), (0.5, 128, 1), (0.9, 229, 0), (0.9, 230, 1), (1.0, 254, 0), (1.0, 255, 1)],
)
def test_a_point_counts_as_visible_from_the_threshold_on(
    visible_from: float, visibility: int, accuracy: float
) -> None:
    tracker = WithVisibility(visibility)
    metrics = evaluate_tracker(tracker, moving_clip(), "first", visible_from=visible_from)
    assert metrics.occlusion_accuracy == accuracy


def test_metrics_of_a_group_count_only_its_frames() -> None:
    """Two points are predicted to stand still; one moves by 3 pixels of 256 in the last frame."""
    positions = np.full((2, 3, 2), 100.0)
    positions[1, 2] += [3, 0]
    angles = np.zeros((2, 3, 3))
    angles[:, 0] = [[0, 5, 25], [0, 10, 40]]
    clip = TapClip(
        name="two points",
        frames=np.zeros((3, 256, 256, 3), np.uint8),
        positions=positions,
        visible=np.ones((2, 3), bool),
        moving=np.array([False, True]),
        angles=angles,
    )
    predictions = predict(StandingStill(), clip, "first")
    groups = {name: predictions.metrics(frames) for name, frames in predictions.groups().items()}
    deltas = {name: metrics.delta_avg for name, metrics in groups.items()}
    assert deltas["static"] == deltas["0-10°"] == deltas["10-20°"] == deltas["20-40°"] == 1
    # 3 pixels are less than 4, 8 and 16.
    assert deltas["40-70°"] == pytest.approx(3 / 5)
    assert deltas["moving"] == pytest.approx((5 + 3) / 10)
    assert np.isnan(deltas["70-180°"])
    assert predictions.metrics().delta_avg == pytest.approx((5 + 5 + 5 + 3) / 20)
    assert predict(StandingStill(), moving_clip(), "first").groups() == {}
