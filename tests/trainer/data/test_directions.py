"""Clips whose points were tracked in one direction only: samples never step in the other."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards.clip import Directions, Tracks, tracked_frames
from shards.errors import PretrackError
from shards.sample_starts import TRAINER_DEFAULTS
from shards.stored_clip import StoredClip
from tests.trainer.conftest import panning_clip, publish
from trainer.data.augment import sample_rule
from trainer.data.clip_selection import frames_available
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips

ANCHORS = (0, 6, 11)


def data(*out: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})


def one_way(number: int, directions: Directions) -> StoredClip:
    """Make a clip of 12 frames as a build with `tracks.directions` stores it.

    Points have confidence 0 in frames that were not tracked, and in no others.
    """
    clip = panning_clip(f"made-{number}", number, anchors=ANCHORS)
    tracks = clip.tracks
    tracked = tracked_frames(tracks.anchors, 12, directions)[:, :, None]
    queries = tracks.positions[range(3), ANCHORS][:, None]
    return replace(
        clip,
        tracks=Tracks(
            tracks.anchors,
            np.where(tracked[..., None], tracks.positions, queries),
            np.where(tracked, tracks.visibility, 0).astype(np.uint8),
            np.where(tracked, tracks.confidence, 0).astype(np.uint8),
        ),
    )


def publish_one_way(out: Path, directions: Directions) -> Path:
    clips = [one_way(number, directions) for number in range(4)]
    publish(out, clips, {"tracks": {"tracker": "lucas_kanade", "directions": directions}})
    return out


def test_plan_assumes_the_trainers_defaults() -> None:
    assert sample_rule(DataSettings.model_validate({"out": "x"})) == TRAINER_DEFAULTS
    upstream = data(Path("x"), anchor="first", direction="forward")
    assert sample_rule(upstream) == replace(
        TRAINER_DEFAULTS, step=2, first_anchor=True, backward=False
    )


@pytest.mark.parametrize("directions", ["forward", "backward"])
def test_samples_show_tracked_frames_only(tmp_path: Path, directions: Directions) -> None:
    settings = data(publish_one_way(tmp_path, directions))
    dataset = ClipDataset(open_snapshots(settings), settings, seed=1)
    assert len(dataset) == 4
    for epoch in range(20):
        for clip in range(4):
            assert dataset[epoch, clip]["confidence"].min() == 1


@pytest.mark.parametrize("directions", ["forward", "backward"])
def test_so_do_samples_of_tars_without_tables(tmp_path: Path, directions: Directions) -> None:
    settings = data(publish_one_way(tmp_path, directions))
    streamed = StreamedClips(str(tmp_path / "shards" / "*.tar"), settings, seed=1)
    samples = list(islice(streamed, 80))
    assert {sample["key"] for sample in samples} == {f"made-{number}" for number in range(4)}
    assert all(sample["confidence"].min() == 1 for sample in samples)


def test_clips_that_lost_every_point_at_once_are_used_in_both_directions(tmp_path: Path) -> None:
    """In black frames, say: as before there were directions."""
    clip = one_way(0, "forward")
    lost = np.zeros_like(clip.tracks.visibility)
    still = np.broadcast_to(clip.tracks.positions[:, :1], clip.tracks.positions.shape)
    publish(tmp_path, [replace(clip, tracks=Tracks(clip.tracks.anchors, still, lost, lost))])
    streamed = StreamedClips(str(tmp_path / "shards" / "*.tar"), data(tmp_path), seed=1)
    assert len(list(islice(streamed, 3))) == 3


def test_a_training_in_the_other_direction_says_why_no_clip_fits(tmp_path: Path) -> None:
    settings = data(publish_one_way(tmp_path, "backward"), direction="forward")
    with pytest.raises(PretrackError, match=r"4 frames or more from .* \(tracked only backward\)"):
        ClipDataset(open_snapshots(settings), settings, seed=1)


def test_each_folder_has_its_own_directions() -> None:
    clips = pa.table({"anchors": [[3, 8]] * 3, "frames": [10] * 3, "folder": [0, 1, 2]})
    tracked: list[Directions] = ["both", "forward", "backward"]
    # 8 frames before frame 8, 6 after frame 3
    assert frames_available(clips, data(Path("x")), tracked).tolist() == [8, 6, 8]
    forward = data(Path("x"), direction="forward")
    assert frames_available(clips, forward, tracked).tolist() == [6, 6, -1]


def test_unknown_directions_of_a_later_version_are_refused(tmp_path: Path) -> None:
    publish(tmp_path, [one_way(0, "both")], {"tracks": {"directions": "sideways"}})
    with pytest.raises(PretrackError, match=r"settings\.json say tracks\.directions 'sideways'"):
        ClipDataset(open_snapshots(data(tmp_path)), data(tmp_path), seed=1)
