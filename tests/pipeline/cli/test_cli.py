"""The commands of `pretrack` as a user runs them: output, exit status, and bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app
from tests.helpers.panning import panning_frames, write_video

CONFIG = """
sources:
  - {{dataset: video_folder, name: pans, root: {root}}}
frames: {{clip_frames: 10, min_frames: 6, short_side: 64}}
tracks: {{tracker: lucas_kanade, grid: 4, anchors: [0]}}
split: {{eval_fraction: 0.0}}
ray: {{cpus: 2}}
out: {out}
"""


def pretrack(*arguments: object) -> Result:
    """Run a command in this process, which has Ray and all imports already."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    for seed, frames in enumerate((22, 12)):
        write_video(root / "videos" / f"{seed}.mp4", panning_frames(seed, frames))
    (root / "videos" / "bad.mp4").write_text("no video")
    path = root / "config.yaml"
    path.write_text(
        CONFIG.format(root=root / "videos", out=root / "out") + "max_failed_videos: 0.5\n"
    )
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_plan_names_the_anchors_that_training_cannot_use(config: Path) -> None:
    """Clips have 10 frames: a sample of 4 steps by 2 and needs 6 frames beside its anchor."""
    said = " ".join(pretrack("plan", config, "tracks.anchors=[0,4,5]").stdout.split())
    assert said.endswith(
        "No training sample can start from the anchors 4 and 5. A sample takes 4 frames, 10 apart "
        "(less in clips of fewer than 40 frames). In clips of 10 frames, the most frequent length, "
        "it can start from frames 0 to 3 or 6 to 9. Samples use 33% of the tracked frames: change "
        "tracks.anchors or frames.clip_frames. This is for data.frames=4 and data.step=10, the "
        "trainer's defaults: --train-frames and --train-step choose others."
    )
    assert "training" not in pretrack("plan", config, "tracks.anchors=[0,3,6]").stdout
    smaller = ("tracks.anchors=[0,4,5]", "--train-frames", 5, "--train-step", 1)
    assert "training" not in pretrack("plan", config, *smaller).stdout
    planned = json.loads(pretrack("plan", config, "tracks.anchors=[0,4,5]", "--json").stdout)
    assert planned["training"] == {
        "frames": 4,
        "step": 10,
        "unreachable_anchors": [4, 5],
        "unused_clips": 0,
        "used_fraction": 1 / 3,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_the_whole_command_line(config: Path, tmp_path: Path) -> None:
    out = config.parent / "out"
    found = pretrack("catalog", config)
    assert found.exit_code == 0, found.stderr
    assert "bad.mp4" in found.stdout
    assert "cannot be opened as a video" in " ".join(found.stdout.split())

    planned = json.loads(pretrack("plan", config, "--json").stdout)
    assert [(shard["action"], shard["reason"], shard["clips"]) for shard in planned["shards"]] == [
        ("build", "new", 3)
    ]
    assert not (out / "shards").exists(), "planning makes nothing"

    command = [sys.executable, "-m", "pipeline", "build", str(config)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert built.returncode == 0, built.stderr
    assert "1 shard made, 0 kept; snapshot 000001 has 3 clips; 1 note on" in built.stdout
    assert "making shards: 3 of 3 clips" in built.stderr, (
        "progress goes line by line where there is no terminal"
    )
    assert "\x1b[" not in built.stdout + built.stderr
    assert "was killed" not in built.stderr, "the watcher over Ray is dismissed"
    assert "nothing to do, 1 shard kept" in pretrack("build", config).stdout
    shown = pretrack("status", config).stdout
    assert "build: finished, 3 of 3 clips" in shown
    assert "shards: 1 done, 0 running, 0 failed, 0 left" in shown
    assert "the slowest stage is" in shown
    assert "pretrack build CONFIG --retry-failed" in shown

    verified = pretrack("verify", out, "--json")
    assert verified.exit_code == 0
    assert json.loads(verified.stdout) == {
        "snapshot": "000001",
        "shards": 1,
        "clips": 3,
        "problems": [],
    }
    state = json.loads(pretrack("status", out, "--json").stdout)
    assert state["snapshot"]["failures"] == [
        {"stage": "scan", "reason": "unreadable video", "count": 1}
    ]

    drawn = pretrack("show", config, "--clip", "0_mp4", "--to", tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".mp4", ".mp4", ".png", ".png"], (
        drawn.stderr
    )
    gallery = pretrack("show", config, "--open", "--to", tmp_path / "gallery", "--json")
    assert json.loads(gallery.stdout)["clips"] == 3, gallery.stderr
    assert (tmp_path / "gallery" / "index.html").is_file()
    reported = pretrack("report", config)
    assert reported.exit_code == 0, reported.stderr
    assert reported.stdout.endswith(f"{out}/pictures/report/index.html\n")
    seen = pretrack("plan", config, "tracks.grid=5").stdout
    (cells,) = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in seen.splitlines()
        if "grid 4" in line
    ]
    assert cells[:4] == ["retrack", "tracks.grid 4 → 5", "1", "3"]
    assert "kB" in cells[4]
    assert cells[5].endswith("s"), "worker time, judged by the first build"
    assert "worker time in all: " in seen
    assert "terms: frames NOASSERTION, tracks without licensed weights; commercial use" in seen
    costs = json.loads(pretrack("plan", config, "tracks.grid=5", "--json").stdout)
    assert costs["worker_seconds"] == costs["costs"][0]["seconds"] > 0
    retracked = pretrack("build", config, "tracks.grid=5", "--json-logs")
    assert "1 shard made" in retracked.stdout
    logged = [json.loads(line) for line in retracked.stderr.splitlines()]
    expected = [
        "build started",
        "tracker ready",
        "shard made",
        "snapshot published",
        "build finished",
    ]
    assert [event["event"] for event in logged] == expected
    assert logged[2].keys() >= {"time", "message", "shard", "clips", "failures", "bytes", "seconds"}
    assert [
        json.loads(line) for line in (out / "build.log").read_text().splitlines()[-5:]
    ] == logged
    assert [path.name for path in sorted((out / "snapshots").iterdir())] == ["000001", "000002"]

    differ = pretrack("diff", out, "000001", "000002")
    assert differ.exit_code == 0, differ.stderr
    assert "tracks.grid 4 → 5" in differ.stdout
    assert "0 videos added, 0 removed, 0 replaced" in differ.stdout
    assert "0 clips added, 0 removed, 3 re-tracked over the same frames" in differ.stdout
    assert (
        json.loads(pretrack("diff", out, "000001", "000002", "--json").stdout)["clips"]["retracked"]
        == 3
    )

    (tar,) = [path for path in (out / "shards").iterdir() if path.name in state_shards(out)]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 0xFF
    tar.write_bytes(data)
    damaged = pretrack("verify", out)
    assert damaged.exit_code == 1
    assert tar.stem in damaged.stdout


def state_shards(out: Path) -> set[str]:
    """The file names of the current snapshot's shards."""
    from manifests.snapshot import open_snapshot

    return {f"{shard}.tar" for shard in open_snapshot(out).shards.column("shard").to_pylist()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["build", "{config}", "sources=[{{dataset: video_folder, root: /not/there}}]"],
            "video_folder root /not/there does not exist",
        ),
        (["build", "{config}", "frames.short_sid=128"], "frames.short_sid"),
        (["plan", "{config}", "tracks.tracker=cotraker"], "cotraker"),
        (["plan", "{config}", "sources=[{{dataset: imagenet, root: /}}]"], "imagenet"),
        (["build", "{config}", "frames.clip_frames=many"], "frames.clip_frames"),
        (["build", "{config}", "frames.size=[0, 0]"], "frames.size"),
        (["build", "{config}", "frames.decode_timeout_s=.inf"], "finite"),
        (["build", "{config}", "sources.0.name=" + 40 * "n"], "at most 30 characters"),
        (["build", "{config}", "out=''"], "should name a folder"),
        (["build", "{config}", "out=/proc/pretrack"], "cannot be written"),
        (["build", "{config}", "--stored"], "holds no finished build"),
        (["build", "/not/there.yaml"], "/not/there.yaml"),
        (["status", "/not/there"], "/not/there"),
        (["verify", "{folder}"], "holds no finished build"),
        (["show", "{folder}"], "holds no finished build"),
        (["diff", "{folder}", "000001", "000002"], "has no snapshot '000001'"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    arguments: list[str], says: str, config: Path, tmp_path: Path
) -> None:
    filled = [argument.format(config=config, folder=tmp_path) for argument in arguments]
    own_out = (
        any(argument.startswith("out=") for argument in arguments) or "{config}" not in arguments
    )
    overrides = [] if own_out else [f"out={tmp_path / 'out'}"]
    done = CliRunner().invoke(app, [*filled, *overrides])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), "nothing else got out"
    complaint = [line for line in done.stderr.splitlines() if line.startswith("pretrack: ")]
    assert len(complaint) == 1, done.stderr
    assert says in complaint[0]
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["catalog", "out=/proc/pretrack"], "/proc/pretrack"),
        (["build", "ray.trackers=9"], "9 trackers"),
    ],
)
def test_failures_after_work_has_begun_are_one_clear_sentence(
    arguments: list[str], says: str, config: Path, tmp_path: Path
) -> None:
    command, override = arguments
    done = pretrack(command, config, f"out={tmp_path / 'out'}", override)
    assert done.exit_code == 1, done.stdout
    assert isinstance(done.exception, SystemExit), "nothing else got out"
    (complaint,) = [line for line in done.stderr.splitlines() if line.startswith("pretrack: ")]
    assert says in complaint
    assert not list(tmp_path.rglob("*.tar"))


