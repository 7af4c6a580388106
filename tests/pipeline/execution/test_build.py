"""The whole build on real Ray, from real video files to verified shards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from manifests.receipt import list_receipts, shard_checksum
from manifests.settings import check_settings
from manifests.snapshot import Snapshot, list_snapshots, open_snapshot
from pipeline.config import BuildSettings
from pipeline.execution.build import BuildResult, build
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.garbage_collection import collect_garbage
from pipeline.execution.repair import repair
from pipeline.execution.shard_runner import make_shards
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import status
from pipeline.planning.catalog import make_catalog
from pipeline.planning.plan import Plan, make_plan
from shards import jpeg
from shards.errors import PretrackError
from shards.files import TEMPORARY, read_file
from shards.geometry import inside
from shards.reader import iterate_shard
from tests.helpers.panning import STEP, panning_frames, write_video
from tests.helpers.soak import TARGETS, soak

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.usefixtures("two_cores")
VIDEOS = {"a.mp4": 26, "b.mp4": 20, "deep/c.mp4": 12, "d.mp4": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate(VIDEOS.items()):
        write_video(root / name, panning_frames(seed, frames))
    return root


def settings_for(videos: Path, out: Path, **changes: object) -> BuildSettings:
    """A small build; `changes` are top-level settings."""
    values = {
        "sources": [{"dataset": "video_folder", "name": "pans", "root": str(videos)}],
        "frames": {"clip_frames": 10, "min_frames": 6, "short_side": 96, "decode_timeout_s": 20},
        "tracks": {"tracker": "lucas_kanade", "grid": 6, "anchors": [0, 5]},
        "shards": {"clips_per_shard": 2},
        "split": {"eval_fraction": 0.0},
        "max_failed_videos": 0.5,
        "out": str(out),
        **changes,
    }
    return check_settings(BuildSettings, values, "test")


def folder(settings: BuildSettings) -> Path:
    """The output folder, which is on a local disk."""
    assert isinstance(settings.out, Path)
    return settings.out


def plan(settings: BuildSettings) -> Plan:
    return make_plan(settings, make_catalog(settings, QUIET))


def contents(snapshot: Snapshot) -> dict[str, tuple[bytes, ...]]:
    """The bytes of the members of every clip, by key."""
    clips = [
        clip
        for shard in snapshot.shards.column("shard").to_pylist()
        for clip in iterate_shard(snapshot.shard_path(shard))
    ]
    assert sorted(clip.info.key for clip in clips) == sorted(
        snapshot.clips.column("key").to_pylist()
    )
    return {
        clip.info.key: (clip.info.to_json(), clip.tracks.positions.tobytes(), *clip.jpegs)
        for clip in clips
    }


@pytest.fixture(scope="module")
def built(
    videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildSettings, BuildResult]:
    settings = settings_for(videos, tmp_path_factory.mktemp("out"))
    return settings, build(settings, QUIET)


def test_clips_are_what_the_videos_hold(built: tuple[BuildSettings, BuildResult]) -> None:
    snapshot = built[1].snapshot
    rows = sorted((row["video_id"], row["frames"]) for row in snapshot.clips.to_pylist())
    assert rows == [
        ("a.mp4", 6),
        ("a.mp4", 10),
        ("a.mp4", 10),
        ("b.mp4", 10),
        ("b.mp4", 10),
        ("deep/c.mp4", 10),
    ]
    (left_out,) = snapshot.failures.to_pylist()
    assert (left_out["video_id"], left_out["reason"]) == ("d.mp4", "too short")
    assert "3 frames" in left_out["detail"]
    assert verify_snapshot(snapshot, QUIET) == []


def test_tracks_follow_the_true_motion(built: tuple[BuildSettings, BuildResult]) -> None:
    snapshot = built[1].snapshot
    checked = 0
    for shard in snapshot.shards.column("shard").to_pylist():
        for clip in iterate_shard(snapshot.shard_path(shard)):
            width, height = clip.info.width, clip.info.height
            assert (width, height) == (128, 96)
            step = np.array(STEP) * np.array([width / 160, height / 120])
            for row, anchor in enumerate(clip.tracks.anchors):
                away = np.arange(clip.info.frames)[:, None, None] - anchor
                truth = clip.tracks.positions[row, anchor] + away * step
                margin = inside(truth - 10, width - 20, height - 20)
                error = np.linalg.norm(clip.tracks.positions[row] - truth, axis=-1)[margin]
                assert np.median(error) < 0.2
                assert (clip.tracks.visibility[row][margin] > 127).mean() > 0.9
                checked += len(error)
    assert checked > 1000


def test_descriptions_hold_source_frames_and_times(
    built: tuple[BuildSettings, BuildResult],
) -> None:
    snapshot = built[1].snapshot
    clips = {
        clip.info.key: clip
        for s in snapshot.shards.column("shard").to_pylist()
        for clip in iterate_shard(snapshot.shard_path(s))
    }
    (second,) = [
        clip.info for key, clip in clips.items() if "-b_mp4-" in key and key.endswith("-000010")
    ]
    assert second.frame_numbers == tuple(range(10, 20))
    assert second.timestamps == pytest.approx([i / 25 for i in range(10, 20)], abs=1e-3)
    assert (second.source_width, second.source_height, second.video_id) == (160, 120, "b.mp4")


def test_a_second_build_does_nothing(built: tuple[BuildSettings, BuildResult]) -> None:
    settings, first = built
    before = {
        path: path.stat().st_mtime_ns
        for path in folder(settings).rglob("*")
        if path.is_file() and path.name != "build.lock"
    }
    again = build(settings, QUIET)
    assert (again.made, again.kept, again.snapshot.name) == (0, first.made, first.snapshot.name)
    after = {
        path: path.stat().st_mtime_ns
        for path in folder(settings).rglob("*")
        if path.is_file() and path.name != "build.lock"
    }
    assert after == before


def test_plain_webdataset_reads_a_snapshot_by_its_list(
    built: tuple[BuildSettings, BuildResult],
) -> None:
    snapshot = built[1].snapshot
    tars = [
        str(snapshot.out / line)
        for line in read_file(snapshot.folder / "shards.txt").decode().split()
    ]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert sorted(sample["__key__"] for sample in samples) == sorted(
        snapshot.clips.column("key").to_pylist()
    )
    for sample in samples:
        frames = [
            jpeg.decode(sample[f"{i:03d}.jpg"])
            for i in range(len(json.loads(sample["json"])["frame_numbers"]))
        ]
        assert {frame.shape for frame in frames} == {(96, 128, 3)}


def test_status_tells_what_is_there(built: tuple[BuildSettings, BuildResult]) -> None:
    shown = status(built[0].out)
    assert shown["build"]["state"] == "finished"
    assert shown["snapshot"]["clips"] == 6
    assert shown["snapshot"]["failures"] == [
        {"stage": "catalog", "reason": "too short", "count": 1}
    ]


def test_another_grid_retracks_stored_frames(
    videos: Path, tmp_path: Path, built: tuple[BuildSettings, BuildResult]
) -> None:
    shutil.copytree(folder(built[0]), tmp_path, dirs_exist_ok=True)
    settings, old = settings_for(videos, tmp_path), open_snapshot(tmp_path)
    finer = settings_for(
        videos, tmp_path, tracks={"tracker": "lucas_kanade", "grid": 8, "anchors": [0, 5]}
    )
    planned = plan(finer)
    assert {(shard.action, shard.reason) for shard in planned.shards} == {
        ("retrack", "tracks.grid 6 → 8")
    }
    new = build(finer, QUIET).snapshot
    coarse, fine = contents(old), contents(new)
    assert coarse.keys() == fine.keys()
    for key in coarse:
        assert coarse[key][2:] == fine[key][2:], "frames are kept byte for byte"
        assert coarse[key][1] != fine[key][1], "tracks are new"
    assert verify_snapshot(new, QUIET) == []
    assert verify_snapshot(old, QUIET) == [], "the old snapshot is untouched"
    assert build(settings, QUIET).made == 0, "going back finds the old shards again"
    assert open_snapshot(tmp_path).clips.equals(old.clips)


@pytest.mark.slow
def test_only_shards_concerned_are_touched(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    settings = settings_for(root, tmp_path / "out")
    first = build(settings, QUIET).snapshot
    write_video(root / "aa.mp4", panning_frames(9, 10))
    actions = sorted((shard.action, shard.reason) for shard in plan(settings).shards)
    assert actions == [
        ("build", "1 video added"),
        ("keep", "nothing changed"),
        ("keep", "nothing changed"),
        ("keep", "nothing changed"),
    ]
    second = build(settings, QUIET).snapshot
    assert set(first.shards.column("shard").to_pylist()) < set(
        second.shards.column("shard").to_pylist()
    )
    (root / "deep/c.mp4").unlink()
    write_video(root / "b.mp4", panning_frames(17, 20))
    reasons = sorted(shard.reason for shard in plan(settings).shards if shard.action == "build")
    assert reasons in (
        ["1 video removed", "1 video replaced"],
        ["1 video removed, 1 video replaced", "1 video replaced"],
    )
    third = build(settings, QUIET).snapshot
    assert "deep/c.mp4" not in third.clips.column("video_id").to_pylist()
    assert len(set(third.clips.column("key").to_pylist())) == len(third.clips) == 6
    assert verify_snapshot(third, QUIET) == []


def test_other_frame_settings_build_again(
    videos: Path, tmp_path: Path, built: tuple[BuildSettings, BuildResult]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    frames = {
        "clip_frames": 10,
        "min_frames": 6,
        "short_side": 96,
        "decode_timeout_s": 20,
        "jpeg_quality": 70,
    }
    planned = plan(settings_for(videos, out, frames=frames))
    assert {(shard.action, shard.reason) for shard in planned.shards} == {
        ("build", "frames.jpeg_quality 90 → 70")
    }
    timeout = settings_for(
        videos, out, frames={**frames, "jpeg_quality": 90, "decode_timeout_s": 7}
    )
    assert {shard.action for shard in plan(timeout).shards} == {"keep"}, (
        "a time limit changes no content"
    )


@pytest.mark.slow
def test_splits_go_by_sequence_and_never_share_a_shard(videos: Path, tmp_path: Path) -> None:
    snapshot = build(
        settings_for(videos, tmp_path, split={"eval_fraction": 0.5, "salt": "a"}), QUIET
    ).snapshot
    rows = snapshot.clips.to_pylist()
    assert {row["split"] for row in rows} == {"train", "eval"}
    for column in ("video_id", "shard"):
        for value in {row[column] for row in rows}:
            assert len({row["split"] for row in rows if row[column] == value}) == 1


@pytest.mark.slow
def test_too_many_failures_stop_the_build(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PretrackError,
        match=r"1 of 4 videos yield no clip \(1 x too short\), more than max_failed_videos=0.1",
    ):
        build(settings_for(videos, tmp_path, max_failed_videos=0.1), QUIET)
    assert list_snapshots(tmp_path) == []


def test_decoding_on_a_gpu_that_is_not_there_is_one_sentence(videos: Path, tmp_path: Path) -> None:
    settings = settings_for(videos, tmp_path / "out", frames={"device": "cuda", "short_side": 96})
    with pytest.raises(PretrackError, match=r"frames\.device is cuda, and this cluster has 0 GPUs"):
        build(settings, QUIET)
    (failed,) = [
        json.loads(line)
        for line in (tmp_path / "out" / "build.log").read_text().splitlines()
        if "shard failed" in line
    ]
    assert failed["reason"].startswith("frames.device is cuda"), "the first shard ends the build"


@pytest.mark.slow
def test_two_builds_of_one_folder_do_not_meet(videos: Path, tmp_path: Path) -> None:
    code = """
