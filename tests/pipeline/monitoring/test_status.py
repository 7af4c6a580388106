"""`pretrack status` shows how a build stands, and recording that never stops a build."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests.receipt import Receipt
from manifests.rows import Failure, FailureStage, ShardRow
from pipeline.monitoring.status import BuildState, StateFile, TrackerUsage, read_state, status
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import read_file
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips


def test_a_state_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "build.json"
    in_the_way.mkdir()
    file = StateFile(tmp_path, BuildState.started(2, 10, 0.0))
    file.shard_failed(5)
    file.end("failed")
    in_the_way.rmdir()
    file.end("finished")
    state = read_state(tmp_path)
    assert state is not None
    assert (state.state, state.shards_broken) == ("finished", 1)


def test_another_process_of_the_same_number_is_not_the_build(tmp_path: Path) -> None:
    start = """
import sys
from pathlib import Path
from pipeline.monitoring.status import BuildState, StateFile
StateFile(Path(sys.argv[1]), BuildState.started(2, 10, 0.0))
"""
    StateFile(tmp_path, BuildState.started(2, 10, 0.0))
    state = read_state(tmp_path)
    assert state is not None
    assert state.state == "running"
    subprocess.run([sys.executable, "-c", start, str(tmp_path)], check=True)
    file = tmp_path / "build.json"
    fields = json.loads(file.read_text())
    for changed in (fields, {**fields, "pid": 1}):  # exited, and its id given to another process
        file.write_text(json.dumps(changed))
        state = read_state(tmp_path)
        assert state is not None
        assert state.state == "killed"


def receipt(size: int, seconds: tuple[float, float, float], *reasons: str) -> Receipt:
    """A shard of these bytes, with a failure per reason (of stage "decode")."""
    stage: FailureStage = "decode"
    decode_seconds, track_seconds, write_seconds = seconds
    row = ShardRow(
        shard="pans-train-000000-0",
        group="pans-train-000000",
        source="pans",
        split="train",
        clips=3,
        bytes=size,
        checksum="0",
        frames_fingerprint="f",
        tracks_fingerprint="t",
        frames_settings="{}",
        tracks_settings="{}",
        decode_seconds=decode_seconds,
        track_seconds=track_seconds,
        write_seconds=write_seconds,
        tries=1,
    )
    failures = tuple(
        Failure(source="pans", video_id="a", stage=stage, reason=reason, detail=reason)
        for reason in reasons
    )
    return Receipt(row, (), failures, ())


def test_status_of_a_running_build_adds_its_shards_up(tmp_path: Path) -> None:
    file = StateFile(tmp_path, BuildState.started(shards=6, clips=60, tracker_gpus=0.0))
    file.shard_made(receipt(700, (1.0, 8.0, 0.5), "black image", "missing image"), clips=12)
    file.shard_made(receipt(300, (2.0, 4.0, 0.25), "missing image"), clips=8)
    file.shard_failed(clips=4)
    file.in_flight(2, TrackerUsage(live=3, busy=1, live_seconds=80.0, busy_seconds=20.0))
    file.end("running")  # writes the file, and counts no shard as running any more
    fields = json.loads((tmp_path / "build.json").read_text())
    assert fields["updated"] >= fields["began"]
    fields |= {"began": 1000.0, "updated": 1012.0, "shards_running": 2}
    (tmp_path / "build.json").write_text(json.dumps(fields))

    build = status(tmp_path)["build"]
    assert (build["shards_done"], build["shards_broken"], build["shards_running"]) == (2, 1, 2)
    assert build["shards_left"] == 1
    assert (build["clips_done"], build["clips_left"], build["bytes"]) == (24, 36, 1000)
    assert build["clips_per_s"] == pytest.approx(2.0)  # 24 clips in 12 s
    assert build["seconds_left"] == pytest.approx(18.0)  # 36 more at that rate
    assert build["stage_seconds"] == {"decode": 3.0, "track": 12.0, "write": 0.75}
    assert build["slowest_stage"] == "track"
    assert (build["trackers"], build["trackers_busy"]) == (3, 0.25)
    assert build["failures"] == 3
    assert build["reasons"] == [
        {"stage": "decode", "reason": "missing image", "count": 2},
        {"stage": "decode", "reason": "black image", "count": 1},
    ]


def test_status_of_a_build_that_ended_has_no_time_left(tmp_path: Path) -> None:
    file = StateFile(tmp_path, BuildState.started(shards=2, clips=20, tracker_gpus=0.0))
    build = status(tmp_path)["build"]
    assert not {"clips_per_s", "seconds_left", "trackers_busy", "slowest_stage"} & build.keys()
    file.shard_made(receipt(700, (1.0, 8.0, 0.5)), clips=12)
    file.end("stopped")
    build = status(tmp_path)["build"]
    assert (build["state"], build["clips_left"], build["shards_left"]) == ("stopped", 8, 1)
    assert "clips_per_s" in build
    assert "seconds_left" not in build


def test_status_counts_what_a_snapshot_holds_and_leaves_out(tmp_path: Path) -> None:
    clips = [
        grey_clip("made-a-000000", video="a", step=(0.0, 0.0)),
        grey_clip("made-a-000008", video="a", frames=5, step=(0.0, 0.0)),
        grey_clip("made-b-000000", video="b", split="eval", step=(0.0, 0.0)),
    ]
    failure = {
        "source": "made",
        "video_id": "c",
        "clip": "",
        "stage": "scan",
        "reason": "no frames",
        "detail": "no frame could be decoded",
        "shard": "",
    }
    snapshot = publish_clips(tmp_path, clips, failures=[failure])
    shown = status(tmp_path)
    assert (shown["out"], shown["build"]) == (str(tmp_path), None)
    held = shown["snapshot"]
    assert (held["name"], held["clips"], held["shards"], held["videos"]) == ("000001", 3, 1, 2)
    assert held["bytes"] == snapshot.shards["bytes"][0].as_py()
    assert held["sources"] == [
        {"source": "made", "split": "train", "clips": 2, "frames": 13, "visible_fraction": 1.0},
        {"source": "made", "split": "eval", "clips": 1, "frames": 8, "visible_fraction": 1.0},
    ]
    assert held["failures"] == [{"stage": "scan", "reason": "no frames", "count": 1}]
    assert held["left_out"] == [failure]
    assert held["worker_seconds"] == {
        "decode_seconds": 2.0,
        "track_seconds": 6.0,
        "write_seconds": 0.5,
    }


def test_a_new_state_names_its_process_and_has_done_nothing(tmp_path: Path) -> None:
    state = BuildState.started(shards=2, clips=20, tracker_gpus=0.5)
    assert (state.host, state.pid) == (socket.gethostname(), os.getpid())
    assert (state.shards_total, state.clips_total, state.tracker_gpus) == (2, 20, 0.5)
    done = (state.shards_done, state.shards_broken, state.clips_done, state.failures, state.bytes)
    assert done == (0, 0, 0, 0, 0)
    assert state.updated == state.began


@pytest.mark.parametrize(
    ("bucket", "interval_s"), [(False, 1.0), (True, 10.0)], ids=["disk", "bucket"]
)
def test_the_state_is_written_once_per_interval_and_at_the_end(
    bucket: bool, interval_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per second on a disk; per ten on a bucket, where each write is a request."""
    out = Url(f"memory://{tmp_path}") if bucket else tmp_path
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    file = StateFile(out, BuildState.started(shards=9, clips=90, tracker_gpus=0.0))
    usage = TrackerUsage(live=1, busy=1, live_seconds=1.0, busy_seconds=1.0)

    def running() -> int:
        return int(json.loads(read_file(out / "build.json"))["shards_running"])

    for intervals, shards, written in ((0.9, 4, 0), (1.1, 5, 5), (2.0, 6, 5), (2.2, 7, 7)):
        now = 50.0 + intervals * interval_s
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        file.in_flight(shards, usage)
        assert running() == written
    file.end("finished")
    assert running() == 0