def test_a_rule_over_several_keys_names_them_alone(config: Path) -> None:
    complaint = pretrack("plan", config, "tracks.anchors=[0,16]").stderr
    assert (
        complaint
        == f"pretrack: {config}: tracks.anchors [0, 16] go beyond the 10 frames of a clip\n"
    )


def test_a_misspelt_key_is_told_its_near_one(config: Path) -> None:
    for override, meant in (
        ("frames.short_sid=128", "short_side"),
        ("tracks.tracker=lukas_kanade", "lucas_kanade"),
    ):
        assert meant in CliRunner().invoke(app, ["plan", str(config), override]).stderr


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_ctrl_c_stops_a_build_with_one_sentence_and_it_goes_on_later(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "build",
        config,
        f"out={out}",
        "shards.clips_per_shard=1",
        "tracks.grid=50",
    ]
    with subprocess.Popen(
        [*map(str, command), "--json-logs"], stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if '"shard made"' in line:
                break
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130, rest
    assert (
        "pretrack: stopped. What is finished is kept; the same command continues from there."
        in rest
    )
    assert "Traceback" not in rest
    assert rest.count("pretrack: ") == 1, "the watcher over Ray is dismissed"
    state = json.loads(pretrack("status", out, "--json").stdout)
    assert state["build"]["state"] == "stopped"
    again = pretrack(*command[3:])
    assert again.exit_code == 0, again.stderr
    made, kept = map(int, re.findall(r"(\d+) (?:shards? made|kept)", again.stdout))
    assert made >= 1
    assert kept >= 1
