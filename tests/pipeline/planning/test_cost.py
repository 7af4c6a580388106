"""The estimate of a plan, worked out by hand for shards of round numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.fingerprint import canonical_json
from manifests.rows import ShardRow
from manifests.tables import FAILURES, VIDEOS
from pipeline.monitoring.status import BuildState, StateFile
from pipeline.planning.catalog import Catalog
from pipeline.planning.clip_windows import PLANNED_CLIPS
from pipeline.planning.cost import Cost, Estimate, _points_per_clip, estimate
from pipeline.planning.existing_shards import ExistingShard, ExistingShards
from pipeline.planning.plan import Action, Plan, PlannedShard


def tracks_settings(grid: int, anchors: int, tracker: str = "lucas_kanade") -> str:
    return canonical_json({"tracker": tracker, "grid": grid, "anchors": list(range(anchors))})


def existing_shard(
    name: str,
    *,
    current: bool,
    size: int,
    seconds: tuple[float, float, float],
    tracks: str,
    frames: str = "frames",
    frames_settings: str = "{}",
) -> ExistingShard:
    """A shard of ten clips. `seconds` are those of decode, track and write."""
    decode_seconds, track_seconds, write_seconds = seconds
    row = ShardRow(
        shard=name,
        group="pans-train-000000",
        source="pans",
        split="train",
        clips=10,
        bytes=size,
        checksum="0",
        frames_fingerprint=frames,
        tracks_fingerprint=name,
        frames_settings=frames_settings,
        tracks_settings=tracks,
        decode_seconds=decode_seconds,
        track_seconds=track_seconds,
        write_seconds=write_seconds,
        tries=1,
    )
    return ExistingShard(
        row,
        snapshot="000001",
        current=current,
        whole=True,
        failures=0,
        transient=0,
        holds_all_frames=True,
    )


def planned_shard(
    action: Action, *, clips: int, tracks: str, shard: str = "", previous: str = "", reason: str
) -> PlannedShard:
    return PlannedShard(
        shard=shard,
        group="pans-train-000000",
        source="pans" if reason != "new" else "unknown",
        split="train",
        action=action,
        reason=reason,
        first=0,
        count=clips,
        frames_fingerprint="frames",
        tracks_fingerprint="tracks",
        frames_settings="{}",
        tracks_settings=tracks,
        previous=previous,
        reuse="",
        tries=1,
    )


DECODED = existing_shard(
    "decoded",
    current=True,
    size=1000,
    seconds=(20.0, 40.0, 5.0),
    tracks=tracks_settings(4, 1),  # 16 points
)
RETRACKED = existing_shard(
    "retracked",
    current=False,
    size=3000,
    seconds=(2.0, 80.0, 7.0),
    tracks=tracks_settings(4, 2),  # 32 points
)


def plan_of(out: Path, *shards: PlannedShard, existing_shards: Sequence[ExistingShard]) -> Plan:
    """A plan of these shards."""
    existing = ExistingShards(
        out=out,
        current=None,
        shards=tuple(existing_shards),
        failures=FAILURES.empty_table(),
        planned={},
    )
    return Plan(
        catalog=Catalog(VIDEOS.empty_table(), FAILURES.empty_table(), 0),
        clips=PLANNED_CLIPS.empty_table(),
        shards=shards,
        failures=FAILURES.empty_table(),
        dropped=0,
        missing=(),
        existing=existing,
        stored=False,
    )


def estimated(
    out: Path,
    *shards: PlannedShard,
    existing_shards: Sequence[ExistingShard] = (DECODED, RETRACKED),
) -> Estimate:
    return estimate(plan_of(out, *shards, existing_shards=existing_shards))


KEEP = planned_shard("keep", clips=10, tracks="{}", shard="decoded", reason="nothing changed")
BUILD = planned_shard("build", clips=4, tracks=tracks_settings(2, 1), reason="1 video added")
RETRACK = planned_shard(
    "retrack", clips=10, tracks=tracks_settings(4, 1), previous="retracked", reason="tracks.grid"
)


def write_state(out: Path, stage_seconds: dict[str, float], wall_seconds: float) -> None:
    """Write the state of a build that took `wall_seconds`."""
    StateFile(out, BuildState.started(1, 1, 0.0)).end("finished")
    fields = json.loads((out / "build.json").read_text())
    times = {"began": 1000.0, "updated": 1000.0 + wall_seconds, "stage_seconds": stage_seconds}
    (out / "build.json").write_text(json.dumps(fields | times))


def test_work_is_estimated_per_clip_and_point(tmp_path: Path) -> None:
    build, keep, retrack = estimated(tmp_path, RETRACK, KEEP, BUILD).lines
    assert keep == Cost("keep", "nothing changed", 1, 10, 1000, 0.0)
    # 100 bytes per clip; 2 s to decode it, (40 + 80) s / (160 + 320) points = 0.25 s for each of
    # its 4 points, and 0.5 s to write it: 4 x 3.5 s.
    assert build == Cost("build", "1 video added", 1, 4, 400, 14.0)
    # As many bytes as before; 0.2 s to load a clip, 0.25 s x 16 points, 0.5 s: 10 x 4.7 s.
    assert retrack == Cost("retrack", "tracks.grid", 1, 10, 3000, 47.0)


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"tracker": "lucas_kanade"}, 64),
        ({"tracker": "lucas_kanade", "directions": "forward"}, 32),
        ({"tracker": "tapir", "mode": "causal", "directions": "forward"}, 32),
        ({"tracker": "tapir", "mode": "offline", "directions": "forward"}, 64),
    ],
)
def test_a_direction_that_is_left_out_saves_half_unless_one_pass_tracks_both(
    settings: dict[str, str], points: float
) -> None:
    text = canonical_json({**settings, "grid": 4, "anchors": [0, 1, 2, 3]})
    assert _points_per_clip(text) == (settings["tracker"], points)


def test_of_shards_with_the_same_frames_the_slowest_was_decoded(tmp_path: Path) -> None:
    others = [
        existing_shard(
            name,
            current=False,
            size=1000,
            seconds=(decode_seconds, 0.0, 0.0),
            tracks=tracks_settings(4, 1),
            frames="other frames",
        )
        for name, decode_seconds in (("loaded", 6.0), ("slowest", 40.0))
    ]
    shards = (DECODED, RETRACKED, *others)
    build, retrack = estimated(tmp_path, BUILD, RETRACK, existing_shards=shards).lines
    # Decoding 20 + 40 s for 20 clips, loading 2 + 6 s for 20; tracking 120 s / 800 points.
    assert build.seconds == pytest.approx(4 * (3.0 + 0.15 * 4 + 0.5))
    assert retrack.seconds == pytest.approx(10 * (0.4 + 0.15 * 16 + 0.5))


def test_decoding_on_a_gpu_is_estimated_from_shards_that_a_gpu_decoded(tmp_path: Path) -> None:
    on_gpu = canonical_json({"device": "cuda"})
    build = replace(BUILD, frames_settings=on_gpu)
    assert estimated(tmp_path, build).total.seconds is None
    decoded = existing_shard(
        "on-gpu",
        current=True,
        size=1000,
        seconds=(3.0, 0.0, 5.0),
        tracks=tracks_settings(4, 1),
        frames="frames of a GPU",
        frames_settings=on_gpu,
    )
    shards = (DECODED, RETRACKED, decoded)
    # 0.3 s to decode a clip instead of 2 s; tracking 120 s / 640 points.
    for shard, decode_seconds in ((build, 0.3), (BUILD, 2.0)):
        seconds = estimated(tmp_path, shard, existing_shards=shards).total.seconds
        assert seconds == pytest.approx(4 * (decode_seconds + 120 / 640 * 4 + 0.5))


def test_a_source_that_never_loaded_stored_frames_counts_no_time_for_it(tmp_path: Path) -> None:
    retrack = planned_shard(
        "retrack", clips=10, tracks=tracks_settings(4, 1), previous="decoded", reason="finer"
    )
    costs = estimated(tmp_path, retrack, existing_shards=[DECODED])
    assert costs.total.seconds == pytest.approx(10 * (0.25 * 16 + 0.5))


def test_the_total_leaves_kept_shards_out(tmp_path: Path) -> None:
    total = estimated(tmp_path, RETRACK, KEEP, BUILD, BUILD).total
    assert total == Cost(None, "", 3, 18, 3800, 75.0)


def test_what_no_shard_tells_is_unknown(tmp_path: Path) -> None:
    untimed = planned_shard(
        "retrack", clips=10, tracks=tracks_settings(4, 1, "truth"), previous="decoded", reason="new"
    )
    elsewhere = planned_shard("build", clips=3, tracks=tracks_settings(2, 1), reason="new")
    assert estimated(tmp_path, elsewhere).total == Cost(None, "", 1, 3, None, None)
    assert estimated(tmp_path, BUILD, elsewhere).total == Cost(None, "", 2, 7, None, None)
    assert estimated(tmp_path, untimed).wall_seconds is None


def test_wall_time_is_work_shared_as_in_the_latest_build(tmp_path: Path) -> None:
    # 30 + 60 + 10 s of work in 40 s: 2.5 s of work per second.
    write_state(tmp_path, {"decode": 30.0, "track": 60.0, "write": 10.0}, 40.0)
    costs = estimated(tmp_path, BUILD, RETRACK)
    assert costs.parallel == pytest.approx(2.5)
    assert costs.wall_seconds == pytest.approx(61.0 / 2.5)


def test_a_build_that_mostly_waited_does_not_slow_the_estimate_down(tmp_path: Path) -> None:
    write_state(tmp_path, {"decode": 10.0}, 40.0)
    assert estimated(tmp_path, BUILD).parallel == 1.0


def test_without_an_earlier_build_the_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert estimated(tmp_path, BUILD).parallel == 7.0
    assert estimated(tmp_path, BUILD).wall_seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("stage_seconds", "wall_seconds"), [({}, 40.0), ({"decode": 0.0}, 40.0), ({"decode": 5.0}, 0.0)]
)
def test_after_a_build_that_did_nothing_the_cores_count(
    stage_seconds: dict[str, float],
    wall_seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    write_state(tmp_path, stage_seconds, wall_seconds)
    assert estimated(tmp_path, BUILD).parallel == 7.0


def test_after_a_build_whose_state_is_damaged_the_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    (tmp_path / "build.json").write_text("{")
    assert estimated(tmp_path, BUILD).parallel == 7.0