import fcntl, sys
file = open(sys.argv[1], 'w')
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "build.lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PretrackError, match="another build is at work"):
            build(settings_for(videos, tmp_path), QUIET)
        holder.kill()
    assert build(settings_for(videos, tmp_path), QUIET).made == 3


def test_a_folder_that_cannot_be_written_is_one_sentence(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PretrackError, match=r"output folder .*file/out cannot be written"):
        build(settings_for(videos, tmp_path / "file" / "out"), QUIET)


@pytest.mark.slow
def test_a_damaged_receipt_makes_its_shard_again(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only if no snapshot names the shard."""
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    settings = built[0].model_copy(update={"out": out})
    receipt = sorted((out / ".receipts").iterdir())[0]
    receipt.write_bytes(receipt.read_bytes()[:100])
    assert build(settings, QUIET).made == 0
    shutil.rmtree(out / "snapshots")
    (out / "current.json").unlink()
    again = build(settings, QUIET)
    assert (again.made, again.kept) == (1, 2)
    assert "is damaged" in caplog.text
    assert contents(again.snapshot) == contents(built[1].snapshot)
    assert verify_snapshot(again.snapshot, QUIET) == []


@pytest.mark.slow
def test_an_unfinished_build_of_0_1_is_continued_rebuilt_and_collected(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path
) -> None:
    """It had its receipts in another folder."""
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    (out / ".receipts").rename(out / "receipts")
    shutil.rmtree(out / "snapshots")
    (out / "current.json").unlink()
    settings = built[0].model_copy(update={"out": out})
    assert {shard.action for shard in plan(settings).shards} == {"keep"}
    lost, *_ = list_receipts(out)
    (out / "receipts" / f"{lost}.json").unlink()
    continued = build(settings, QUIET)
    assert (continued.made, continued.kept) == (1, 2)
    assert contents(continued.snapshot) == contents(built[1].snapshot)
    assert verify_snapshot(continued.snapshot, QUIET) == []
    (made,) = (out / ".receipts").iterdir()
    assert shard_checksum(made.stem) == shard_checksum(lost)
    assert len(list_receipts(out)) == 3
    finer = settings.tracks.model_copy(update={"grid": 5})
    rebuilt = build(settings.model_copy(update={"tracks": finer}), QUIET).snapshot
    collect_garbage(out, keep=1)
    assert list_receipts(out) == sorted(rebuilt.shards["shard"].to_pylist())
    assert list((out / "receipts").iterdir()) == []
    assert verify_snapshot(rebuilt, QUIET) == []


@pytest.mark.slow
def test_load_dataset_takes_shards_for_the_data_and_nothing_else(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path
) -> None:
    """Without a card. The shards of this build begin with clips of 10 frames; others have 6."""
    pytest.importorskip("datasets")
    code = (
        "import sys, datasets\n"
        "(split,) = datasets.load_dataset(sys.argv[1]).values()\n"
        "print(split.num_rows, *split.column_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder(built[0])],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    frames = " ".join(f"{number:03d}.jpg" for number in range(10))
    assert done.stdout == f"6 json tracks.zst {frames} scores.zst __key__ __url__\n", done.stderr


@pytest.mark.slow
def test_what_was_away_for_a_while_is_tried_again(videos: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos, root)
    settings = settings_for(root, out)
    make_catalog(settings, QUIET)
    planned = plan(settings)
    (root / "b.mp4").rename(tmp_path / "away.mp4")
    make_shards(list(planned.shards), planned, settings, BuildMonitor(settings.out, QUIET))
    (tmp_path / "away.mp4").rename(root / "b.mp4")
    assert {(shard.action, shard.reason) for shard in plan(settings).shards} >= {
        ("build", "1 failure may pass")
    }
    snapshot = build(settings, QUIET).snapshot
    assert snapshot.clips.num_rows == 6
    assert verify_snapshot(snapshot, QUIET) == []
    assert build(settings, QUIET).made == 0


@pytest.mark.slow
def test_a_shard_that_is_gone_is_made_again(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    settings = built[0].model_copy(update={"out": out})
    tars = sorted((out / "shards").iterdir())
    tars[0].unlink()
    tars[1].write_bytes(tars[1].read_bytes()[:-700])
    reasons = [
        (shard.action, shard.reason) for shard in plan(settings).shards if shard.action != "keep"
    ]
    assert reasons == [("build", "the shard is gone or damaged")] * 2
    again = build(settings, QUIET)
    assert (again.made, again.kept) == (2, 1)
    assert contents(again.snapshot) == contents(built[1].snapshot)
    assert verify_snapshot(again.snapshot, QUIET) == []


@pytest.mark.slow
def test_a_video_repaired_in_place_is_found_when_asked_for(videos: Path, tmp_path: Path) -> None:
    """It has the size and time of the garbage before it, so that nothing else shows the repair."""
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    good, time = (root / "b.mp4").read_bytes(), (root / "b.mp4").stat().st_mtime_ns
    (root / "b.mp4").write_bytes(b"x" * len(good))
    os.utime(root / "b.mp4", ns=(time, time))
    settings = settings_for(root, tmp_path / "out")
    first = build(settings, QUIET).snapshot
    assert sorted(first.failures["reason"].to_pylist()) == ["too short", "unreadable video"]
    (root / "b.mp4").write_bytes(good)
    os.utime(root / "b.mp4", ns=(time, time))
    assert build(settings, QUIET).snapshot.name == first.name
    again = build(settings, QUIET, retry_failed=True)
    assert again.snapshot.failures["reason"].to_pylist() == ["too short"]
    assert "b.mp4" in again.snapshot.clips["video_id"].to_pylist()
    assert again.made == 1


def test_stored_frames_are_tracked_again_without_their_source(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    finer = settings_for(
        tmp_path / "gone", out, tracks={"tracker": "lucas_kanade", "grid": 7, "anchors": [0, 5]}
    )
    with pytest.raises(PretrackError, match="gone does not exist"):
        build(finer, QUIET)
    again = build(finer, QUIET, stored=True)
    assert (again.made, again.snapshot.clips.num_rows) == (3, 6)
    assert set(again.snapshot.clips.column("points").to_pylist()) == {49}
    assert again.snapshot.failures.equals(built[1].snapshot.failures)
    assert build(finer, QUIET, stored=True).made == 0
    other = settings_for(
        tmp_path / "gone", out, frames={"clip_frames": 10, "min_frames": 6, "short_side": 64}
    )
    with pytest.raises(PretrackError, match=r"must be built from its source .* without '--stored'"):
        build(other, QUIET, stored=True)


@pytest.mark.slow
def test_sources_whose_names_begin_alike_keep_apart(videos: Path, tmp_path: Path) -> None:
    sources = [
        {"dataset": "video_folder", "name": name, "root": str(videos)} for name in ("a", "a-train")
    ]
    settings = settings_for(videos, tmp_path, sources=sources)
    snapshot = build(settings, QUIET).snapshot
    assert snapshot.clips.num_rows == len(set(snapshot.clips.column("key").to_pylist())) == 12
    assert build(settings, QUIET).made == 0


@pytest.mark.slow
def test_a_relative_output_folder_is_that_of_the_caller(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers run in another folder, where a relative path would mean another place."""
    monkeypatch.chdir(tmp_path)
    snapshot = build(settings_for(videos, Path("made/here")), QUIET).snapshot
    assert snapshot.out == tmp_path / "made" / "here"
    assert verify_snapshot(snapshot, QUIET) == []


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(
    videos: Path, tmp_path: Path, built: tuple[BuildSettings, BuildResult]
) -> None:
    """The driver, and with it the whole local Ray, gets SIGKILL after its first shard."""
    out = tmp_path / "out"
    config = tmp_path / "config.yaml"
    settings = settings_for(videos, out, shards={"clips_per_shard": 1}, ray={"cpus": 1})
    config.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "pipeline", "build", str(config)]
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        deadline = time.monotonic() + 90
        while not list_receipts(out) and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.005)
        os.killpg(running.pid, signal.SIGKILL)
    survivors = len(list_receipts(out))
    assert survivors >= 1
    assert list_snapshots(out) == [] or survivors == 6
    assert status(out)["build"]["state"] in ("killed", "finished")
    of_export = out / f"{TEMPORARY}clip.mp4"
    of_export.mkdir()
    again = build(settings, QUIET)
    assert again.kept >= survivors
    assert again.made + again.kept == 6
    assert contents(again.snapshot) == contents(built[1].snapshot)
    assert verify_snapshot(again.snapshot, QUIET) == []
    assert list(out.rglob(f"{TEMPORARY}*")) == [of_export], "another process may be at work there"


