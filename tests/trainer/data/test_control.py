"""Controls: samples that hold no tracks, or only wrong ones, and otherwise are what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.snapshot import Snapshot
from shards.errors import SettingsError
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import static_scene, stored_scene
from tests.trainer.conftest import panning_clip, publish
from trainer.data.batch import Batch, track_mask
from trainer.data.dataset import ClipDataset
from trainer.data.device_frames import make_frames
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.data.streaming import StreamedClips

POINTS = 36


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Four clips of 96x64 pixels; point n has confidence n and visibility 100 + n in all frames."""
    clips = []
    for number in range(4):
        clip = panning_clip(f"clip-{number}", number)
        confidence = np.broadcast_to(np.arange(POINTS, dtype=np.uint8), (2, 12, POINTS)).copy()
        tracks = replace(clip.tracks, visibility=100 + confidence, confidence=confidence)
        clips.append(replace(clip, tracks=tracks))
    return publish(tmp_path_factory.mktemp("control"), clips)


def settings_for(snapshot: Snapshot, control: str, **changes: Any) -> DataSettings:
    values = {"out": str(snapshot.out), "size": 64, "step": 2, "frames": 4, "control": control}
    return DataSettings.model_validate(values | changes)


def sources(sample: Batch) -> torch.Tensor:
    """Return whose track each point has in each frame: [T, N], by the confidence stored for it."""
    return (sample["confidence"] * 255).round().long()


def assert_shuffled(sample: Batch) -> None:
    """Each frame has all tracks, and a point has another one in each of them."""
    source = sources(sample)
    assert source[0].tolist() == list(range(POINTS))
    for row in source:
        assert sorted(row.tolist()) == list(range(POINTS))
    for first in range(4):
        for second in range(first):
            assert not (source[first] == source[second]).any()


def test_shuffled_tracks_are_those_of_other_points_and_nothing_else_differs(
    snapshot: Snapshot,
) -> None:
    colour = {"jitter": 1.0, "per_frame": True}
    plain, shuffled = (
        ClipDataset([snapshot], settings_for(snapshot, control, colour=colour), seed=3)
        for control in ("none", "shuffled")
    )
    drawn = set()
    for index in ((0, 0), (1, 0), (0, 1)):
        right, wrong = plain[index], shuffled[index]
        assert torch.equal(wrong["frames"], right["frames"])
        assert_shuffled(wrong)
        source = sources(wrong)
        for t in range(4):
            for name in ("positions", "visibility", "inside"):
                assert torch.equal(wrong[name][t], right[name][t][source[t]]), name  # type: ignore[literal-required]
        again = shuffled[index]
        assert torch.equal(sources(again), source)
        drawn.add(tuple(source[1].tolist()))
    assert len(drawn) == 3, "every sample draws its own"


def test_same_shows_the_anchor_frame_in_all_frames_with_its_points_where_they_are(
    snapshot: Snapshot,
) -> None:
    settings = settings_for(snapshot, "same", crop="squash", flip=0.5)
    assert settings.crop_per_frame
    assert settings.colour.per_frame
    plain = ClipDataset([snapshot], settings_for(snapshot, "none", crop="squash", flip=0), seed=3)
    same = ClipDataset([snapshot], settings, seed=3)
    flips = 0
    for clip in range(4):
        moving, sample = plain[0, clip], same[0, clip]
        anchor, queries = moving["frames"][0], moving["positions"][0]
        # Without the control, the picture moves by 3 px of 96 per frame, here by 4 px of 64 in two.
        moved = (moving["positions"][1] - queries).abs()
        torch.testing.assert_close(moved, torch.tensor([[4.0, 2.0]]).expand_as(moved))
        for t in range(4):
            flipped = torch.equal(sample["frames"][t], anchor.flip(-1))
            assert flipped or torch.equal(sample["frames"][t], anchor)
            x, y = sample["positions"][t].unbind(-1)
            expected = 63 - queries[:, 0] if flipped else queries[:, 0]
            torch.testing.assert_close(x, expected)
            torch.testing.assert_close(y, queries[:, 1])
            flips += flipped
        assert track_mask(sample, TrackFilterSettings(confidence=1.0)).all()
    assert 3 <= flips <= 13