def test_the_rate_counts_the_time_until_the_state_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: 1000.0 + seconds)
        monkeypatch.setattr(time, "monotonic", lambda: 50.0 + seconds)

    set_clock(0.0)
    file = StateFile(tmp_path, BuildState.started(shards=4, clips=40, tracker_gpus=0.0))
    set_clock(2.0)
    file.in_flight(1, TrackerUsage(live=1, busy=1, live_seconds=1.0, busy_seconds=1.0))
    build = status(tmp_path)["build"]
    assert not {"clips_per_s", "seconds_left"} & build.keys(), "no clip is made yet"
    set_clock(8.0)
    file.shard_made(receipt(700, (1.0, 8.0, 0.5)), clips=24)
    build = status(tmp_path)["build"]
    assert build["clips_per_s"] == pytest.approx(3.0)  # 24 clips in 8 s
    set_clock(16.0)
    file.end("stopped")
    assert status(tmp_path)["build"]["clips_per_s"] == pytest.approx(1.5)


def test_clips_made_in_no_measured_time_have_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    file = StateFile(tmp_path, BuildState.started(shards=1, clips=12, tracker_gpus=0.0))
    file.shard_made(receipt(700, (1.0, 8.0, 0.5)), clips=12)
    file.end("finished")
    assert "clips_per_s" not in status(tmp_path)["build"]


def test_trackers_are_never_busier_than_all_of_the_time(tmp_path: Path) -> None:
    file = StateFile(tmp_path, BuildState.started(shards=1, clips=1, tracker_gpus=0.0))
    file.in_flight(1, TrackerUsage(live=1, busy=1, live_seconds=10.0, busy_seconds=10.1))
    file.end("finished")
    assert status(tmp_path)["build"]["trackers_busy"] == 1.0


def test_a_folder_without_a_build_and_a_damaged_state_are_named(tmp_path: Path) -> None:
    with pytest.raises(PretrackError, match=rf"{tmp_path} holds no build: run 'pretrack build'"):
        status(tmp_path)
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(PretrackError, match=rf"{tmp_path}/build\.json is damaged .*: delete it"):
        read_state(tmp_path)