@pytest.mark.slow
def test_builds_killed_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """The short form of `make soak`. This seed kills a worker first, and then the build's GCS."""
    killed = soak(tmp_path, kills=2, seed=310, grids=[6])
    assert killed["finished builds"] >= 1
    assert sum(killed[target] for target in TARGETS) >= 2


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (that needs root)")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_with_one_sentence_and_nothing_half_written(
    videos: Path, tiny_disk: Path
) -> None:
    with pytest.raises(PretrackError, match=r"No space left on device.*finished shards are kept"):
        build(settings_for(videos, tiny_disk / "out", shards={"clips_per_shard": 6}), QUIET)
    assert list_snapshots(tiny_disk / "out") == []
    assert not list((tiny_disk / "out").rglob("*.tar"))


def test_a_read_only_folder_is_one_sentence(videos: Path, tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(
        PretrackError, match=r"output folder .*/out cannot be written \(Read-only file system\)"
    ):
        build(settings_for(videos, tiny_disk / "out"), QUIET)


@pytest.mark.slow
def test_a_build_runs_in_a_notebook(videos: Path, tmp_path: Path) -> None:
    """A notebook's thread has a running event loop already."""

    async def cell() -> BuildResult:
        return build(settings_for(videos, tmp_path), QUIET)

    assert asyncio.run(cell()).made == 3


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


@pytest.mark.slow
def test_repair_makes_what_is_damaged_again_and_nothing_else(videos: Path, tmp_path: Path) -> None:
    """One clip of a shard is damaged, and another's video is gone: only the first is decoded."""
    out, root = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(videos, root)
    settings = settings_for(root, out, shards={"clips_per_shard": 6})
    snapshot = build(settings, QUIET).snapshot
    expected = contents(snapshot)
    rows = {row["key"]: row for row in snapshot.clips.to_pylist()}
    (shard,) = snapshot.shards.column("shard").to_pylist()
    tar = out / "shards" / f"{shard}.tar"
    bad = next(row for row in rows.values() if row["video_id"] == "a.mp4")
    flip(tar, bad["frame_offsets"][2] + 100)
    (root / "b.mp4").unlink()
    problems = verify_snapshot(snapshot, QUIET)
    assert {problem.shard for problem in problems} == {shard}
    assert any(bad["key"] in str(problem) for problem in problems)
    repaired = repair(snapshot, problems, QUIET).built
    assert (repaired.made, repaired.kept, repaired.snapshot.name) == (1, 0, snapshot.name)
    assert verify_snapshot(snapshot, QUIET) == []
    assert contents(snapshot) == expected, (
        "byte for byte, the clips of the video that is gone included"
    )


@pytest.mark.slow
def test_repair_refuses_a_video_that_has_changed(videos: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(videos, root)
    snapshot = build(settings_for(root, out), QUIET).snapshot
    (row,) = [row for row in snapshot.clips.to_pylist() if row["video_id"] == "deep/c.mp4"]
    flip(out / "shards" / f"{row['shard']}.tar", row["tracks_offset"] + 20)
    write_video(root / "deep/c.mp4", panning_frames(17, 12))
    with pytest.raises(
        PretrackError,
        match=r"1 video .* changed since they were built "
        r"\(the first: deep/c.mp4\): run 'pretrack build'",
    ):
        repair(snapshot, verify_snapshot(snapshot, QUIET), QUIET)


@pytest.mark.slow
def test_a_clip_whose_source_is_gone_is_reported_and_the_others_are_kept(
    videos: Path, tmp_path: Path
) -> None:
    out, root = tmp_path / "out", tmp_path / "videos"
    shutil.copytree(videos, root)
    snapshot = build(settings_for(root, out, shards={"clips_per_shard": 6}), QUIET).snapshot
    (row,) = [row for row in snapshot.clips.to_pylist() if row["video_id"] == "deep/c.mp4"]
    flip(out / "shards" / f"{row['shard']}.tar", row["tracks_offset"] + 20)
    (root / "deep/c.mp4").unlink()
    outcome = repair(snapshot, verify_snapshot(snapshot, QUIET), QUIET)
    assert outcome.lost == (row["key"],)
    assert outcome.reason == "the file is gone"
    repaired = outcome.built.snapshot
    assert verify_snapshot(repaired, QUIET) == []
    assert set(snapshot.clips["key"].to_pylist()) - set(repaired.clips["key"].to_pylist()) == {
        row["key"]
    }
    assert (row["key"], "missing video") in zip(
        repaired.failures["clip"].to_pylist(), repaired.failures["reason"].to_pylist(), strict=True
    )


def test_a_deleted_receipt_of_a_published_shard_changes_nothing(
    built: tuple[BuildSettings, BuildResult], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder(built[0]), out)
    for receipt in (out / ".receipts").iterdir():
        receipt.unlink()
    settings = built[0].model_copy(update={"out": out})
    assert {shard.action for shard in plan(settings).shards} == {"keep"}
    assert build(settings, QUIET).made == 0
    assert verify_snapshot(open_snapshot(out), QUIET) == []