def test_copies_of_the_anchor_frame_have_crops_and_colours_of_their_own(snapshot: Snapshot) -> None:
    """Frame 0 is that of training with these settings; `crop_per_frame` need not be set."""
    colour = {"jitter": 1.0, "per_frame": True}
    plain = ClipDataset(
        [snapshot], settings_for(snapshot, "none", colour=colour, crop_per_frame=True), seed=3
    )
    same = ClipDataset([snapshot], settings_for(snapshot, "same", colour={"jitter": 1.0}), seed=3)
    right, sample = plain[0, 0], same[0, 0]
    for name in ("frames", "positions"):
        assert torch.equal(sample[name][0], right[name][0]), name  # type: ignore[literal-required]
    frames = sample["frames"].flatten(1).tolist()
    assert len({tuple(frame) for frame in frames}) == 4


@pytest.mark.parametrize("control", ["same", "shuffled"])
def test_workers_crops_and_a_resumed_loader_make_the_same_samples(
    snapshot: Snapshot, control: str
) -> None:
    settings = settings_for(snapshot, control, colour={"jitter": 1.0}, resize="device")
    dataset = ClipDataset([snapshot], settings, seed=3)
    batches = [
        make_frames(batch, settings)
        for batch, _ in zip(Loader(dataset, dataset.sampler(2), workers=1), range(3), strict=False)
    ]
    resumed = next(iter(Loader(dataset, dataset.sampler(2, start=2), workers=0)))
    resumed = make_frames(resumed, settings)
    assert torch.equal(resumed["frames"], batches[2]["frames"])
    assert torch.equal(resumed["positions"], batches[2]["positions"])
    assert torch.equal(resumed["confidence"], batches[2]["confidence"])
    indexed = dataset.batch(next(iter(dataset.sampler(2, start=2))))
    assert (resumed["frames"].int() - indexed["frames"].int()).abs().max() <= 1
    assert torch.equal(resumed["positions"], indexed["positions"])


def test_streamed_clips_have_controls_too(snapshot: Snapshot) -> None:
    (shuffled,) = (
        sample
        for sample, _ in zip(
            StreamedClips(str(snapshot.out), settings_for(snapshot, "shuffled"), seed=3),
            range(1),
            strict=False,
        )
    )
    assert_shuffled(shuffled)
    fixed = {"anchor": "first", "direction": "forward", "crop": "centre", "flip": 0.0}
    settings = settings_for(snapshot, "same", colour={"grey": 1.0}, **fixed)
    indexed = ClipDataset([snapshot], settings, seed=3)
    expected = {indexed[0, clip]["key"]: indexed[0, clip] for clip in range(4)}
    for sample, _ in zip(StreamedClips(str(snapshot.out), settings, 3), range(4), strict=False):
        for name in ("frames", "positions", "visibility", "confidence"):
            assert torch.equal(sample[name], expected[sample["key"]][name]), name  # type: ignore[literal-required, index]


def test_copies_of_a_posed_anchor_frame_have_its_camera_with_each_crop(tmp_path: Path) -> None:
    scene = static_scene(7, frames=12, anchors=(0, 6), grid=6, turn=30.0, noise=0.0)
    snapshot = publish_clips(tmp_path, [stored_scene(scene, "clip")])
    settings = settings_for(snapshot, "same", cameras=True, flip=0.0)
    sample = ClipDataset([snapshot], settings, seed=3)[0, 0]
    assert bool(sample["posed"])
    for t in range(1, 4):
        assert torch.equal(sample["world_to_camera"][t], sample["world_to_camera"][0])
        # One direction in the world is one point: K^-1 (x, y, 1) is the same in every crop.
        for n in (0, 17, 35):
            rays = [
                torch.linalg.solve(
                    sample["intrinsics"][u], torch.cat([sample["positions"][u, n], torch.ones(1)])
                )
                for u in (0, t)
            ]
            torch.testing.assert_close(*rays)
        assert not torch.equal(sample["intrinsics"][t], sample["intrinsics"][0])


def test_controls_that_clips_or_filters_make_impossible_are_refused(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    few = publish(tmp_path, [panning_clip("few", 0, frames=24, grid=2, anchors=(0,))])
    ClipDataset([few], settings_for(few, "shuffled", frames=4), seed=3)
    with pytest.raises(SettingsError, match=r"'data.frames: 5', since .*, and clips have 4: take"):
        ClipDataset([few], settings_for(few, "shuffled", frames=5), seed=3)
    with pytest.raises(SettingsError, match=r"'data.frames: 5', since .*, and clips have 4: take"):
        next(iter(StreamedClips(str(few.out), settings_for(few, "shuffled", frames=5), 3)))
    with pytest.raises(SettingsError, match=r"'data.control: same' uses none: leave one of"):
        ClipDataset([snapshot], settings_for(snapshot, "same"), seed=3, max_epipolar_px=2.0)
