"""Curves of a run are the values that it logged, at their steps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manifests.charts import Stroke, Text
from shards.errors import PretrackError
from trainer.metric_curves import draw_curves, read_curve
from trainer.metric_logging import TensorBoardLogger


def log(run: Path, losses: dict[int, float]) -> Path:
    settings: Any = SimpleNamespace(out=run)
    logger = TensorBoardLogger(settings, 0)
    for step, loss in losses.items():
        logger.log_metrics(step, {"loss": loss, "lr": 0.5})
    logger.close()
    return run


def test_curves_have_the_logged_steps_and_values(tmp_path: Path) -> None:
    run = log(tmp_path / "a", {10: 2.0, 20: 0.5, 30: 1.0})
    other = log(tmp_path / "b", {10: 1.0, 30: 0.0})
    assert read_curve(run) == [(10, 2.0), (20, 0.5), (30, 1.0)]
    assert read_curve(other, "lr") == [(10, 0.5), (30, 0.5)]
    chart = draw_curves("Loss", {"tracks": run, "control": other})
    texts = [mark.text for mark in chart.marks if isinstance(mark, Text)]
    assert texts[:5] == ["0", "0.5", "1", "1.5", "2"]
    assert texts[5:] == ["10", "20", "30", "steps", "tracks", "control"]
    lines = {mark.role: mark.points for mark in chart.marks if isinstance(mark, Stroke)}
    # 376 units wide from 44 to 420, and 156 high from 12 to 168, which is 0
    assert lines["s0"] == ((44, 12), (232, 129), (420, 90))
    assert lines["s1"] == ((44, 90), (420, 168))


def test_a_metric_that_was_not_logged_is_one_sentence(tmp_path: Path) -> None:
    run = log(tmp_path / "a", {1: 2.0})
    with pytest.raises(PretrackError, match=r"a has no metric 'los': it logged loss, lr$"):
        read_curve(run, "los")
    with pytest.raises(PretrackError, match="none holds no run that logged to TensorBoard"):
        read_curve(tmp_path / "none")
