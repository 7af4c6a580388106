"""Metrics per clip and bin, and differences that videos, not clips, make sure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from manifests.snapshot import Snapshot
from tests.helpers.scenic_clips import colour_model, held_out
from trainer.evaluate.heldout.breakdown import bins, by_clip, by_sequence, differences
from trainer.evaluate.heldout.measures import ENDPOINT, METRICS, NAMED, FramePair
from trainer.evaluate.heldout.scoring import Scores, score


def test_clips_of_the_same_videos_do_not_narrow_intervals(scenic: Snapshot) -> None:
    held = held_out(scenic, 128)
    scores = score(held, [colour_model("knows", True), colour_model("noise", False)], 16)
    thrice = replace(held, clips=held.clips * 3)
    copied = {
        name: Scores(
            [replace(pair, clip=pair.clip + 6 * copy) for copy in range(3) for pair in found.pairs]
        )
        for name, found in scores.items()
    }
    found = [
        differences(s["knows"], s["noise"], h).values()
        for s, h in ((scores, held), (copied, thrice))
    ]
    for once, often in zip(*found, strict=True):
        assert (often.count, often.groups) == (3 * once.count, once.groups)
        assert often.interval == (once.interval and pytest.approx(once.interval))
    assert "18 clips of 6 videos" in str(thrice)


def pairs_at(angles: list[float], clip: int = 0) -> Scores:
    """A pair of one moving point at each angle, with gaps 1, 2, 3, 1 …; pair i has a PCK of i."""
    pairs = []
    for i, angle in enumerate(angles):
        measures = {metric.measure: np.array([float(i)]) for metric in METRICS}
        pairs.append(FramePair(clip, i % 3 + 1, angle, np.array([True]), measures))
    return Scores(pairs)


def test_pairs_are_in_the_bin_that_begins_at_their_angle(scenic: Snapshot) -> None:
    held = held_out(scenic, 64)
    scores = pairs_at([0, 14.99, 15, 29.99, 30, 60, 179, math.nan])
    metric = NAMED["moving_pck@0.1"]
    found = {
        label: by_clip(metric, scores, held, "angle", label)[0] for label in bins(held)["angle"]
    }
    assert found == {"0-15": 0.5, "15-30": 2.5, "30-60": 4, "60+": 5.5}
    assert by_clip(metric, scores, held)[0] == 3.5  # a pair without poses counts in the whole
    assert np.isnan(by_clip(metric, scores, held)[1:]).all()
    by_gap = [by_clip(metric, scores, held, "gap", label)[0] for label in bins(held)["gap"]]
    assert by_gap == [3, 4, 3.5]  # pairs 0, 3, 6; 1, 4, 7; 2, 5
    assert by_clip(metric, scores, held, "source", "made")[0] == 3.5


def test_differences_are_the_model_less_the_base(scenic: Snapshot) -> None:
    held = held_out(scenic, 64)
    videos = [
        replace(clip, info=replace(clip.info, sequence=f"video {i}"))
        for i, clip in enumerate(held.clips * 2)
    ]
    base = Scores([pair for i in range(12) for pair in pairs_at([0], i).pairs])
    model = Scores([pair for i in range(12) for pair in pairs_at([0, 0], i).pairs])
    found = differences(base, model, replace(held, clips=tuple(videos)))
    assert found["pck@0.1"].p == 2 / 2**12
    together = sum(metric.listed for metric in METRICS) - 1  # no masks, so no points on objects
    assert found["pck@0.1"].p_holm == together * 2 / 2**12
    assert found["track@1"].p_holm is None  # not in the table
    assert (found["pck@0.1"].gain, found["pck@0.1"].verdict) == (0.5, "better")
    assert (found["error"].gain, found["error"].verdict) == (0.5, "worse")
    assert (found["consistency"].gain, found["consistency"].verdict) == (0.5, "higher")


def test_there_are_bins_of_angle_only_where_two_cameras_of_a_clip_are_known(
    scenic: Snapshot,
) -> None:
    held = held_out(scenic, 64)
    labels = ["0-15", "15-30", "30-60", "60+"]
    known = bins(held)
    assert known["gap"] == ["1", "2", "3"]
    assert known["angle"] == labels
    assert known["source"] == ["made"]
    # only the anchor frame has a camera
    clips = [
        replace(clip, angles=np.array([0, math.nan, math.nan, math.nan])) for clip in held.clips
    ]
    assert bins(replace(held, clips=tuple(clips)))["angle"] == []
    clips[2] = replace(clips[2], angles=np.array([0, math.nan, 40, math.nan]))
    assert bins(replace(held, clips=tuple(clips)))["angle"] == labels


def test_points_are_in_the_bin_of_their_own_viewing_angle(scenic: Snapshot) -> None:
    held = held_out(scenic, 64)
    assert bins(held)["viewing_angle"] == []  # these clips pan, and their cameras say they turn
    labels = held.clips[3].labels
    seen = replace(held.clips[3], labels=replace(labels, angles=np.zeros_like(labels.angles)))
    held = replace(held, clips=(*held.clips[:3], seen, *held.clips[4:]))
    angles = np.array([0, 9.99, 10, 20, 39.9, 40, 69.9, 70, 180, math.nan])
    values = np.arange(10.0)
    pair = FramePair(
        clip=0,
        gap=1,
        angle=5.0,
        moving=np.ones(10, np.bool_),
        measures={metric.measure: values for metric in METRICS},
        viewing_angles=angles,
        on_object=np.array([True] * 6 + [False] + [True] * 3),
    )
    scores = Scores([pair, replace(pair, clip=1, viewing_angles=None, on_object=None)])

    def of_first(label: str, kind: str = "viewing_angle") -> float:
        return float(by_clip(NAMED["auc"], scores, held, kind, label)[0])

    found = {label: of_first(label) for label in bins(held)["viewing_angle"]}
    assert found == {
        "0-10": 0.5,
        "10-20": 2,
        "20-40": 3.5,
        "40-70": 5.5,
        "70-180": 7.5,
        "unknown": 9,
    }
    assert by_clip(NAMED["auc"], scores, held, "viewing_angle", "unknown")[1] == 4.5
    assert (of_first("object", "part"), of_first("background", "part")) == (39 / 9, 6)
    assert np.isnan(by_clip(NAMED["auc"], scores, held, "part", "object")[1])
    # The endpoint: on objects, from 40 to below 70 degrees.
    assert by_clip(ENDPOINT, scores, held)[0] == 5
    assert np.isnan(by_clip(ENDPOINT, scores, held)[1:]).all()
    first, second, *_ = held.videos
    assert by_sequence(ENDPOINT, scores, held)[first] == 5
    together = replace(
        held,
        clips=tuple(replace(clip, info=replace(clip.info, sequence="one")) for clip in held.clips),
    )
    double = Scores([pair, replace(pair, clip=2, measures={"pck@0.1": values + 2})])
    assert by_sequence(ENDPOINT, double, together) == {"one": 6}
    assert second in by_sequence(ENDPOINT, double, held)
