"""Scoring stored tracks: notes on poses, and shards that were made without scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from manifests.snapshot import Snapshot, open_snapshot
from manifests.tables import CLIPS, SHARDS, read_table, without_added, write_table
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.execution.shard_scoring import score_stored
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import read_state
from pipeline.planning.catalog import make_catalog
from pipeline.planning.plan import Plan, make_plan
from pipeline.scenes.scene import make_scene
from pipeline.scenes.scene_id import SceneId
from pipeline.scenes.truth import cast
from pipeline.trackers.ground_truth import GroundTruthSettings
from shards.codec import encode_tracks
from shards.geometry import grid_points
from shards.reader import iterate_shard, read_members
from shards.score_codec import decode_scores
from shards.track_scores import score_clip
from tests.helpers.clips import make_clip
from tests.helpers.pictures import TRACKS, settings_for, write_images
from tests.helpers.static_scene import StaticScene, static_scene, with_drift, with_wrong_poses

QUIET = Progress(quiet=True)


def notes_on(scene: StaticScene) -> list[tuple[str, str]]:
    """Score a scene as it would be stored; its frames have the numbers 3, 4, 5, …"""
    stored = score_stored(scene.info, encode_tracks(scene.tracks))
    assert all((note.stage, note.clip) == ("score", "") for note in stored.notes)
    return [(note.reason, note.detail) for note in stored.notes]


def test_notes_name_the_frames_with_wrong_poses_by_their_numbers_in_the_source() -> None:
    scene = static_scene()
    assert notes_on(scene) == []
    assert notes_on(with_drift(scene)) == []
    ((reason, detail),) = notes_on(with_wrong_poses(scene, (5, 30)))
    assert reason == "poses wrong"
    assert detail.startswith("clip made-scene-000000: the poses of frames 8, 33 do not fit")


def test_notes_name_frames_whose_poses_are_unusable() -> None:
    scene = static_scene()
    cameras = list(scene.info.cameras or ())
    assert cameras[7]
    cameras[7] = replace(cameras[7], fy=-1.0)
    info = replace(scene.info, cameras=tuple(cameras))
    ((reason, detail),) = notes_on(replace(scene, info=info))
    assert reason == "poses unusable"
    assert "the poses of frame 10 are not finite, out of range, singular or mirrored" in detail


def test_a_note_says_that_most_poses_disagree_with_the_tracks() -> None:
    scene = static_scene(turn=60.0)
    cameras = scene.info.cameras or ()
    info = replace(scene.info, cameras=(*cameras[20:], *cameras[:20]))
    reasons = [reason for reason, _ in notes_on(replace(scene, info=info))]
    assert "poses and tracks disagree" in reasons


def test_exact_cameras_are_not_doubted_where_many_points_move() -> None:
    scene_id = SceneId(split="train", seed=0, number=9, motion="moving")
    scene, queries = make_scene(scene_id), grid_points(16, 128, 128)
    info = replace(
        make_clip("scenes-000000", frames=16).info,
        dataset="scenes",
        video_id=str(scene_id),
        width=128,
        source_width=128,
        height=128,
        source_height=128,
        frame_numbers=tuple(range(16)),
        cameras=scene.cameras,
    )
    tracker = GroundTruthSettings(tracker="truth").load()
    (tracks,) = tracker.track([], [info], (0, 15), queries)
    estimated, truth = replace(info, dataset="co3d"), tracks.positions.astype(np.float64)
    ((reason, detail),) = notes_on(StaticScene(estimated, truth, tracks))
    assert reason == "poses wrong"
    assert "the poses of frames 0, 15 do not fit" in detail
    assert score_clip(tracks, estimated).wrong == (0, 15)
    assert not np.isfinite(score_clip(tracks, estimated).tracks.epipolar).any()

    assert notes_on(StaticScene(info, truth, tracks)) == []
    scored = score_clip(tracks, info)
    assert scored.wrong == ()
    seen = (tracks.visibility > 0).sum(axis=1) > 1  # in other frames than the anchor
    assert (np.isfinite(scored.tracks.epipolar) == seen).all()
    # Points that stay in the world stay on their lines; most of the others leave them.
    moving = np.stack([cast(scene, anchor, queries)[0].moving(scene) for anchor in (0, 15)])
    assert scored.tracks.epipolar[seen & ~moving].max() < 0.01
    assert np.median(scored.tracks.epipolar[seen & moving]) > 2

    static = static_scene(turn=60.0)
    cameras = static.info.cameras or ()
    for dataset, noted in (("co3d", True), ("scenes", False), ("synthetic", False)):
        clip = replace(static.info, dataset=dataset, cameras=cameras[20:] + cameras[:20])
        reasons = [reason for reason, _ in notes_on(replace(static, info=clip))]
        assert ("poses and tracks disagree" in reasons) == noted


def as_an_earlier_version_wrote_it(snapshot: Snapshot) -> None:
    """Remove the columns of scores from the tables, and the receipts, which repeat them."""
    for name, schema in (("clips", CLIPS), ("shards", SHARDS)):
        path = snapshot.folder / f"{name}.parquet"
        write_table(path, read_table(path, without_added(schema.names)))
    assert isinstance(snapshot.out, Path)
    for receipt in (snapshot.out / ".receipts").glob("*.json"):
        fields = json.loads(receipt.read_text())
        for row, schema in ((fields["shard"], SHARDS), *((c, CLIPS) for c in fields["clips"])):
            for column in set(schema.names) - set(without_added(schema.names)):
                del row[column]
        receipt.write_text(json.dumps(fields))


def plan_of(settings: BuildSettings) -> Plan:
    return make_plan(settings, make_catalog(settings, QUIET))


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_a_snapshot_without_scores_gets_them_without_tracking_again(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        write_images(tmp_path / "videos" / name, seed, 10)
    tracks = TRACKS | {"anchors": [0, 5]}
    plain = settings_for(tmp_path, scores=False, tracks=tracks, out=str(tmp_path / "late"))
    scored = settings_for(tmp_path, tracks=tracks, out=str(tmp_path / "late"))
    before = build(plain, QUIET).snapshot
    as_an_earlier_version_wrote_it(before)

    # Without the setting, nothing is done; with it, all shards are scored and none is built.
    assert {shard.action for shard in plan_of(plain).shards} == {"keep"}
    planned = plan_of(scored).shards
    assert {(shard.action, shard.reason) for shard in planned} == {
        ("score", "tracks not scored yet")
    }
    after = build(scored, QUIET).snapshot
    state = read_state(after.out)
    assert state
    assert (state.state, state.clips_done, state.clips_total) == ("finished", 3, 3)
    assert (state.shards_done, state.stage_seconds) == (len(planned), {})
    assert {shard.action for shard in plan_of(scored).shards} == {"keep"}
    assert build(scored, QUIET).snapshot.name == after.name
    assert verify_snapshot(after, QUIET) == []
    assert (
        "tracker ready"
        not in (tmp_path / "late" / "build.log")
        .read_text()
        .split(f"snapshot {before.name} is published")[-1]
    )

    # Descriptions, tracks and frames are the same bytes; the members are where the tables say.
    old, new = open_snapshot(before.out, before.name), open_snapshot(after.out)
    same = ["key", "checksum", "tracks_size", "motion", "visible_fraction", "frame_sizes"]
    assert old.clips.select(same).equals(new.clips.select(same))
    assert old.clips["cycle_px"].null_count == len(old.clips)
    for row in new.clips.to_pylist():
        path = new.shard_path(row["shard"])
        (data,) = read_members(path, [row["scores_offset"]], [row["scores_size"]])
        scores = decode_scores(data, (2, 16))
        assert row["posed"] is False
        assert row["epipolar_px"] is None
        assert 0 < row["cycle_px"] < 1
        assert 0 < scores.cycle[scores.cycle > 0].min() < 1
        assert [clip.info.key for clip in iterate_shard(path)].count(row["key"]) == 1

    # A build that scores at once gives the same shards, byte for byte.
    at_once = build(settings_for(tmp_path, tracks=tracks), QUIET).snapshot
    assert at_once.shards["shard"].to_pylist() == new.shards["shard"].to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_a_damaged_shard_is_built_instead_of_scored(tmp_path: Path) -> None:
    write_images(tmp_path / "videos" / "a", 0, 10)
    before = build(settings_for(tmp_path, scores=False), QUIET).snapshot
    (shard,) = before.shards["shard"].to_pylist()
    path = before.shard_path(shard)
    assert isinstance(path, Path)
    data = bytearray(path.read_bytes())
    offset = before.clips["frame_offsets"].to_pylist()[0][3]
    data[offset + 100] ^= 255
    path.write_bytes(data)
    after = build(settings_for(tmp_path), QUIET).snapshot
    assert verify_snapshot(after, QUIET) == []
    assert pc.all(pc.is_valid(after.clips["scores_size"])).as_py()
    assert after.shards["scores"].to_pylist() == [1]
    assert isinstance(after.clips, pa.Table)
