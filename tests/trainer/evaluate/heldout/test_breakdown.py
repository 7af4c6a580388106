"""Metrics per clip and bin, and differences that videos, not clips, make sure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from manifests.snapshot import Snapshot
from tests.helpers.scenic_clips import colour_model, held_out
from trainer.evaluate.heldout.breakdown import bins, by_clip, differences
from trainer.evaluate.heldout.measures import METRICS, FramePair
from trainer.evaluate.heldout.scoring import Scores, score

NAMED = {metric.name: metric for metric in METRICS}


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
    assert found["pck@0.1"].p_holm == len(METRICS) * 2 / 2**12
    assert (found["pck@0.1"].gain, found["pck@0.1"].verdict) == (0.5, "better")
    assert (found["error"].gain, found["error"].verdict) == (0.5, "worse")
    assert (found["consistency"].gain, found["consistency"].verdict) == (0.5, "higher")


def test_there_are_bins_of_angle_only_where_two_cameras_of_a_clip_are_known(
    scenic: Snapshot,
) -> None:
    held = held_out(scenic, 64)
    labels = ["0-15", "15-30", "30-60", "60+"]
    assert bins(held) == {"gap": ["1", "2", "3"], "angle": labels, "source": ["made"]}
    # only the anchor frame has a camera
    clips = [
        replace(clip, angles=np.array([0, math.nan, math.nan, math.nan])) for clip in held.clips
    ]
    assert bins(replace(held, clips=tuple(clips)))["angle"] == []
    clips[2] = replace(clips[2], angles=np.array([0, math.nan, 40, math.nan]))
    assert bins(replace(held, clips=tuple(clips)))["angle"] == labels
