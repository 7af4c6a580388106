"""Frames chosen by the angle between optical axes: on an arc of about five degrees per frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from manifests.snapshot import Snapshot
from shards.epipolar import read_poses
from shards.errors import PretrackError, ShardError
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import StaticScene, arc, static_scene, stored_scene
from trainer.data.clip_selection import choose_clips
from trainer.data.dataset import ClipDataset
from trainer.data.frames_by_angle import choose_frames_by_angle
from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips

FRAMES = 11


def settings(**changes: Any) -> DataSettings:
    values = {"out": "x", "frames": 3, "frames_by": "angle", "angle": (9, 26), "size": 64}
    return DataSettings.model_validate(values | changes)


def drawn(
    anchors: list[int], changes: dict[str, Any], *, tracked: Any = "both", without: int = -1
) -> set[int]:
    """Return all frames that 200 samples show beside their anchor frames."""
    cameras = [None if t == without else camera for t, camera in enumerate(arc(FRAMES, 50.0))]
    poses = read_poses(cameras, FRAMES)
    shown = set()
    for seed in range(200):
        random = np.random.default_rng(seed)
        index, numbers = choose_frames_by_angle(
            poses, anchors, settings(**changes), random, tracked=tracked
        )
        assert numbers[0] == anchors[index]
        assert len(set(numbers)) == len(numbers), "no frame twice"
        apart = [abs(number - numbers[0]) for number in numbers]
        assert apart == sorted(apart), "in the order of their angles"
        shown |= set(numbers[1:])
    return shown


@pytest.mark.parametrize(
    ("anchors", "changes", "expected"),
    [
        # two to five frames from the anchor
        ([0], {}, {2, 3, 4, 5}),
        ([5], {}, {0, 1, 2, 3, 7, 8, 9, 10}),
        ([5], {"direction": "forward"}, {7, 8, 9, 10}),
        ([0, 9], {}, {2, 3, 4, 5, 6, 7}),
        ([0, 9], {"anchor": "first"}, {2, 3, 4, 5}),
        # frame 9 has one later frame, which is out of bounds: only frame 0 has enough
        ([0, 9], {"direction": "forward"}, {2, 3, 4, 5}),
        # too few within the bounds: frame 10, and frame 9 as the nearest to it
        ([0], {"angle": (49, 90)}, {10, 9}),
        # none within: the nearest
        ([0], {"angle": (70, 90)}, {10, 9}),
        ([0], {"angle": (1, 2)}, {1, 2}),
    ],
)
def test_frames_are_within_the_bounds_or_nearest_to_them(
    anchors: list[int], changes: dict[str, Any], expected: set[int]
) -> None:
    assert drawn(anchors, changes) == expected


def test_frames_without_tracks_or_poses_are_not_taken() -> None:
    assert drawn([5], {}, tracked="backward") == {0, 1, 2, 3}
    assert drawn([5], {}, tracked="forward") == {7, 8, 9, 10}
    assert drawn([0], {}, without=3) == {2, 4, 5}
    with pytest.raises(ShardError, match="has 2 tracked frames with poses"):
        drawn([0], {}, without=0)


def test_all_copies_of_a_control_show_the_anchor_frame() -> None:
    poses = read_poses(arc(FRAMES, 50.0), FRAMES)
    random = np.random.default_rng(0)
    chosen = choose_frames_by_angle(poses, [5], settings(control="same"), random)
    assert chosen == (0, [5, 5, 5])


def scene(turn: float) -> StaticScene:
    return static_scene(0, frames=FRAMES, anchors=(0, 5), grid=4, turn=turn, noise=0.0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Clips that turn by 50 and by 8 degrees, and one without poses."""
    unposed = scene(50.0)
    clips = {
        "turning": scene(50.0),
        "narrow": scene(8.0),
        "unposed": replace(unposed, info=replace(unposed.info, cameras=None)),
    }
    out = tmp_path_factory.mktemp("angles")
    return publish_clips(out, [stored_scene(s, key) for key, s in clips.items()], scored=True)


def test_clips_that_turn_too_little_are_left_out(
    snapshot: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out = str(snapshot.out)
    chosen = choose_clips([snapshot], settings(out=out, angle=(12, 26)))
    assert chosen.table["key"].to_pylist() == ["turning"]
    assert (
        "2 clips left out: without poses and scores, or turning less than 12 degrees" in caplog.text
    )
    with pytest.raises(PretrackError, match=r"and scored poses that turn by 60 degrees or more"):
        choose_clips([snapshot], settings(out=out, angle=(60, 90)))


@pytest.mark.parametrize("cameras", [False, True])
def test_samples_have_tracks_and_cameras_of_the_frames_that_are_chosen(
    snapshot: Snapshot, cameras: bool
) -> None:
    s = settings(out=str(snapshot.out), crop="squash", flip=0.0, cameras=cameras, angle=(12, 26))
    # Positions of the stored tracks in pixels of the sample: [A, T, N, 2].
    stored = (scene(50.0).truth + 0.5) * np.array([64 / 320, 64 / 256]) - 0.5
    axes = [np.reshape(camera.world_to_camera, (3, 4))[2, :3] for camera in arc(FRAMES, 50.0)]
    streamed = next(iter(StreamedClips(str(snapshot.out), s, seed=1, buffer=1)))
    for sample in (*(ClipDataset([snapshot], s, seed=1)[n, 0] for n in range(3)), streamed):
        assert sample["key"] == "turning"
        gaps = np.abs(stored[:, :, None] - sample["positions"].numpy()).max(axis=(3, 4))
        of_anchor = gaps[gaps.min(axis=1).max(axis=1).argmin()]  # [T, frames of the sample]
        assert of_anchor.min(axis=0).max() < 0.05
        first, *others = of_anchor.argmin(axis=0)
        angles = np.degrees(np.arccos([axes[first] @ axes[other] for other in others]))
        assert ((angles > 12) & (angles < 26)).all()
        if cameras:
            turned = sample["world_to_camera"][:, 2, :3] @ sample["world_to_camera"][0, 2, :3]
            shown = torch.rad2deg(torch.arccos(turned[1:])).numpy()
            np.testing.assert_allclose(shown, angles, atol=0.01)
