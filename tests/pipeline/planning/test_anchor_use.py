"""`pretrack plan` and `report` name tracks that no training sample can use."""

from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.planning.anchor_use import (
    AnchorUse,
    ClipLength,
    measure_use,
    planned_lengths,
    stored_lengths,
)
from shards.clip import Directions
from shards.errors import SettingsError
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule

SOURCE = {"dataset": "video_folder", "root": "/videos"}
ASSUMED = (
    "This is for data.frames=4 and data.step=10, the trainer's defaults: --train-frames and "
    "--train-step choose others."
)


def build_settings(**sections: object) -> BuildSettings:
    return check_settings(BuildSettings, {"sources": [SOURCE], "out": "x", **sections}, "test")


def use(*lengths: ClipLength, tracked: Directions = "both") -> AnchorUse:
    return measure_use(lengths, TRAINER_DEFAULTS, tracked)


@pytest.mark.parametrize(
    ("frames", "anchors", "tracked", "reached", "percent"),
    [
        # 23 frames after anchor 0, of 3 x 23
        (24, (0, 8, 16), "both", 1, 33),
        # 23 after 0, 18 after 5, 23 before 23, of 3 x 23
        (24, (0, 5, 23), "both", 3, 93),
        # 47 after 0, 31 after 16, 32 before 32, of 3 x 47
        (48, (0, 16, 32), "both", 3, 78),
        (48, (0, 17, 47), "both", 3, 88),
        (64, (0, 32, 63), "both", 3, 100),
        (48, (0, 8, 16), "forward", 3, 100),
    ],
)
def test_used_fractions_are_those_of_the_documentation(
    frames: int, anchors: tuple[int, ...], tracked: Directions, reached: int, percent: int
) -> None:
    measured = use(ClipLength(frames, anchors, 7), tracked=tracked)
    assert len(anchors) - len(measured.unreachable) == reached
    assert f"{measured.used_fraction:.0%}" == f"{percent}%"


def test_a_default_build_fits_a_default_training() -> None:
    settings = build_settings()
    clips = pa.table({"frames": pa.array([48, 48, settings.frames.min_frames])})
    lengths = planned_lengths(clips, settings)
    assert lengths == [ClipLength(8, (0,), 1), ClipLength(48, (0, 16, 32), 2)]
    assert list(use(*lengths).sentences()) == []


def test_anchors_that_no_sample_can_start_from_are_named() -> None:
    assert list(use(ClipLength(24, (0, 8, 16), 120)).sentences()) == [
        "No training sample can start from the anchors 8 and 16.",
        "A sample takes 4 frames, 10 apart (less in clips of fewer than 40 frames). In clips of "
        "24 frames, the most frequent length, it can start from frames 0 to 5 or 18 to 23. Samples "
        "use 33% of the tracked frames: change tracks.anchors or frames.clip_frames.",
        ASSUMED,
    ]


def test_an_anchor_that_few_clips_can_use_is_named_with_their_number() -> None:
    # in a clip of 17 frames the step is 4: 16 frames before anchor 16 are enough
    said = list(use(ClipLength(24, (0, 8, 16), 120), ClipLength(17, (0, 8, 16), 3)).sentences())
    assert said[0] == "No training sample can start from the anchor 8."
    assert said[1] == (
        "Training samples can start from the anchor 16 in only 3 of the 123 clips that have it."
    )


def test_clips_that_are_too_short_for_any_sample_are_counted() -> None:
    assert list(use(ClipLength(48, (0,), 9), ClipLength(3, (0,), 2)).sentences()) == [
        "2 of 11 clips will never be used in training: no anchor has 3 tracked frames on one side. "
        "frames.min_frames=4 or more leaves out clips that are too short.",
        ASSUMED,
    ]


def test_a_direction_that_is_left_out_counts() -> None:
    said = list(use(ClipLength(48, (0, 16, 32), 5), tracked="backward").sentences())
    assert said[0] == "No training sample can start from the anchors 0 and 16."
    assert "it can start from frames 30 to 47." in said[1]
    # 32 of the 16 + 32 frames before anchors 16 and 32
    assert "Samples use 67% of the tracked frames" in said[1]


def test_other_training_settings_are_named_without_calling_them_defaults() -> None:
    measured = measure_use([ClipLength(24, (0, 8, 16), 1)], SampleRule(8, 4), "both")
    assert measured.unreachable == (8, 16)
    assert list(measured.sentences())[-1] == (
        "This is for data.frames=8 and data.step=4: --train-frames and --train-step choose others."
    )


def test_stored_clips_are_counted_by_their_own_anchors() -> None:
    clips = pa.table(
        {
            "frames": pa.array([24, 24, 9, 24], pa.int32()),
            "anchors": pa.array([[0, 8], [0, 8], [0], []], pa.list_(pa.int32())),
        }
    )
    assert sorted(stored_lengths(clips), key=str) == [
        ClipLength(24, (), 1),
        ClipLength(24, (0, 8), 2),
        ClipLength(9, (0,), 1),
    ]


def test_no_clips_say_nothing() -> None:
    assert list(use().sentences()) == []


@pytest.mark.parametrize(
    ("directions", "anchors", "needed"),
    [("backward", [0, 16], "from 1 to 7"), ("forward", [7, 16], "from 0 to 6")],
)
def test_short_clips_without_anything_tracked_are_refused(
    directions: str, anchors: list[int], needed: str
) -> None:
    tracks = {"tracker": "lucas_kanade", "anchors": anchors, "directions": directions}
    with pytest.raises(SettingsError, match=rf"tracks\.directions {directions} needs an anchor "):
        build_settings(tracks=tracks)
    with pytest.raises(SettingsError, match=needed):
        build_settings(tracks=tracks)
    build_settings(tracks={**tracks, "anchors": [0, 1, 16]})
