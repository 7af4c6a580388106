"""Training on clips and tracks chosen by their geometric scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.snapshot import Snapshot
from manifests.tables import CLIPS, read_table, without_added, write_table
from shards.errors import PretrackError
from shards.track_scores import score_clip
from tests.helpers.published import publish_clips
from tests.helpers.static_scene import StaticScene, static_scene, stored_scene, with_drift
from trainer.data.batch import track_mask
from trainer.data.clip_filter import parse_filter
from trainer.data.clip_selection import choose_clips
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.data.streaming import StreamedClips

FRAMES, ANCHORS = 24, (0, 12)


def scene_of(seed: int, turn: float) -> StaticScene:
    return static_scene(seed, frames=FRAMES, anchors=ANCHORS, grid=8, turn=turn)


def without_cameras(scene: StaticScene) -> StaticScene:
    return replace(scene, info=replace(scene.info, cameras=None))


def snapshot_of(out: Path, **scenes: StaticScene) -> Snapshot:
    """Publish scenes as scored clips, by their keys."""
    return publish_clips(out, [stored_scene(s, key) for key, s in scenes.items()], scored=True)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Four clips: right, with much drift, with little turn, and without cameras."""
    return snapshot_of(
        tmp_path_factory.mktemp("scored"),
        right=scene_of(0, 30.0),
        drifting=with_drift(scene_of(1, 30.0), part=0.9),
        narrow=scene_of(2, 10.0),
        unposed=without_cameras(scene_of(3, 30.0)),
    )


def settings_for(snapshot: Snapshot, **changes: Any) -> DataSettings:
    values = {"out": str(snapshot.out), "frames": 3, "step": 5, "size": 64, "flip": 0.0}
    return DataSettings.model_validate(values | changes)


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("epipolar_inliers > 0.9 and turn > 20", ["right"]),
        ("turn > 20", ["right", "drifting"]),
        ("posed", ["right", "drifting", "narrow"]),
        ("not posed", ["unposed"]),
        ("posed and not (turn > 20)", ["narrow"]),
        # a clip without a score fits neither a comparison nor its opposite
        ("epipolar_px > 1 or epipolar_px <= 1", ["right", "drifting", "narrow"]),
        ("not epipolar_px > 1000", ["right", "drifting", "narrow"]),
    ],
)
def test_clips_are_chosen_by_their_scores(snapshot: Snapshot, where: str, keys: list[str]) -> None:
    chosen = choose_clips([snapshot], settings_for(snapshot, where=where))
    assert chosen.table["key"].to_pylist() == keys


def test_a_column_of_numbers_is_no_condition() -> None:
    with pytest.raises(PretrackError, match="'turn' is not a condition: compare it with a value"):
        parse_filter("posed and turn")


def test_tracks_that_leave_their_epipolar_lines_do_not_count(tmp_path: Path) -> None:
    scene = with_drift(scene_of(4, 30.0), part=0.5)
    snapshot = snapshot_of(tmp_path, clip=scene)
    settings = settings_for(snapshot, anchor="first", direction="forward")
    scores = score_clip(scene.tracks, scene.info).tracks.epipolar[0]
    # The stored codes are within 2.2 %: no score may lie at the limit.
    limit = 2.0
    assert np.abs(scores / limit - 1).min() > 0.022
    bad = torch.from_numpy(scores > limit)
    assert 10 < bad.sum() < 54

    rules = TrackFilterSettings(visibility=0.5, confidence=0.0, max_epipolar_px=limit)
    plain = ClipDataset([snapshot], settings, seed=1)[0, 0]
    filtered = ClipDataset([snapshot], settings, seed=1, max_epipolar_px=limit)[0, 0]
    torch.testing.assert_close(filtered["positions"], plain["positions"], rtol=0, atol=0)
    torch.testing.assert_close(filtered["frames"], plain["frames"], rtol=0, atol=0)
    before, after = track_mask(plain, rules), track_mask(filtered, rules)
    assert before[1:, bad].any()
    assert not after[1:, bad].any()
    torch.testing.assert_close(after[:, ~bad], before[:, ~bad])


