"""Programs read the events of a build: their names and fields in `build.log` stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.rows import Failure
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.failures import Reason
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import read_state
from pipeline.ray_cluster import Cluster
from tests.helpers.clips import grey_clip
from tests.helpers.published import publish_clips

CRASH = Failure(
    source="pans",
    video_id="a.mp4",
    clip="pans-a-000000",
    stage="track",
    reason=Reason.TRACKER_CRASHED,
    detail="it died",
)
DEATH = RuntimeError("the worker died\nand a long message follows")


@pytest.mark.parametrize(
    ("report", "event", "fields"),
    [
        (
            lambda monitor: monitor.shard_restarted("pans-train-000000", DEATH),
            "shard restarted",
            {"shard": "pans-train-000000", "reason": "the worker died"},
        ),
        (
            lambda monitor: monitor.stored_frames_damaged("pans-train-000000", "old", "it is cut"),
            "stored frames damaged",
            {"shard": "old", "reason": "it is cut"},
        ),
        (
            lambda monitor: monitor.shard_isolated("pans-train-000000", "decode", 2),
            "shard isolated",
            {"shard": "pans-train-000000"},
        ),
        (
            lambda monitor: monitor.clip_left_out("pans-train-000000", CRASH),
            "clip left out",
            {"clip": "pans-a-000000", "shard": "pans-train-000000", "stage": "track"},
        ),
        (
            lambda monitor: monitor.decoder_lost("pans-train-000000", DEATH),
            "decoder lost",
            {"shard": "pans-train-000000", "reason": "the worker died"},
        ),
        (
            lambda monitor: monitor.gpu_refused("pans-train-000000", ["it is interlaced"] * 2),
            "decoded on the CPU",
            {"shard": "pans-train-000000", "clips": 2, "reason": "it is interlaced"},
        ),
        (
            lambda monitor: monitor.tracker_ready("process 7 on a", 3),
            "tracker ready",
            {"where": "process 7 on a", "trackers": 3},
        ),
        (
            lambda monitor: monitor.tracker_lost("", "no memory", 2),
            "tracker lost",
            {"where": "", "reason": "no memory", "trackers": 2},
        ),
        (
            lambda monitor: monitor.tracker_stopped("process 7 on a", 2, 1),
            "tracker stopped",
            {"where": "process 7 on a", "trackers": 1},
        ),
        (
            lambda monitor: monitor.waiting_for_tracker(
                4, seconds=30.0, cores=1.0, gpus=0.5, cluster=Cluster(8, 0)
            ),
            "waiting for a tracker",
            {"waiting": 4, "cpus": 8, "gpus": 0},
        ),
    ],
)
def test_events_keep_their_names_and_fields(
    report: Callable[[BuildMonitor], None], event: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    report(BuildMonitor(tmp_path, Progress(quiet=True)))
    (line,) = (tmp_path / "build.log").read_text().splitlines()
    logged = json.loads(line)
    assert logged.pop("time").endswith("+00:00")
    assert "\n" not in logged.pop("message")
    assert logged == {"event": event, **fields}


def test_that_the_gpu_refuses_clips_is_shown_once_and_logged_each_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = BuildMonitor(tmp_path, Progress())
    monitor.gpu_refused("pans-train-000000", [])
    monitor.gpu_refused("pans-train-000001", ["it is interlaced"])
    monitor.gpu_refused("pans-train-000002", ["it is interlaced"])
    assert (tmp_path / "build.log").read_text().count("decoded on the CPU") == 2
    shown = capsys.readouterr().err
    assert "the GPU refused 1 clip of pans-train-000001" in shown
    assert "pans-train-000002" not in shown


def test_the_end_of_a_build_counts_what_was_made_and_published(tmp_path: Path) -> None:
    snapshot = publish_clips(tmp_path, [grey_clip("made-a-000000"), grey_clip("made-b-000000")])
    monitor = BuildMonitor(tmp_path, Progress(quiet=True))
    monitor.snapshot_published(snapshot)
    monitor.build_finished(1, 2000, snapshot)
    published, finished = map(json.loads, (tmp_path / "build.log").read_text().splitlines())
    assert published["message"] == ("snapshot 000001 is published: 2 clips in 1 shard, 0 failures")
    assert (published["snapshot"], published["clips"], published["shards"]) == ("000001", 2, 1)
    assert finished["message"] == "the build is finished: 1 shard made, 2,000 kept"
    assert (finished["made"], finished["kept"], finished["snapshot"]) == (1, 2000, "000001")


def test_status_and_log_say_that_scoring_runs_and_how_it_ended(tmp_path: Path) -> None:
    scoring = BuildMonitor(tmp_path, Progress(quiet=True)).scoring(shards=3, clips=7)
    scoring.__enter__()
    running = read_state(tmp_path)
    assert running
    assert (running.state, running.shards_total, running.clips_total) == ("running", 3, 7)
    full = OSError("No space left on device")
    assert not scoring.__exit__(OSError, full, None)
    ended = read_state(tmp_path)
    assert ended
    assert ended.state == "failed"
    events = [json.loads(line) for line in (tmp_path / "build.log").read_text().splitlines()]
    assert [(event["event"], event["reason"]) for event in events] == [
        ("build stopped", "No space left on device")
    ]
