"""Garbage collection between snapshots: what is kept stays whole, whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import manifests.snapshot
import pipeline.execution.garbage_collection
from manifests.changes import changed_settings
from manifests.receipt import list_receipts
from manifests.snapshot import list_snapshots, open_snapshot
from manifests.tables import read_table, write_table
from pipeline.execution.build import build
from pipeline.execution.garbage_collection import collect_garbage
from pipeline.inspection.history import summaries
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from shards.errors import PretrackError
from shards.files import delete, delete_folder
from tests.helpers.panning import panning_frames, write_video
from tests.pipeline.execution.test_build import settings_for

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.slow


def tracks(grid: int) -> dict[str, object]:
    return {"tracker": "lucas_kanade", "grid": grid, "anchors": [0, 5]}


@pytest.fixture(scope="module")
def three(two_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with three snapshots of grids 4, 5 and 6, with two shards each."""
    root, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("three")
    for seed in range(3):
        write_video(root / f"{seed}.mp4", panning_frames(seed, 10))
    for grid in (4, 5, 6):
        build(settings_for(root, out, tracks=tracks(grid)), QUIET)
    return out


@pytest.fixture
def out(three: Path, tmp_path: Path) -> Path:
    shutil.copytree(three, tmp_path / "out")
    return tmp_path / "out"


def tars(out: Path) -> set[str]:
    return {path.stem for path in (out / "shards").glob("*.tar")}


def shards(out: Path, *names: str) -> set[str]:
    return {
        shard
        for name in names
        for shard in open_snapshot(out, name).shards.column("shard").to_pylist()
    }


def test_snapshots_are_listed_with_what_changed(out: Path) -> None:
    first, second, third = summaries(out)
    assert [s.name for s in (first, second, third) if s.current] == ["000003"]
    assert first.settings == (
        "tracks.tracker lucas_kanade",
        "tracks.grid 4",
        "tracks.anchors [0, 5]",
    )
    assert second.settings == ("tracks.grid 4 → 5",)
    assert {(s.clips, s.shards) for s in (first, second, third)} == {(3, 2)}
    assert first.published <= second.published <= third.published


def test_old_snapshots_go_with_the_shards_that_only_they_name(out: Path) -> None:
    kept, all_tars = shards(out, "000002", "000003"), tars(out)
    removed_bytes = sum(
        (out / "shards" / f"{shard}.tar").stat().st_size for shard in all_tars - kept
    )
    announced = collect_garbage(out, keep=2, dry_run=True)
    assert tars(out) == all_tars
    garbage = collect_garbage(out, keep=2)
    assert garbage == announced
    assert (garbage.snapshots, garbage.kept) == (("000001",), ("000002", "000003"))
    assert set(garbage.shards) == all_tars - kept
    assert garbage.bytes == removed_bytes > 0
    assert tars(out) == set(list_receipts(out)) == kept
    for name in ("000002", "000003"):
        assert verify_snapshot(open_snapshot(out, name), QUIET) == []
    assert collect_garbage(out, keep=2).shards == ()


def test_a_named_snapshot_and_the_current_one_stay(out: Path) -> None:
    collect_garbage(out, keep=1, named=["000001"])
    assert list_snapshots(out) == ["000001", "000003"]
    with pytest.raises(PretrackError, match=r"no snapshot '000002' \(there are: 000001, 000003\)"):
        collect_garbage(out, keep=1, named=["000002"])
    with pytest.raises(PretrackError, match="at least 1"):
        collect_garbage(out, keep=0)


def test_an_unfinished_builds_work_is_left_unless_asked(out: Path) -> None:
    shutil.rmtree(
        out / "snapshots" / "000003"
    )  # as if the third build had been killed before it published
    (out / "current.json").write_text('{"snapshot": "000002"}')
    (out / "shards" / "orphan.tar").write_bytes(b"killed between the tar and its receipt")
    garbage = collect_garbage(out, keep=1)
    assert garbage.unpublished == 2
    assert "orphan" in garbage.shards
    assert len(tars(out)) == 4
    assert collect_garbage(out, keep=1, unpublished=True).unpublished == 0
    assert tars(out) == shards(out, "000002")


def test_a_damaged_table_does_not_lead_out_of_the_folder(out: Path) -> None:
    victim = out.parent / "victim.tar"
    victim.write_bytes(b"precious")
    table = out / "snapshots" / "000001" / "shards.parquet"
    rows = read_table(table)
    names = pa.array(["../../victim", *rows["shard"].to_pylist()[1:]])
    write_table(table, rows.set_column(rows.schema.get_field_index("shard"), "shard", names))
    all_tars = tars(out)
    with pytest.raises(
        PretrackError,
        match=rf"the tables in {out} are damaged: '\.\./\.\./victim' is not a shard name",
    ):
        collect_garbage(out, keep=1)
    assert victim.read_bytes() == b"precious"
    assert tars(out) == all_tars == set(list_receipts(out))


def test_files_that_are_not_ours_stay(out: Path) -> None:
    strangers = [out / "shards" / "my copy.tar", out / ".receipts" / "my copy.json"]
    for stranger in strangers:
        stranger.write_bytes(b"mine")
    assert collect_garbage(out, keep=1, unpublished=True).snapshots == ("000001", "000002")
    assert all(stranger.exists() for stranger in strangers)


# Every second of the first eight deletions finds nothing: it is of a receipt where 0.1 wrote it.
@pytest.mark.parametrize("calls", [*range(0, 8, 2), *range(8, 16)])
def test_a_collection_that_is_killed_loses_nothing_and_ends_the_next_time(
    out: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends just before its n-th deletion; a deletion itself happens or does not."""
    left = calls

    def dies(deletes: Callable[[Path], None]) -> Callable[[Path], None]:
        def call(path: Path) -> None:
            nonlocal left
            if not left:
                raise SystemExit
            left -= 1
            deletes(path)

        return call

    kept = shards(out, "000003")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.execution.garbage_collection, "delete", dies(delete))
        patch.setattr(manifests.snapshot, "delete_folder", dies(delete_folder))
        with pytest.raises(SystemExit):
            collect_garbage(out, keep=1)
    for name in list_snapshots(out):
        assert verify_snapshot(open_snapshot(out, name), QUIET) == [], (
            "what is still listed is still whole"
        )
    collect_garbage(out, keep=1)
    assert (
        [path.name for path in (out / "snapshots").iterdir()] == list_snapshots(out) == ["000003"]
    )
    assert tars(out) == set(list_receipts(out)) == kept


def test_changed_settings_are_named_by_their_keys() -> None:
    old = {
        "tracks": {"grid": 16, "tracker": "lucas_kanade"},
        "sources": [{"root": "/a"}],
        "out": "x",
    }
    new = {
        "tracks": {"grid": 24, "tracker": "lucas_kanade", "mode": None},
        "sources": [{"root": "/b"}],
        "out": "x",
    }
    assert [str(change) for change in changed_settings(old, new)] == [
        "tracks.grid 16 → 24",
        "sources.0.root /a → /b",
    ]
    more = changed_settings({"anchors": [0]}, {"anchors": [0, 8], "size": 1})
    assert [str(change) for change in more] == ["anchors [0] → [0, 8]", "size unset → 1"]