@pytest.mark.parametrize("scored", [True, False])
def test_streamed_tracks_that_leave_their_epipolar_lines_do_not_count(
    tmp_path: Path, scored: bool
) -> None:
    """Tracks of a tar without scores are scored when they are read."""
    scene = with_drift(scene_of(4, 30.0), part=0.5)
    snapshot = publish_clips(tmp_path, [stored_scene(scene, "clip")], scored=scored)
    settings = settings_for(snapshot, anchor="first", direction="forward")
    bad = torch.from_numpy(score_clip(scene.tracks, scene.info).tracks.epipolar[0] > 2.0)
    tars = str(snapshot.out)
    plain = next(iter(StreamedClips(tars, settings, seed=1)))
    filtered = next(iter(StreamedClips(tars, settings, seed=1, max_epipolar_px=2.0)))
    torch.testing.assert_close(filtered["frames"], plain["frames"], rtol=0, atol=0)
    assert (plain["visibility"][1:, bad] > 0).any()
    assert not (filtered["visibility"][1:, bad] > 0).any()
    torch.testing.assert_close(filtered["visibility"][:, ~bad], plain["visibility"][:, ~bad])


def test_tracks_count_less_the_farther_they_leave_their_epipolar_lines(tmp_path: Path) -> None:
    """Half at the given score, a fifth at twice that, all without a score; in clips and streams."""
    drifting = with_drift(scene_of(4, 30.0), part=0.5)
    snapshot = snapshot_of(tmp_path, clip=drifting, unposed=without_cameras(scene_of(5, 30.0)))
    settings = settings_for(snapshot, anchor="first", direction="forward", resize="device")
    scores = score_clip(drifting.tracks, drifting.info).tracks.epipolar[0]
    dataset = ClipDataset([snapshot], settings, seed=1, epipolar_weight_px=2.0)
    batch = next(iter(Loader(dataset, dataset.sampler(2), workers=1)))
    assert batch["track_weights"].shape == (2, 64)
    weights = dict(zip(batch["key"], batch["track_weights"], strict=True))
    assert (weights["unposed"] == 1).all()
    # The stored codes are within 2.2 %.
    np.testing.assert_allclose(weights["clip"], 1 / (1 + (scores / 2) ** 2), rtol=0.05)
    assert weights["clip"].min() < 0.2 < 0.5 < weights["clip"].max()
    plain = ClipDataset([snapshot], settings, seed=1)[0, 0]
    torch.testing.assert_close(dataset[0, 0]["visibility"], plain["visibility"])
    assert "track_weights" not in plain

    read_on = settings.model_copy(update={"resize": "worker"})
    tars = StreamedClips(str(snapshot.out), read_on, seed=1, epipolar_weight_px=2.0)
    streamed = {
        sample["key"]: sample["track_weights"] for sample, _ in zip(tars, range(2), strict=False)
    }
    torch.testing.assert_close(streamed["clip"], weights["clip"], rtol=0.05, atol=0)


def test_tracks_without_a_score_are_kept(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path, clip=without_cameras(scene_of(5, 30.0)))
    settings = settings_for(snapshot)
    plain = ClipDataset([snapshot], settings, seed=1)[0, 0]
    filtered = ClipDataset([snapshot], settings, seed=1, max_epipolar_px=0.01)[0, 0]
    torch.testing.assert_close(filtered["visibility"], plain["visibility"])


def test_a_snapshot_without_scores_cannot_be_filtered_by_them(tmp_path: Path) -> None:
    snapshot = publish_clips(tmp_path, [stored_scene(scene_of(6, 30.0), "clip")])
    path = snapshot.folder / "clips.parquet"
    write_table(path, read_table(path, without_added(CLIPS.names)))
    earlier = Snapshot(snapshot.out, snapshot.name)
    assert len(ClipDataset([earlier], settings_for(earlier), seed=1)[0, 0]["positions"]) == 3
    with pytest.raises(PretrackError, match=r"needs scores of tracks.*run 'pretrack build' again"):
        ClipDataset([earlier], settings_for(earlier), seed=1, max_epipolar_px=2.0)
    with pytest.raises(PretrackError, match=r"'tracks.epipolar_weight_px' needs scores of tracks"):
        ClipDataset([earlier], settings_for(earlier), seed=1, epipolar_weight_px=2.0)
    with pytest.raises(PretrackError, match=r"no clip in .* fits"):
        choose_clips([earlier], settings_for(earlier, where="turn > 1"))
