"""Hostile output folders lead nowhere else, and run nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manifests.receipt import receipt_path, shard_path
from manifests.snapshot import current_snapshot, list_snapshots, open_snapshot
from manifests.tables import read_table, write_table
from pipeline.execution.garbage_collection import collect_garbage
from pipeline.inspection.contact_sheet import ClipChoice, read_clip, show_clips
from pipeline.inspection.report_figures import measure
from pipeline.inspection.verify import _tasks, _verify, verify_snapshot
from pipeline.monitoring.progress import Progress
from shards.errors import PretrackError, ShardError
from shards.reader import read_members
from shards.verify import verify_shard
from shards.writer import ByteRange, ClipMembers, open_shard
from tests.helpers.clips import grey_clip, make_clip, write_clips
from tests.helpers.hostile import DEEP, streamed, track_bomb
from tests.helpers.published import publish_clips
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.settings import DataSettings
from trainer.data.streaming import listed_tars


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Publish two snapshots of the same shard with one clip; give their folder."""
    for _ in range(2):
        publish_clips(tmp_path / "out", [grey_clip("made-a-000000")])
    return tmp_path / "out"


def spoil(out: Path, table: str, snapshot: str = "000002", **values: Any) -> None:
    """Replace columns of a table that has one row."""
    file = out / "snapshots" / snapshot / f"{table}.parquet"
    spoilt = read_table(file)
    for name, value in values.items():
        index, field = spoilt.schema.get_field_index(name), spoilt.schema.field(name)
        spoilt = spoilt.set_column(index, field, pa.array([value], field.type))
    write_table(file, spoilt)


