"""`pretrack plan` says what a build changes and why; `pretrack diff` says what has changed.

On folders of images and their real shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.diff import compare
from manifests.fingerprint import canonical_json
from manifests.rows import VideoRow
from manifests.snapshot import Snapshot
from manifests.tables import read_table, write_table
from pipeline.config import BuildSettings
from pipeline.execution.build import build
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.shard_runner import make_shards
from pipeline.execution.shard_task import shard_task
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.cost import estimate
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.reasons import describe_settings_change
from shards.files import Location
from tests.helpers.pictures import FRAMES, TRACKS, settings_for, write_images

QUIET = Progress(quiet=True)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_cores")]


def plan(settings: BuildSettings, retry_failed: bool = False) -> Plan:
    return make_plan(settings, make_catalog(settings, QUIET, retry_failed), retry_failed)


def says(planned: Plan) -> Counter[str]:
    """Count the shards per action and reason."""
    return Counter(f"{shard.action}: {shard.reason}" for shard in planned.shards)


def nothing(root: Path) -> None: ...


def add_one(root: Path) -> None:
    write_images(root / "videos" / "aa", 7, 10)


def add_two(root: Path) -> None:
    add_one(root)
    write_images(root / "videos" / "e", 8, 10)


def remove_one(root: Path) -> None:
    shutil.rmtree(root / "videos" / "c")


def replace_one(root: Path) -> None:
    shutil.rmtree(root / "videos" / "b")
    write_images(root / "videos" / "b", 9, 20)


def lengthen_one(root: Path) -> None:
    shutil.rmtree(root / "videos" / "b")
    write_images(root / "videos" / "b", 9, 30)


def shorten_one(root: Path) -> None:
    for number in range(6, 10):
        (root / "videos" / "d" / f"{number:03d}.jpg").unlink()


def lose_a_tar(root: Path) -> None:
    next((root / "out" / "shards").glob("pans-train-000001-*")).unlink()


KEPT = "keep: nothing changed"
GRID = "tracks.grid 4 → 6"
TRUTH = "tracks.tracker lucas_kanade → truth"
REPLACED = "1 video replaced"
MOVED = "1 video moved to another split"
MOVED_2 = "2 videos moved to another split"


def tracks(**changes: object) -> dict[str, object]:
    """Settings that change how frames are tracked."""
    return {"tracks": {**TRACKS, **changes}}


def frames(**changes: object) -> dict[str, object]:
    """Settings that change which frames are stored."""
    return {"frames": {**FRAMES, **changes}}


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        (nothing, {}, {KEPT: 3}),
        (nothing, tracks(grid=6), {f"retrack: {GRID}": 3}),
        (nothing, tracks(tracker="truth"), {f"retrack: {TRUTH}": 3}),
        (nothing, tracks(anchors=[0, 5]), {"retrack: tracks.anchors [0] → [0, 5]": 3}),
        (nothing, tracks(directions="both"), {KEPT: 3}),
        (nothing, tracks(directions="forward"), {"retrack: tracks.directions both → forward": 3}),
        (nothing, frames(jpeg_quality=70), {"build: frames.jpeg_quality 90 → 70": 3}),
        (nothing, frames(clip_frames=6), {"build: frames.clip_frames 10 → 6": 4}),
        (
            nothing,
            {"split": {"eval_fraction": 1.0}},
            {f"build: {MOVED}": 2, f"build: {MOVED_2}": 1},
        ),
        (add_one, {}, {KEPT: 3, "build: 1 video added": 1}),
        (add_two, {}, {KEPT: 3, "build: 2 videos added": 1}),
        (remove_one, {}, {KEPT: 2, "build: 1 video removed": 1}),
        (replace_one, {}, {KEPT: 2, f"build: {REPLACED}": 1}),
        (lengthen_one, {}, {KEPT: 2, f"build: {REPLACED}": 2}),
        (shorten_one, {}, {KEPT: 2, f"build: {REPLACED}": 1}),
        (replace_one, tracks(grid=6), {f"retrack: {GRID}": 2, f"build: {REPLACED}, {GRID}": 1}),
        (lose_a_tar, {}, {KEPT: 2, "build: the shard is gone or damaged": 1}),
    ],
)
def test_a_plan_says_why(
    root: Path,
    change: Callable[[Path], None],
    settings: dict[str, object],
    expected: dict[str, int],
) -> None:
    change(root)
    assert says(plan(settings_for(root, **settings))) == expected


def test_the_first_plan_calls_everything_new(root: Path) -> None:
    shutil.rmtree(root / "out")
    planned = plan(settings_for(root))
    assert says(planned) == {"build: new": 3}
    costs = estimate(planned)
    assert (costs.total.clips, costs.total.bytes, costs.total.seconds, costs.wall_seconds) == (
        6,
        None,
        None,
        None,
    )


def test_another_checkpoint_is_called_one() -> None:
    old, new = (
        canonical_json({"tracker": "cotracker3", "weights": digest}) for digest in ("0a", "1b")
    )
    assert (
        describe_settings_change("tracks", old, new)
        == "tracks.weights changed (another checkpoint)"
    )


def test_costs_follow_from_earlier_shards(root: Path) -> None:
    add_one(root)
    state = json.loads((root / "out" / "build.json").read_text())
    state |= {"began": 100.0, "updated": 110.0, "stage_seconds": {"decode": 10.0, "track": 25.0}}
    (root / "out" / "build.json").write_text(json.dumps(state))
    rows = plan(settings_for(root)).existing.shards
    costs = estimate(plan(settings_for(root)))
    kept, added = sorted(costs.lines, key=lambda line: line.action != "keep")
    assert added.bytes is not None
    assert kept.bytes == sum(path.stat().st_size for path in (root / "out" / "shards").iterdir())
    assert added.bytes == round(kept.bytes / 6)
    spent = sum(
        shard.row.decode_seconds + shard.row.track_seconds + shard.row.write_seconds
        for shard in rows
    )
    assert costs.total.seconds == added.seconds == pytest.approx(spent / 6)
    assert costs.parallel == 3.5  # 35 s of work in the 10 s of the latest build
    assert costs.wall_seconds == pytest.approx(spent / 6 / 3.5)
    finer = estimate(plan(settings_for(root, **tracks(grid=8)))).lines[-1]
    assert finer.action == "retrack"
    assert (finer.clips, finer.bytes) == (6, kept.bytes)
    tracking = 4 * sum(shard.row.track_seconds for shard in rows)
    assert finer.seconds == pytest.approx(tracking + sum(shard.row.write_seconds for shard in rows))
    other = estimate(plan(settings_for(root, **tracks(tracker="truth")))).total
    assert (other.bytes, other.seconds) == (kept.bytes + added.bytes, None), (
        "that tracker was never timed"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "running", "of": "another version"}'])
def test_a_damaged_state_does_not_keep_a_plan_from_its_estimate(root: Path, content: str) -> None:
    add_one(root)
    (root / "out" / "build.json").write_text(content)
    assert estimate(plan(settings_for(root))).parallel == float(os.cpu_count() or 1)


def test_a_shards_videos_are_taken_from_a_table_in_many_pieces(root: Path) -> None:
    settings = settings_for(root)
    shutil.rmtree(root / "out")
    planned = plan(settings)
    videos = planned.catalog.videos
    terms = videos.schema.get_field_index("terms")
    large = videos.slice(0, 1).set_column(terms, "terms", pa.array(["x" * (64 << 20)]))
    pieces = [videos.slice(n, 1) for n in range(videos.num_rows)]
    # 2 GiB of text cannot be joined to one column, and trying takes long.
    table = pa.concat_tables([*pieces, *[large] * 33])
    chunked = replace(planned, catalog=replace(planned.catalog, videos=table))
    for shard in planned.shards:
        task = shard_task(shard, chunked, settings)
        numbers = sorted({clip.video for clip in task.clips})
        rows = map(VideoRow.from_fields, videos.take(pa.array(numbers)).to_pylist())
        assert task.videos == dict(zip(numbers, rows, strict=True))
        assert task.videos


def test_shards_are_named_by_their_content(root: Path) -> None:
    """Made again from nothing, they have the same names and bytes."""
    old = {path.name: path.read_bytes() for path in (root / "out" / "shards").iterdir()}
    shutil.rmtree(root / "out")
    snapshot = build(settings_for(root), QUIET).snapshot
    assert {path.name: path.read_bytes() for path in (root / "out" / "shards").iterdir()} == old
    for row in snapshot.shards.to_pylist():
        assert row["shard"] == f"{row['group']}-{row['checksum']}"
    assert {path.stem for path in (root / "out" / ".receipts").iterdir()} == set(
        snapshot.shards["shard"].to_pylist()
    )


def damage(image: Path) -> Callable[[], None]:
    """Replace an image by garbage of the same size and time; return what undoes that."""
    good, times = image.read_bytes(), (image.stat().st_atime_ns, image.stat().st_mtime_ns)

    def put(data: bytes) -> None:
        image.write_bytes(data)
        os.utime(image, ns=times)

    put(b"x" * len(good))
    return lambda: put(good)


def test_what_was_repaired_in_place_is_found_when_asked_for(root: Path) -> None:
    shutil.rmtree(root / "out")
    repair = damage(root / "videos" / "b" / "003.jpg")
    settings = settings_for(root)
    first = build(settings, QUIET).snapshot
    assert (
        first.failures.select(["clip", "shard"]).to_pylist()[0]["shard"]
        in first.shards["shard"].to_pylist()
    )
    repair()
    assert says(plan(settings)) == {KEPT: 3}, "nothing tells"
    assert says(plan(settings, retry_failed=True)) == {KEPT: 2, "build: 1 failure tried again": 1}
    built = build(settings, QUIET, retry_failed=True)
    assert (built.made, built.snapshot.failures.num_rows) == (1, 0)
    assert verify_snapshot(built.snapshot, QUIET) == verify_snapshot(first, QUIET) == []
    assert says(plan(settings)) == says(plan(settings, retry_failed=True)) == {KEPT: 3}


def test_tries_are_counted_and_end(root: Path) -> None:
    """An image is missing whenever shards are made, and there whenever the source is listed."""
    shutil.rmtree(root / "out")
    settings = settings_for(root)
    image, away = root / "videos" / "b" / "003.jpg", root / "away.jpg"
    said = []
    for _ in range(3):
        planned = plan(settings)
        said.append(says(planned))
        image.rename(away)
        make_shards(
            [shard for shard in planned.shards if shard.action != "keep"],
            planned,
            settings,
            BuildMonitor(settings.out, QUIET),
        )
        away.rename(image)
    may_pass = {KEPT: 2, "build: 1 failure may pass": 1}
    assert said == [{"build: new": 3}, may_pass, may_pass]
    assert says(plan(settings)) == {KEPT: 2, "keep: 1 failure stayed in 3 tries": 1}
    snapshot = build(settings, QUIET).snapshot
    assert sorted(snapshot.shards["tries"].to_pylist()) == [1, 1, 3]
    pretend_published_after_the_first_try(snapshot)
    assert says(plan(settings)) == {KEPT: 2, "keep: 1 failure stayed in 3 tries": 1}, (
        "the receipt tells more"
    )
    assert build(settings, QUIET).snapshot.name == snapshot.name, (
        "how often it was tried changes no content"
    )


def pretend_published_after_the_first_try(snapshot: Snapshot) -> None:
    file: Location = snapshot.folder / "shards.parquet"
    shards = read_table(file)
    write_table(
        file,
        shards.set_column(
            shards.column_names.index("tries"), "tries", pa.array([1] * len(shards), pa.int32())
        ),
    )


def test_receipts_are_not_needed_once_a_snapshot_names_their_shards(root: Path) -> None:
    shutil.rmtree(root / "out" / ".receipts")
    finer = settings_for(root, **tracks(grid=5))
    assert says(plan(settings_for(root))) == {KEPT: 3}
    built = build(finer, QUIET)
    assert (built.made, verify_snapshot(built.snapshot, QUIET)) == (3, [])


def test_a_folder_that_another_version_wrote_is_built_again(root: Path) -> None:
    old = build(settings_for(root), QUIET).snapshot
    for snapshot in (root / "out" / "snapshots").iterdir():
        table = snapshot / "clips.parquet"
        write_table(table, read_table(table).drop_columns(["anchor_sizes"]))
    for receipt in (root / "out" / ".receipts").iterdir():
        receipt.write_text(receipt.read_text().replace('"anchor_sizes"', '"sizes"'))
    (problem,) = verify_snapshot(Snapshot(old.out, old.name), QUIET)
    assert str(problem).endswith(
        "lacks anchor_sizes: another version of pretrack wrote it; a build makes its clips again"
    )
    assert says(plan(settings_for(root))) == {"build: new": 3}
    built = build(settings_for(root), QUIET)
    assert (built.made, verify_snapshot(built.snapshot, QUIET)) == (3, [])


def test_going_back_takes_the_rows_of_older_snapshots(root: Path) -> None:
    old = build(settings_for(root), QUIET).snapshot
    build(settings_for(root, **tracks(grid=5)), QUIET)
    shutil.rmtree(root / "out" / ".receipts")
    back = build(settings_for(root), QUIET)
    assert (back.made, back.kept) == (0, 3)
    assert back.snapshot.name > old.name
    assert back.snapshot.clips.equals(old.clips)
    assert back.snapshot.shards.equals(old.shards)


def test_a_difference_counts_what_changed(root: Path) -> None:
    first = build(settings_for(root), QUIET).snapshot
    finer = build(settings_for(root, **tracks(grid=5)), QUIET).snapshot
    tracked = asdict(compare(first, finer))
    assert tracked["settings"] == ({"key": "tracks.grid", "old": 4, "new": 5},)
    assert tracked["videos"] == {"added": 0, "removed": 0, "replaced": 0}
    assert tracked["clips"] == {
        "added": 0,
        "removed": 0,
        "same": 0,
        "retracked": 6,
        "other_frames": 0,
    }
    assert (
        tracked["shards"]["shared"],
        tracked["shards"]["added"],
        tracked["shards"]["removed"],
    ) == (0, 3, 3)

    add_one(root)
    remove_one(root)
    replace_one(root)
    write_images(root / "videos" / "short", 11, 3)
    changed = asdict(compare(first, build(settings_for(root), QUIET).snapshot))
    assert changed["settings"] == ()
    assert changed["videos"] == {"added": 2, "removed": 1, "replaced": 1}
    assert changed["clips"] == {
        "added": 1,
        "removed": 1,
        "same": 3,
        "retracked": 0,
        "other_frames": 2,
    }
    assert changed["failures"] == ({"stage": "catalog", "reason": "too short", "old": 0, "new": 1},)
    assert (
        changed["shards"]["shared"],
        changed["shards"]["added"],
        changed["shards"]["removed"],
    ) == (1, 3, 2)
    (shared,) = (
        row["bytes"] for row in first.shards.to_pylist() if row["group"].endswith("-000000")
    )
    assert changed["shards"]["shared_bytes"] == shared
