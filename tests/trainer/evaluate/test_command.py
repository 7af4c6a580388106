"""The command `evaluate`: settings are options, help needs no torch, wrong use exits with 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.evaluation import evaluate
from trainer.evaluate.benchmarks.command import BENCHMARKS, Benchmark, given_settings
from trainer.evaluate.benchmarks.run import DENSE, PATCHES
from trainer.evaluate.benchmarks.settings import ClusteringSettings, ProbeSettings

REPOSITORY = Path(__file__).parents[3]


def test_every_benchmark_of_the_command_line_can_be_run() -> None:
    # `evaluate_normals_in_sets` encodes the photographs of one by sets.
    assert {b.name for b in BENCHMARKS if b.dense} == DENSE.keys() | {"navi-set-normals"}
    assert {b.name for b in BENCHMARKS if not b.dense} == PATCHES.keys()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_help_shows_every_setting(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert evaluate([benchmark.name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in benchmark.settings.model_fields:
        assert f"--{name.replace('_', '-')} " in text
    for option in benchmark.quick.split()[::2]:
        assert option.removeprefix("--").replace("-", "_") in benchmark.settings.model_fields
    assert ("--final-norm" in text) != benchmark.dense
    assert "RUN:first" in text


def test_options_are_read_as_the_settings_they_name() -> None:
    clustering = given_settings(ClusteringSettings, {"clusters": "5,21", "images": None})
    assert clustering == ClusteringSettings(clusters=(5, 21))
    probe = given_settings(ProbeSettings, {"jitter": "false", "rate": "0.001"})
    assert probe == ProbeSettings(jitter=False, rate=0.001)


def test_help_lists_the_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("labelfree", *(benchmark.name for benchmark in BENCHMARKS)):
        assert f" {name} " in text


@pytest.mark.parametrize("arguments", [["labelfree", "out"], ["spair", "root"], ["no-such"]])
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(arguments) == 2
    assert "Usage: python -m trainer.evaluate" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, trainer.evaluate.command\n"
        "light = set(sys.modules)\n"
        "import trainer.evaluate.benchmarks.command\n"
        "print(*({'torch', 'pydantic'} & light), *({'torch'} & sys.modules.keys()))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == ""