def load_clip(out: Path) -> object:
    """Read the first clip as training does."""
    settings = DataSettings.model_validate({"out": out, "size": 32, "frames": 4, "step": 1})
    return ClipDataset(open_snapshots(settings), settings, seed=0)[0, 0]


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("clips", {"shard": "../../etc/passwd"}),
        ("clips", {"shard": "/etc/passwd"}),
        ("clips", {"tracks_offset": -512}),
        ("clips", {"tracks_offset": 1 << 62, "anchor_sizes": [1 << 62] * 2}),
        ("clips", {"anchor_sizes": [-1] * 2}),
        ("clips", {"anchor_sizes": [1 << 60] * 2}),
        ("clips", {"anchor_sizes": [9]}),
        ("clips", {"anchor_sizes": None}),
        ("clips", {"frame_offsets": [-1] * 8}),
        ("clips", {"frame_sizes": [1 << 60] * 8}),
        ("clips", {"frame_sizes": [-(1 << 60)] * 8}),
        ("clips", {"frame_offsets": []}),
        ("clips", {"width": 1 << 30, "height": 1 << 30}),
        ("clips", {"points": 1}),
        ("clips", {"points": 1 << 30}),
        ("clips", {"anchors": [0, 1 << 30]}),
        ("clips", {"frames": 1 << 30}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_tables_that_point_elsewhere(
    out: Path, little_memory: None, table: str, values: dict[str, Any]
) -> None:
    assert load_clip(out)
    spoil(out, table, **values)
    with pytest.raises(PretrackError) as caught:
        load_clip(out)
    assert len(str(caught.value).splitlines()) == 1
    assert "root:" not in str(caught.value)


def test_members_beyond_a_shard(tmp_path: Path, little_memory: None) -> None:
    write_clips(tmp_path / "s.tar", [make_clip()])
    for offset, size in ((-1, 5), (0, -1), (0, 1 << 60), (1 << 62, 1 << 62), (1 << 62, 1)):
        with pytest.raises(ShardError):
            read_members(tmp_path / "s.tar", [offset], [size])
        members = ClipMembers(ByteRange(offset, size), ByteRange(offset, size), (), (), "")
        assert any(
            "clip k:" in problem
            for problem in verify_shard(tmp_path / "s.tar", 1, "0", {"k": members})
        )


def test_tables_bound_what_tracks_unfold_to(out: Path, little_memory: None) -> None:
    clip, shard = grey_clip("made-a-000000"), open_snapshot(out).shards["shard"][0].as_py()
    with open_shard(shard_path(out, shard)) as writer:
        members = writer.add(clip.info, (track_bomb(),) * 2, clip.jpegs)
    frames = [frame.offset for frame in members.frames]
    sizes: dict[str, Any] = {
        "tracks_size": members.tracks.size,
        "anchor_sizes": list(members.anchors),
    }
    spoil(out, "clips", **sizes, frame_offsets=frames, checksum=members.checksum)
    snapshot = open_snapshot(out)
    message = "claim to unpack to 400000020 bytes, more than 8 frames x 16 points take"
    problems = [
        str(problem)
        for task in _tasks(snapshot, snapshot.shards.to_pylist())
        for problem in _verify(task)
    ]
    assert any(message in problem for problem in problems)
    with pytest.raises(ShardError, match=message):
        load_clip(out)
    with pytest.raises(ShardError, match=message):
        read_clip(snapshot, snapshot.clips.to_pylist()[0])
    assert measure(snapshot).damaged == 1


def test_verify_and_show_stay_in_the_folder(out: Path, tmp_path: Path) -> None:
    spoil(out, "shards", shard="../../etc/passwd")
    assert "does not name the shards of the tables" in str(
        verify_snapshot(open_snapshot(out), Progress(quiet=True))[0]
    )
    (out / "snapshots" / "000002" / "shards.txt").write_text("shards/../../etc/passwd.tar\n")
    with pytest.raises(PretrackError, match=r"'../../etc/passwd' is not a shard name"):
        verify_snapshot(open_snapshot(out), Progress(quiet=True))
    spoil(out, "clips", frame_sizes=[1])
    with pytest.raises(PretrackError, match="8 offsets and 1 sizes of frames"):
        show_clips(open_snapshot(out), ClipChoice(), tmp_path / "shown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shown"]


@pytest.mark.parametrize("shard", ["../../precious", "/precious", "..", "a/b", ""])
def test_gc_deletes_nothing_outside(out: Path, tmp_path: Path, shard: str) -> None:
    for name in ("precious.tar", "precious.json"):
        (tmp_path / name).write_text("mine")
    spoil(out, "shards", "000001", shard=shard)
    with pytest.raises(PretrackError, match="is not a shard name"):
        collect_garbage(out, keep=1)
    for name in ("precious.tar", "precious.json"):
        assert (tmp_path / name).read_text() == "mine"
    assert list_snapshots(out) == ["000001", "000002"], "nothing inside is deleted either"


def test_gc_follows_no_link(out: Path, tmp_path: Path) -> None:
    shutil.move(out / "snapshots" / "000001", tmp_path / "mine")
    (out / "snapshots" / "000001").symlink_to(tmp_path / "mine")
    with pytest.raises(PretrackError, match=r"000001 is a link, and nothing outside .* is deleted"):
        collect_garbage(out, keep=1)
    assert (tmp_path / "mine" / "settings.json").exists()


def test_gc_of_linked_tars_removes_the_links(out: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.tar").write_text("mine")
    (out / "shards" / "made-000009-0123456789abcdef.tar").symlink_to(tmp_path / "precious.tar")
    collect_garbage(out, keep=1)
    assert not (out / "shards" / "made-000009-0123456789abcdef.tar").is_symlink()
    assert (tmp_path / "precious.tar").read_text() == "mine"


@pytest.mark.parametrize("name", ["../../elsewhere", "..", "", "/tmp", "²"])
def test_a_current_snapshot_elsewhere(out: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(out / "snapshots" / "000001", tmp_path / "elsewhere")
    with pytest.raises(PretrackError, match="has no snapshot"):
        open_snapshot(out, name)
    (out / "current.json").write_text(json.dumps({"snapshot": name}))
    with pytest.raises(PretrackError, match="is no snapshot"):
        current_snapshot(out)
    (out / "current.json").write_bytes(DEEP)
    with pytest.raises(PretrackError, match="is damaged"):
        current_snapshot(out)


def test_paths_of_shards_stay_inside(tmp_path: Path) -> None:
    for name in ("..", "a/b", "a\0", "a\n", ".", "", "a.b"):
        for path in (receipt_path, shard_path):
            with pytest.raises(PretrackError, match="is not a shard name"):
                path(tmp_path, name)


@pytest.mark.parametrize(
    "line",
    [
        "pipe:touch${IFS}made",
        "../../etc/passwd.tar",
        "/etc/x.tar",
        "s3://other/x.tar",
        "shards/../x.tar",
    ],
)
def test_a_list_of_tars_runs_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(out)
    (out / "snapshots" / "000002" / "shards.txt").write_text(f"{line}\n")
    for where in (".", "snapshots/000002/shards.txt"):
        with pytest.raises(PretrackError, match="is no tar of a snapshot"):
            streamed(Path(where))
    assert not (out / "made").exists()


def test_a_file_called_like_a_command_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "pipe:touch made;.tar", [make_clip()])
    assert listed_tars("*.tar") == ["./pipe:touch made;.tar"]
    assert streamed(Path("*.tar")) == [make_clip().info.key]
    assert not (tmp_path / "made").exists()
