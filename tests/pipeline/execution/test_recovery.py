"""Builds and repairs find what is damaged, missing or outdated, and lose nothing intact."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.receipt import list_receipts
from manifests.snapshot import Snapshot, list_snapshots, open_snapshot
from manifests.tables import write_table
from pipeline.execution.build import build, execute_plan
from pipeline.execution.lock import build_lock
from pipeline.execution.repair import repair
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.plan import make_plan
from shards.errors import PretrackError
from shards.reader import iterate_shard
from tests.helpers.pictures import TRACKS, settings_for
from tests.pipeline.planning.test_plan import KEPT, damage, plan, says

QUIET = Progress(quiet=True)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_cores")]
FINER = {**TRACKS, "grid": 6}


def frames_of(snapshot: Snapshot) -> dict[str, tuple[bytes, ...]]:
    shards = snapshot.shards["shard"].to_pylist()
    return {
        clip.info.key: clip.jpegs
        for shard in shards
        for clip in iterate_shard(snapshot.shard_path(shard))
    }


def flip(snapshot: Snapshot, video: str) -> str:
    """Flip one bit of a frame of a video's first clip; return the shard."""
    row = next(row for row in snapshot.clips.to_pylist() if row["video_id"] == video)
    path = snapshot.shard_path(row["shard"])
    assert isinstance(path, Path)
    data = bytearray(path.read_bytes())
    data[row["frame_offsets"][4] + row["frame_sizes"][4] // 2] ^= 1
    path.write_bytes(data)
    return str(row["shard"])


def test_a_retrack_does_not_take_over_damaged_frames(root: Path) -> None:
    old = open_snapshot(root / "out")
    expected = frames_of(old)
    flip(old, "b")
    with pytest.raises(
        PretrackError,
        match=r"the frames of pans-train-000001-\w+ are damaged: build without '--stored'",
    ):
        build(settings_for(root, tracks=FINER), QUIET, stored=True)
    new = build(settings_for(root, tracks=FINER), QUIET).snapshot
    assert verify_snapshot(new, QUIET) == []
    assert frames_of(new) == expected, (
        "the damaged clip comes from its source, the others as they are"
    )
    assert set(new.clips["points"].to_pylist()) == {36}


def test_trying_again_never_makes_a_shard_worse(root: Path) -> None:
    """One image was damaged; when it is decoded again, its whole video is missing."""
    shutil.rmtree(root / "out")
    settings = settings_for(root)
    undo = damage(root / "videos" / "b" / "003.jpg")
    first = build(settings, QUIET).snapshot
    assert (first.clips.num_rows, first.failures.num_rows) == (6, 1)
    undo()
    planned = make_plan(settings, make_catalog(settings, QUIET), retry_failed=True)
    (root / "videos" / "b").rename(root / "away")
    with build_lock(root / "out") as lock:
        tried = execute_plan(planned, settings, QUIET, lock).snapshot
    assert frames_of(tried) == frames_of(first)
    assert tried.failures["detail"].to_pylist() == first.failures["detail"].to_pylist()
    (root / "away").rename(root / "videos" / "b")
    better = build(settings, QUIET, retry_failed=True).snapshot
    assert (better.clips.num_rows, better.failures.num_rows) == (6, 0)
    assert {len(frames) for frames in frames_of(better).values()} == {10}


def test_repair_mends_a_table_that_contradicts_its_shard(root: Path) -> None:
    snapshot = open_snapshot(root / "out")
    table, good = snapshot.folder / "clips.parquet", snapshot.clips.sort_by("key")
    splits = pa.array(["eval", *snapshot.clips["split"].to_pylist()[1:]])
    write_table(
        table,
        snapshot.clips.set_column(snapshot.clips.schema.get_field_index("split"), "split", splits),
    )
    spoilt = open_snapshot(root / "out")
    (problem,) = problems = verify_snapshot(spoilt, QUIET)
    assert "its 'split' is 'train', and the tables say 'eval'" in str(problem)
    repaired = repair(spoilt, problems, QUIET).built
    assert (repaired.made, repaired.snapshot.name) == (1, "000002")
    assert verify_snapshot(repaired.snapshot, QUIET) == []
    assert repaired.snapshot.clips.sort_by("key").equals(good)


def test_repair_leaves_other_shards_as_they_are(root: Path) -> None:
    """One of them has a failure that the next build would retry."""
    shutil.rmtree(root / "out")
    settings = settings_for(root)
    undo = damage(root / "videos" / "b" / "003.jpg")
    snapshot = build(settings, QUIET).snapshot
    undo()
    assert says(plan(settings, retry_failed=True)) == {KEPT: 2, "build: 1 failure tried again": 1}
    shard = flip(snapshot, "a")
    repaired = repair(snapshot, verify_snapshot(snapshot, QUIET), QUIET)
    assert (repaired.built.made, repaired.built.kept, repaired.lost) == (1, 2, ())
    assert repaired.built.snapshot.name == snapshot.name
    assert verify_snapshot(snapshot, QUIET) == []
    assert shard in list_receipts(root / "out")


def test_repair_is_of_the_current_snapshot_only(root: Path) -> None:
    old = open_snapshot(root / "out")
    flip(old, "a")
    problems = verify_snapshot(old, QUIET)
    build(settings_for(root, tracks=FINER), QUIET)
    with pytest.raises(PretrackError, match="a newer snapshot than 000001 was published meanwhile"):
        repair(old, problems, QUIET)
    assert list_snapshots(root / "out") == ["000001", "000002"]


def test_going_back_to_an_old_split_finds_the_old_shards(root: Path) -> None:
    settings = settings_for(root)
    build(settings_for(root, split={"eval_fraction": 1.0}), QUIET)
    assert says(plan(settings)) == {KEPT: 3}
    assert build(settings, QUIET).snapshot.clips.equals(open_snapshot(root / "out", "000001").clips)


def test_stored_videos_follow_the_settings(root: Path) -> None:
    shutil.rmtree(root / "videos")
    with pytest.raises(
        PretrackError, match=r"moved to another split\), and '--stored' reads no sources"
    ):
        build(settings_for(root, split={"eval_fraction": 1.0}, tracks=FINER), QUIET, stored=True)


def test_a_failure_that_stays_does_not_keep_frames_from_being_tracked_again(root: Path) -> None:
    shutil.rmtree(root / "out")
    (root / "videos" / "b" / "003.jpg").write_bytes(b"")
    build(settings_for(root), QUIET)
    shutil.rmtree(root / "videos")
    again = build(settings_for(root, tracks=FINER), QUIET, stored=True).snapshot
    assert (
        again.clips.num_rows,
        set(again.clips["points"].to_pylist()),
        again.failures.num_rows,
    ) == (6, {36}, 1)


@pytest.mark.parametrize(
    "file",
    [
        "videos.parquet",
        "clips.parquet",
        "shards.parquet",
        "failures.parquet",
        "settings.json",
        "shards.txt",
    ],
)
def test_damaged_tables_are_restored_from_receipts(root: Path, file: str) -> None:
    snapshot = open_snapshot(root / "out")
    clips = snapshot.clips
    (root / "out" / "snapshots" / "000001" / file).write_bytes(b"not what it was")
    (problem,) = verify_snapshot(open_snapshot(root / "out"), QUIET)
    assert "remove" in str(problem)
    with pytest.raises(PretrackError, match="restores them from the receipts"):
        repair(open_snapshot(root / "out"), [problem], QUIET)
    shutil.rmtree(root / "out" / "snapshots" / "000001")
    (root / "out" / "current.json").unlink()
    built = build(settings_for(root), QUIET)
    assert (built.made, built.kept) == (0, 3)
    assert built.snapshot.clips.equals(clips)
    assert verify_snapshot(built.snapshot, QUIET) == []


def test_an_old_snapshot_that_is_damaged_is_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(settings_for(root, tracks=FINER), QUIET)
    shutil.rmtree(root / "videos" / "c")
    build(settings_for(root, tracks=FINER), QUIET)
    for name in ("000001", "000002"):
        (root / "out" / "snapshots" / name / "clips.parquet").write_bytes(b"not what it was")
    assert says(plan(settings_for(root, tracks=FINER))) == {KEPT: 3}
    assert "left out" in caplog.text
