"""The command that checks and times a GPU: run it in small on the CPU, part by part."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import memory
from benchmarks.gpu.__main__ import PARTS, main, run_part
from benchmarks.gpu.device import usable_device
from benchmarks.gpu.line import Line, attempt
from benchmarks.gpu.made_build import write_build
from benchmarks.gpu.moving_pictures import moving_pictures
from benchmarks.gpu.training import DEFAULTS, VARIANTS, settings
from manifests.snapshot import open_snapshot
from shards.reader import iterate_shard
from tests.pipeline.decode.test_gpu import PyAVReader, reading_with
from trainer.losses.settings import LossSettings


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_in_small_on_a_cpu_and_misses_nothing(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "video":  # without torchcodec too
        reading_with(monkeypatch, lambda path, device: PyAVReader(path))
    lines = list(import_module(f"benchmarks.gpu.{part}").lines("cpu", small=True))
    assert len(lines) >= 2
    assert not [line for line in lines if line.missed]
    for line in lines:
        assert isinstance(line.value, str) or math.isfinite(line.value), line


@pytest.mark.slow
def test_the_command_prints_a_table_writes_json_and_names_what_was_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "figures.json"
    done = command("--small", "--device", "cpu", "--parts", "machine", "--json", str(path))
    assert done.returncode == 0
    rows = re.findall(r"^\| machine \| (.+?) \|", done.stdout, re.MULTILINE)
    written = json.loads(path.read_text())
    assert rows == [line["what"] for line in written["machine"]]
    assert "bfloat16 matrix product" in rows
    assert written["failed"] == []
    summary = rf"^{len(rows)} figures in .*, 0 missed, 0 could not be measured$"
    assert re.search(summary, done.stdout, re.M)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_to_add() -> None:
    done = command()
    assert done.returncode == 2
    assert done.stderr.endswith(
        "error: there is no GPU that torch can use: add --small to run it on the CPU\n"
    )


@pytest.mark.parametrize("changes", [*VARIANTS.values(), DEFAULTS])
def test_the_settings_of_every_training_run_are_valid(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """In small, only one of them runs."""
    made = settings(tmp_path, "run", "cpu", 2, period=2, changes=changes)
    assert made.run.device == "cpu"


def test_the_run_with_every_loss_leaves_none_out() -> None:
    fields = LossSettings.model_fields.items()
    assert {*VARIANTS["every loss"]["loss"]} == {
        name for name, field in fields if field.default is None
    }


@pytest.mark.parametrize("free", [100, 79, 47, 31, 15])
def test_a_gpu_is_filled_until_the_trainer_finds_no_room(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `free` MiB, fewer than 16 must be left. CUDA cannot run here: its memory is counted."""
    left = free << 20

    def take(size: int, **_: Any) -> int:
        nonlocal left
        if size > left:
            raise torch.OutOfMemoryError
        left -= size
        return size

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    # One piece cannot have all of it: allocations are rounded up.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (left + 1, 0))
    monkeypatch.setattr(torch, "empty", take)
    memory._all_memory()
    assert left < memory.LEFT


def test_a_section_that_fails_keeps_its_lines_and_says_why() -> None:
    def fails() -> Iterator[Line]:
        yield Line("speed", 3.0)
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    lines = list(attempt("tracker", fails))
    assert lines == [
        Line("speed", 3.0),
        Line("tracker", "OutOfMemoryError: CUDA out of memory.", failed=True),
    ]
    assert [line.missed for line in lines] == [False, True]


def test_a_part_that_takes_too_long_is_stopped() -> None:
    """Loading torch alone takes longer than 0.2 s."""
    assert run_part("machine", "cpu", True, 0.2) == [
        Line("machine", "stopped after 0.2 s", failed=True)
    ]
    assert [line.failed for line in run_part("machine", "cpu", True, 0)] == [True]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_part_that_ends_early_says_why() -> None:
    """Here because the GPU is gone."""
    (line,) = run_part("machine", "cuda", True, 60)
    assert line.failed
    assert re.match(r"(RuntimeError|AssertionError): .*(NVIDIA|CUDA)", str(line.value))


def test_a_gpu_that_is_too_old_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr("trainer.cuda_device._run_kernel", lambda _: None)
    monkeypatch.setattr("benchmarks.gpu.__main__.in_another_process", usable_device)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "python -m benchmarks.gpu: error: Tesla V100 has compute capability 7.0, and bfloat16 "
        "needs 8.0: set 'run.precision=float32' ('--small --device cpu' runs without a GPU)"
    )


@pytest.mark.parametrize(
    ("line", "missed", "bounds", "shown"),
    [
        (Line("a", 2.0, "px"), False, "", "2 px"),
        (Line("a", 2.0, "px", at_most=2), False, "≤ 2", "2 px"),
        (Line("a", 2.001, "px", at_most=2), True, "≤ 2", "2.001 px"),
        (Line("a", 94.9, "%", at_least=95), True, "≥ 95", "94.9 %"),
        (Line("a", 95.0, "%", at_least=95), False, "≥ 95", "95 %"),
        (Line("a", 3.0, at_least=2, at_most=2), True, "= 2", "3"),
        (Line("a", math.nan, at_most=1), True, "≤ 1", "nan"),
        (Line("a", math.nan, at_least=1), True, "≥ 1", "nan"),
        (Line("a", "not measured"), False, "", "not measured"),
        (Line("a", "no GPU", failed=True), True, "", "no GPU"),
    ],
)
def test_a_line_misses_outside_its_bounds(
    line: Line, missed: bool, bounds: str, shown: str
) -> None:
    assert (line.missed, line.bounds, line.shown) == (missed, bounds, shown)


def test_made_tracks_follow_the_pictures(tmp_path: Path) -> None:
    """The point of the grid at (x, y) of frame 0 lies at (x - 2 t, y - t) in frame t."""
    write_build(tmp_path, clips=1, frames=5, height=64, width=96, grid=4)
    row = open_snapshot(tmp_path).clips.to_pylist()[0]
    (clip,) = iterate_shard(tmp_path / "shards" / f"{row['shard']}.tar")
    start, end = clip.tracks.positions[0, 0], clip.tracks.positions[0, 4]
    np.testing.assert_allclose(end - start, np.broadcast_to([-8.0, -4.0], end.shape), atol=0.02)
    first, last = moving_pictures(1, 5, 64, 96)[0][[0, 4]]
    assert torch.equal(last[:, :-4, :-8], first[:, 4:, 8:])


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
